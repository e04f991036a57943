"""Files of a state directory: written whole or not at all, and set aside when they can't be read."""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from proxy_vpn.addresses import shown
from proxy_vpn.errors import StateError

log = logging.getLogger(__name__)

MAX_STATE_FILE_BYTES: Final = 8 * 1024 * 1024
TEMPORARY_SUFFIX: Final = ".tmp"
ASIDE_SUFFIX: Final = ".damaged"

_T = TypeVar("_T")


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` (mode 0600) by a flushed temporary file; blocks on the disk. Raises StateError."""
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(TEMPORARY_SUFFIX, path.name + ".", path.parent)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        if temporary:
            with suppress(OSError):
                os.unlink(temporary)
        raise StateError(f"can't write {shown(path)}: {error.strerror}", "check its disk and owner") from None


def read_bounded(path: Path) -> bytes | None:
    """The file's bytes, None when there is none. Raises StateError."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_STATE_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"can't read {shown(path)}: {error.strerror}", "check its owner") from None
    return data


def read_json(path: Path, kind: type[_T]) -> _T | None:
    """A value written with `write_json`; None when there is none, or it was damaged and is now set aside."""
    data = read_bounded(path)
    if data is None:
        return None
    try:
        if len(data) > MAX_STATE_FILE_BYTES:
            raise ValueError("too large")
        return msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError) as error:
        aside = path.with_name(path.name + ASIDE_SUFFIX)
        log.warning("%s is damaged (%s): set aside as %s", shown(path), ascii(str(error)), ascii(aside.name))
        with suppress(OSError):
            os.replace(path, aside)
        return None


def write_json(path: Path, value: object) -> None:
    """`value` (a msgspec Struct) as indented JSON, atomically. Raises StateError."""
    write_atomic(path, msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")


def sweep(directory: Path) -> None:
    """Remove temporary files that a killed process left behind."""
    for path in directory.glob("*" + TEMPORARY_SUFFIX):
        with suppress(OSError):
            path.unlink()


def sync_directory(directory: Path) -> None:
    """Make renames in it durable; file systems that can't are left alone."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
