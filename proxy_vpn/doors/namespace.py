"""NamespaceDoor: serves `pvpn exec`, whose command has a network of its own with this process as its only way out.

`pvpn exec` makes that network, and in it a TUN device and listeners, and hands them over on a Unix socket (the messages
are in `namespace_wire`); a TunDoor then works on them here. It ends with the command, however that ends: the command
takes the place of `pvpn exec` (exec), so the pidfd that came along is its own. The socket could not tell: programs such
as ssh close what they inherit, and what they leave in the background keeps it open.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Final, Protocol

from proxy_vpn.doors.acceptor import Acceptor
from proxy_vpn.doors.listen import listen_unix
from proxy_vpn.doors.namespace_sockets import SocketSource
from proxy_vpn.doors.namespace_wire import (
    MAX_DESCRIPTORS,
    MAX_LINE_BYTES,
    Handover,
    Offer,
    Ready,
    Refusal,
    Wish,
    decode,
    encode,
)
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.tun_device import TunDevice
from proxy_vpn.doors.tun_setup import TunPlan
from proxy_vpn.errors import ControlError, PvpnError, UsageError, WireError

MAX_SESSIONS: Final = 64
MAX_CLIENTS: Final = MAX_SESSIONS + 16  # those over the limit of sessions are told so
SETUP_S: Final = 20.0  # from the connection to the handover
_READ_BYTES: Final = 4096


class Door(Protocol):
    """A TunDoor, as far as it matters here."""

    async def start(self) -> object: ...

    async def finish(self) -> None: ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Inside:
    """A command's network as it was handed over: for whoever builds the door. The descriptors are closed after it."""

    device: TunDevice
    listeners: list[socket.socket]
    sockets: SocketSource
    plan: TunPlan
    wish: Wish


class NamespaceDoor:
    """Serves the Unix socket at `path`, whose stale predecessor it replaces.

    `plan` answers a Wish and `door` builds the TunDoor of a session; both may raise PvpnError, which the user reads.
    """

    def __init__(
        self, path: str, plan: Callable[[Wish], TunPlan], door: Callable[[Inside], Door], own: OwnListeners
    ) -> None:
        self._path = path
        self._plan = plan
        self._door = door
        self._own = own
        self._sessions = 0
        self._acceptor: Acceptor | None = None

    @property
    def sessions(self) -> int:
        """How many commands run, or are being set up."""
        return self._sessions

    async def start(self) -> None:
        """Listen; raises StateError."""
        self._acceptor = Acceptor(listen_unix(self._path, self._own), self._serve, MAX_CLIENTS)

    async def close(self) -> None:
        """Take every command's network away and stop listening; idempotent."""
        if self._acceptor is not None:
            await self._acceptor.close()

    async def _serve(self, sock: socket.socket) -> None:
        self._sessions += 1
        try:
            if self._sessions > MAX_SESSIONS:
                raise ControlError(f"{MAX_SESSIONS} commands have a network of their own already", "end one of them")
            await self._session(sock)
        except PvpnError as error:
            refusal = Refusal(error.what, error.hint, isinstance(error, UsageError))
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(SETUP_S):
                    await asyncio.get_running_loop().sock_sendall(sock, encode(refusal))
        finally:
            self._sessions -= 1

    async def _session(self, sock: socket.socket) -> None:
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(SETUP_S):
                    lifeline, inside = await self._set_up(sock, stack)
            except TimeoutError:
                raise ControlError("the network took too long to set up", "try again") from None
            door = self._door(inside)
            stack.push_async_callback(door.close)
            await door.start()
            ended = _Readiness(lifeline)
            stack.callback(ended.close)
            await asyncio.get_running_loop().sock_sendall(sock, encode(Ready()))
            sock.close()
            await ended.wait()
            await door.finish()

    async def _set_up(self, sock: socket.socket, stack: AsyncExitStack) -> tuple[int, Inside]:
        """Agree on a plan and receive what was made; `stack` closes it. Raises PvpnError."""
        line, descriptors = await _receive(sock, 0)
        wish = decode(line, Wish)
        plan = self._plan(wish)
        await asyncio.get_running_loop().sock_sendall(sock, encode(Offer.of(plan)))
        line, descriptors = await _receive(sock, MAX_DESCRIPTORS)
        for descriptor in descriptors:
            stack.callback(_close, descriptor)
        handover = decode(line, Handover)
        if len(descriptors) < 4:
            raise WireError(f"{len(descriptors)} descriptors are too few")
        lifeline, tun, giver, *rest = descriptors
        # Copies, which belong to what they are given to: a descriptor closed twice may be another's by then.
        device = TunDevice(os.dup(tun), handover.name)
        stack.callback(device.close)
        sockets = SocketSource(_own_socket(giver, {socket.AF_UNIX}, socket.SOCK_SEQPACKET))
        stack.callback(sockets.close)
        listeners: list[socket.socket] = []
        for descriptor in rest:
            listeners.append(_listener(descriptor))
            stack.callback(listeners[-1].close)
        return lifeline, Inside(device, listeners, sockets, plan, wish)


class _Readiness:
    """Watches a descriptor until it is readable; raises WireError for one that can't be watched."""

    def __init__(self, descriptor: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._event = asyncio.Event()
        try:
            self._loop.add_reader(descriptor, self._ready)
        except OSError as error:
            raise WireError(f"a descriptor that says nothing: {error.strerror}") from None

    async def wait(self) -> None:
        await self._event.wait()

    def close(self) -> None:
        self._loop.remove_reader(self._descriptor)

    def _ready(self) -> None:
        self._loop.remove_reader(self._descriptor)
        self._event.set()


async def _receive(sock: socket.socket, most: int) -> tuple[bytes, list[int]]:
    """The next line and the descriptors that came with it, `most` at most; raises WireError, and then none is open."""
    data = b""
    found: list[int] = []
    try:
        while not data.endswith(b"\n"):
            readable = _Readiness(sock.fileno())
            try:
                await readable.wait()
            finally:
                readable.close()
            flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            with suppress(BlockingIOError):
                piece, descriptors, result, _address = socket.recv_fds(sock, _READ_BYTES, MAX_DESCRIPTORS, flags)
                found += descriptors
                data += piece
                if not piece:
                    raise WireError("the command left before its network was ready")
                if result & socket.MSG_CTRUNC or len(found) > most:
                    raise WireError("too many descriptors")
                if len(data) > MAX_LINE_BYTES or b"\n" in data[:-1]:
                    raise WireError("more than one message at once")
    except BaseException:
        for descriptor in found:
            os.close(descriptor)
        raise
    return data, found


def _listener(descriptor: int) -> socket.socket:
    """A TCP socket that listens, as a socket of its own; raises WireError for anything else."""
    sock = _own_socket(descriptor, {socket.AF_INET, socket.AF_INET6}, socket.SOCK_STREAM)
    try:
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:
        listens = 0
    if not listens:
        sock.close()
        raise WireError("a socket that takes no TCP connections")
    sock.setblocking(False)
    return sock


def _own_socket(descriptor: int, families: Collection[int], kind: int) -> socket.socket:
    """A copy that belongs to whoever gets it; raises WireError for what is no such socket."""
    own = os.dup(descriptor)
    try:
        sock = socket.socket(fileno=own)
    except OSError:
        os.close(own)
        raise WireError("a descriptor that is no socket") from None
    if sock.family not in families or sock.type != kind:
        sock.close()
        raise WireError("a socket of another kind")
    return sock


def _close(descriptor: int) -> None:
    with suppress(OSError):
        os.close(descriptor)
