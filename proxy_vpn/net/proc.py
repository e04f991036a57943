"""What the kernel tells as text under /proc."""

from __future__ import annotations

from pathlib import Path


def lines(path: Path) -> list[str]:
    """The lines of such a file; none where it isn't there: other systems, or a family that is switched off."""
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
