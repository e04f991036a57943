"""Private directories: 0700 and this user's own, for state and for sockets."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Final

from proxy_vpn.addresses import shown
from proxy_vpn.errors import StateError

MARK: Final = "process.json"  # lies in every state directory that a process has used
_LEVELS: Final = 3  # networks/<network id> lies this deep


def make_private(directory: Path) -> None:
    """Make a 0700 directory of ours; closes an empty one that is open to others. Raises StateError."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
        if status.st_uid != os.geteuid():
            raise StateError(f"{shown(directory)} belongs to another user", "choose another directory with --state")
        if status.st_mode & 0o077:
            if any(directory.iterdir()):
                raise open_to_others(directory)
            directory.chmod(0o700)
    except OSError as error:
        hint = "choose another directory with --state"
        raise StateError(f"can't use {shown(directory)}: {error.strerror}", hint) from None


def check_private(directory: Path) -> None:
    """Raise StateError unless a directory that exists is ours and closed to others, a link being neither."""
    try:
        status = os.lstat(directory)
    except OSError:
        return
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise StateError(f"{shown(directory)} is not a directory of this user's own", "give another --state")
    if status.st_mode & 0o077:
        raise open_to_others(directory)


def open_to_others(directory: Path) -> StateError:
    """The error; its chmod is only for what is surely ours: closing /tmp, or a home, would break the machine."""
    hint = f"run: chmod 700 {quote(shown(directory))}" if _is_ours(directory) else "choose an empty one with --state"
    return StateError(f"others can look into {shown(directory)}", hint)


def _is_ours(directory: Path) -> bool:
    with suppress(OSError):
        if directory.stat().st_mode & stat.S_ISVTX:
            return False
        return any((place / MARK).exists() for place in [directory, *directory.parents][:_LEVELS])
    return False
