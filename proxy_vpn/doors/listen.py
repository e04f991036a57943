"""Listener: a bound socket of this process where programs come in (TCP, UDP or Unix), registered in OwnListeners."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress

from proxy_vpn.addresses import Address, Target
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.errors import StateError

_BACKLOG = 512
_SOCKET_MODE = 0o600


class Listener:
    """A bound socket and how to give it up; `where` is its Address, or its path for a Unix socket."""

    def __init__(self, sock: socket.socket, own: OwnListeners, path: str = "") -> None:
        sock.setblocking(False)
        self.sock = sock
        self.where: Address | str = path or Address(*sock.getsockname()[:2])
        self._udp = sock.type == socket.SOCK_DGRAM
        self._inode = os.stat(path).st_ino if path else 0
        self._own = own
        if isinstance(self.where, Address):
            own.add(self.where, self._udp)

    def close(self) -> None:
        """Close the socket, and remove its file if it is still this one's; idempotent."""
        if self.sock.fileno() < 0:
            return
        self.sock.close()
        if isinstance(self.where, Address):
            self._own.discard(self.where, self._udp)
        else:
            with suppress(OSError):
                if os.stat(self.where).st_ino == self._inode:
                    os.unlink(self.where)


async def listen_tcp(host: str, port: int, own: OwnListeners) -> Listener:
    """Listen for TCP on `host` (an empty one: every address) and `port` (0: any free one); raises StateError."""
    sock = _bound(host, port, socket.SOCK_STREAM)
    sock.listen(_BACKLOG)
    return Listener(sock, own)


async def bind_udp(host: str, port: int, own: OwnListeners) -> Listener:
    """The same for UDP."""
    return Listener(_bound(host, port, socket.SOCK_DGRAM), own)


def listen_unix(path: str, own: OwnListeners) -> Listener:
    """Listen on a Unix socket that only this user may use, in place of one nobody listens on; raises StateError."""
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux gives the file the socket's own mode, so that it is never wider than this.
        os.fchmod(sock.fileno(), _SOCKET_MODE)
        sock.bind(path)
        os.chmod(path, _SOCKET_MODE)
        sock.listen(_BACKLOG)
        return Listener(sock, own, path)
    except OSError as error:
        sock.close()
        if "too long" in str(error):
            raise StateError(f"the path {path!r} is too long for a Unix socket", "107 bytes are the most") from None
        hint = "make the directory first" if error.errno == errno.ENOENT else "choose another path"
        raise StateError(f"can't listen on {path!r}: {error.strerror}", hint) from None


def _bound(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    where = Target(host or "*", port)
    try:
        flags = socket.AI_PASSIVE | socket.AI_NUMERICHOST  # whoever answers for names has no say in who may connect
        infos = socket.getaddrinfo(host or None, port, type=kind, flags=flags)  # numeric: nobody is waited for
    except (socket.gaierror, UnicodeError):
        raise StateError(f"can't listen on {where}: that is no numeric address", "use 127.0.0.1") from None
    family, _kind, _protocol, _name, address = infos[0]
    sock = socket.socket(family, kind)
    try:
        if kind is socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _bind_error(where, error) from None
    return sock


def _bind_error(where: Target, error: OSError) -> StateError:
    if error.errno == errno.EADDRINUSE:
        return StateError(f"port {where.port} is in use (on {where.host})", "choose another, or 0 for any free one")
    if error.errno == errno.EACCES:
        return StateError(f"may not listen on {where}", "ports below 1024 need root")
    if error.errno == errno.EADDRNOTAVAIL:
        return StateError(f"can't listen on {where}: this machine has no such address", "use 127.0.0.1")
    return StateError(f"can't listen on {where}: {error.strerror}", "choose another address")


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise StateError(f"{path!r} exists and is not a socket", "choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with suppress(OSError):
                os.unlink(path)
            return
        except OSError:
            pass  # its backlog is full, or it isn't ours: somebody is there
    raise StateError(f"another process listens on {path!r}", "stop it, or choose another path")
