"""The system's programs tests use, found as root would find them: Debian keeps some where users' PATH does not look."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

UNPACKED = "LAB_PROGRAMS"
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def find_tool(name: str) -> str | None:
    """The program's full path, or None."""
    return shutil.which(name, path=SEARCH_PATH)


def find_unpacked(*patterns: str) -> tuple[Path, Path] | None:
    """A program by glob patterns of its path, and the root that these are relative to; None where it is not.

    What UNPACKED names goes first: a directory into which packages were unpacked (`dpkg -x`) that would change too much
    if they were installed.
    """
    roots = [Path(name) for name in (os.environ.get(UNPACKED), "/") if name]
    return next(((root, path) for root in roots for each in patterns for path in sorted(root.glob(each))), None)


def missing_tools(names: Iterable[str]) -> str | None:
    """A reason to skip that names what is not installed, or None."""
    missing = [name for name in names if find_tool(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def tool_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, where tools are found and no HTTP proxy is set: a lab could not reach it."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**kept, "PATH": SEARCH_PATH, "PYTHONUNBUFFERED": "1", **(extra or {})}
