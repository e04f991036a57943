"""Dialling from this host: the system's errors as the Status a far program hears, and a connected socket."""

from __future__ import annotations

import asyncio
import errno
import os
import socket

from proxy_vpn.addresses import Address
from proxy_vpn.errors import FlowError, Status

CONNECT_TIMEOUT_S = 10.0

_STATUS_OF_ERRNO = {
    errno.ECONNREFUSED: Status.REFUSED,
    errno.ECONNRESET: Status.REFUSED,
    errno.ETIMEDOUT: Status.TIMEOUT,
    errno.EHOSTUNREACH: Status.UNREACHABLE,
    errno.ENETUNREACH: Status.UNREACHABLE,
    errno.ENETDOWN: Status.UNREACHABLE,
    errno.EADDRNOTAVAIL: Status.UNREACHABLE,
    errno.EAFNOSUPPORT: Status.UNREACHABLE,
    errno.EINVAL: Status.UNREACHABLE,
    errno.EACCES: Status.POLICY,
    errno.EPERM: Status.POLICY,
    errno.EMFILE: Status.LIMIT,
    errno.ENFILE: Status.LIMIT,
    errno.ENOBUFS: Status.LIMIT,
    errno.ENOMEM: Status.LIMIT,
}


def dial_error(what: object, error: OSError) -> FlowError:
    """The FlowError for `error`, met while dialling `what`."""
    if isinstance(error, TimeoutError) and error.errno is None:
        return FlowError(Status.TIMEOUT, f"{what} did not answer within {CONNECT_TIMEOUT_S:.0f} s")
    if not error.errno:  # several addresses that failed in different ways
        return FlowError(Status.UNREACHABLE, f"{what} can't be reached: {error}")
    status = _STATUS_OF_ERRNO.get(error.errno, Status.INTERNAL)
    if status is Status.REFUSED:
        return FlowError(status, f"nothing listens on {what}: connection refused")
    return FlowError(status, f"{what} can't be reached: {os.strerror(error.errno)}")


async def dial(address: Address, source_ip: str = "") -> socket.socket:
    """A connected non-blocking TCP socket, from `source_ip` if given; raises OSError. The caller limits the time."""
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if source_ip:
            sock.bind((source_ip, 0))
        await _connect(sock, address)
        refuse_self_connection(sock)
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect(sock: socket.socket, address: Address) -> None:
    if sock.connect_ex(address) in (0, errno.EINPROGRESS):
        # Through loopback it has succeeded, or failed, by now: nothing to wait for.
        error = sock.connect_ex(address)
        if error in (0, errno.EISCONN):
            return
        if error not in (errno.EALREADY, errno.EINPROGRESS):
            raise OSError(error, os.strerror(error))
    await asyncio.get_running_loop().sock_connect(sock, tuple(address))


def refuse_self_connection(sock: socket.socket) -> None:
    """TCP can connect a socket to itself when a port of this host is dialled that nobody listens on."""
    if sock.getsockname() == sock.getpeername():
        sock.close()
        raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens there")
