"""The other end of the NamespaceDoor: `pvpn exec`'s own process, which becomes the command afterwards.

It runs before the command and without a loop: plain blocking calls, in a process with one thread.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Final, TypeVar

from proxy_vpn.doors import resolver_files, unshare
from proxy_vpn.doors.namespace_giver import leave_giver
from proxy_vpn.doors.namespace_wire import (
    MAX_LINE_BYTES,
    Handover,
    Offer,
    Ready,
    Refusal,
    Wish,
    decode,
    encode,
)
from proxy_vpn.doors.stdio import not_running
from proxy_vpn.doors.tun_setup import TunPlan, set_up
from proxy_vpn.errors import ControlError, StateError, WireError

ANSWER_TIMEOUT_S: Final = 30.0
_READ_BYTES: Final = 4096
_T = TypeVar("_T", Offer, Ready)


def enclose(socket_path: str, wish: Wish) -> None:
    """Move this process into a network of its own whose only way out is the process that serves `socket_path`.

    Raises PvpnError; after a failure half of it may be done, so only to be told and to end.
    """
    with _connect(socket_path) as sock:
        unshare.check_tun()
        host = "" if wish.only_peers else resolver_files.host_resolv_conf()
        plan = _ask(sock, wish)
        before = unshare.enter_new_namespaces()
        _hand_over(sock, plan)
        content = resolver_files.resolv_conf(plan.dns, wish.net, host)
        resolver_files.cover(content, os.path.dirname(socket_path))
        _receive(sock, Ready)
        unshare.drop_gained(before)


def _connect(socket_path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(ANSWER_TIMEOUT_S)
        sock.connect(socket_path)
    except OSError as error:
        sock.close()
        if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
            raise not_running(socket_path) from None
        what = f"the running pvpn can't be asked: {error.strerror or error}"
        raise ControlError(what, "run this as the user who started it") from None
    return sock


def _hand_over(sock: socket.socket, plan: TunPlan) -> None:
    """Make the device and the listeners and give them away: none stays open here."""
    device, listeners, _ = made = set_up(plan)
    try:
        lifeline = os.pidfd_open(os.getpid())
    except OSError as error:
        what = f"this kernel does not tell when a process ends: {error.strerror}"
        raise StateError(what, "pvpn exec needs Linux 5.3 (in a container: allow pidfd_open)") from None
    try:
        with leave_giver() as giver, suppress(OSError):
            descriptors = [lifeline, device.fileno(), giver.fileno(), *(listener.fileno() for listener in listeners)]
            socket.send_fds(sock, [encode(Handover(device.name))], descriptors)
    except OSError as error:
        raise StateError(f"no process can be started: {error.strerror}", "end some") from None
    finally:
        os.close(lifeline)
        made.close()


def _ask(sock: socket.socket, wish: Wish) -> TunPlan:
    with suppress(OSError):  # what it says before it hangs up is still to be read
        sock.sendall(encode(wish))
    return _receive(sock, Offer).plan()


def _receive(sock: socket.socket, kind: type[_T]) -> _T:
    """The process's next message; a Refusal is raised as the error it tells."""
    line = b""
    try:
        while not line.endswith(b"\n"):
            piece = sock.recv(_READ_BYTES)
            line += piece
            if not piece or len(line) > MAX_LINE_BYTES:
                raise _gone()
    except TimeoutError:
        raise ControlError("the running pvpn did not answer in time", "see its log") from None
    except OSError:
        raise _gone() from None
    try:
        answer: _T | Refusal = decode(line, kind | Refusal)  # type: ignore[arg-type]
    except WireError:
        raise ControlError("the running pvpn gave no answer that makes sense", "restart it") from None
    if isinstance(answer, Refusal):
        raise answer.as_error()
    return answer


def _gone() -> ControlError:
    return ControlError("the running pvpn hung up before the network was ready", "see its log")
