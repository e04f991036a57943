"""Unix sockets of a running process: where they are, for the process and for the CLI alike.

They lie in the state directory, `control.sock`, `proxy.sock` and `exec.sock`. A path longer than the kernel allows
moves to a directory named after its hash below /tmp: 0700 and ours, or it is not used. (Not the runtime directory: it
comes and goes with logins, and a service and a shell must find the same place.)
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Final

from proxy_vpn.daemon.private import check_private
from proxy_vpn.errors import StateError

MAX_UNIX_PATH_BYTES: Final = 107
CONTROL_SOCKET: Final = "control.sock"
PROXY_SOCKET: Final = "proxy.sock"
EXEC_SOCKET: Final = "exec.sock"


def default_state_directory() -> Path:
    """Where a process keeps its state unless told otherwise: PVPN_STATE, else the platform's place for it."""
    if named := os.environ.get("PVPN_STATE"):
        return Path(named)
    import platformdirs

    return platformdirs.user_state_path("pvpn", appauthor=False)


def control_socket(state: Path | None = None) -> Path:
    """Where the process with this state directory (None: the default one) listens for requests."""
    return socket_path(state or default_state_directory(), CONTROL_SOCKET)


def proxy_socket(state: Path | None = None) -> Path:
    """Where the process with this state directory serves its proxy to this user."""
    return socket_path(state or default_state_directory(), PROXY_SOCKET)


def exec_socket(state: Path | None = None) -> Path:
    """Where the process with this state directory takes in the networks of `pvpn exec`."""
    return socket_path(state or default_state_directory(), EXEC_SOCKET)


def socket_path(directory: Path, name: str) -> Path:
    """`directory/name`, or its stand-in when that is too long for a Unix socket; absolute."""
    absolute = Path(os.path.realpath(directory))
    if len(os.fsencode(absolute / name)) <= MAX_UNIX_PATH_BYTES:
        return absolute / name
    digest = hashlib.blake2b(os.fsencode(absolute), digest_size=8).hexdigest()
    for base in ("/tmp", tempfile.gettempdir()):
        path = Path(base) / f"pvpn-{os.geteuid()}-{digest}" / name
        if os.path.isdir(base) and len(os.fsencode(path)) <= MAX_UNIX_PATH_BYTES:
            return path
    raise StateError("no directory is short enough for a Unix socket", "choose a shorter one with --state")


def prepare(path: Path) -> None:
    """Make the socket's directory and remove a dead socket; only for the holder of the state's lock.

    Raises StateError when the directory is somebody else's or open to others.
    """
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        check_private(path.parent)  # before a link of somebody else's could lead the removal elsewhere
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StateError(f"can't make the socket {str(path)!r}: {error.strerror}", "give another --state") from None
