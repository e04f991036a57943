"""DNS queries that are not about peers: handed as they are to this host's own name servers, or to those of an exit.

An exit answers queries that come as datagrams to port 53 of a name that no host can have (RFC 6761).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from proxy_vpn.addresses import Address, Target
from proxy_vpn.doors.outgoing import Router
from proxy_vpn.doors.udp import DatagramFlow, UdpSocket
from proxy_vpn.errors import FlowError

RESOLV_CONF: Final = Path("/etc/resolv.conf")
ANSWER_S: Final = 2.0
MAX_SERVERS: Final = 3  # glibc's MAXNS
MAX_IN_FLIGHT: Final = 256
MAX_A_FLOW: Final = 64
NAME_SERVER: Final = Target("name-server.invalid", 53)
EXIT_ANSWER_S: Final = 5.0
IDLE_S: Final = 30.0
_PORT: Final = 53
_MAX_FILE_BYTES: Final = 65536


class HostResolver:
    """Asks the servers of resolv.conf in turn; never one for which `is_ours` says that it is this process itself."""

    def __init__(self, is_ours: Callable[[str], bool], path: Path = RESOLV_CONF, port: int = _PORT) -> None:
        self._is_ours = is_ours
        self._path = path
        self._port = port
        self._in_flight = 0

    async def ask(self, query: bytes) -> bytes | None:
        """The first answer; None when nobody answers within 2 s each."""
        if self._in_flight >= MAX_IN_FLIGHT:
            return None
        self._in_flight += 1
        try:
            for server in [ip for ip in name_servers(self._path) if not self._is_ours(ip)]:
                with suppress(OSError, TimeoutError):
                    async with asyncio.timeout(ANSWER_S):
                        return await _ask(Address(server, self._port), query)
            return None
        finally:
            self._in_flight -= 1


class ExitResolver:
    """Asks the exit, which asks its own name servers."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def ask(self, query: bytes) -> bytes | None:
        """The exit's answer; None when it is away or has none within 5 s."""
        try:
            flow = await self._router.open_udp(NAME_SERVER)
        except FlowError:
            return None
        if flow is None:
            return None
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def on_datagram(data: bytes) -> None:
            if data[:2] == query[:2] and not answered.done():
                answered.set_result(data)

        flow.on_datagram = on_datagram
        try:
            flow.send(query)
            async with asyncio.timeout(EXIT_ANSWER_S):
                return await answered
        except TimeoutError:
            return None
        finally:
            flow.close()


async def answer_queries(flow: DatagramFlow, resolver: HostResolver) -> None:
    """Answer what a peer asks us, its exit, until it closes the flow or is silent for 30 s; then close it."""
    loop = asyncio.get_running_loop()
    queries: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_A_FLOW)

    def put(query: bytes | None) -> None:
        with suppress(asyncio.QueueFull):
            queries.put_nowait(query)

    async def answer(query: bytes) -> None:
        said = await resolver.ask(query)
        if said is not None:
            flow.send(said)

    flow.on_datagram = put
    flow.on_closed = lambda: put(None)
    tasks: set[asyncio.Task[None]] = set()
    try:
        async with asyncio.timeout(None) as idle:
            while True:
                idle.reschedule(loop.time() + IDLE_S)
                query = await queries.get()
                if query is None:
                    return
                if len(tasks) < MAX_A_FLOW:
                    task = loop.create_task(answer(query))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
    except TimeoutError:
        return
    finally:
        flow.on_datagram = flow.on_closed = None
        for task in tuple(tasks):
            task.cancel()
        flow.close()


def name_servers(path: Path = RESOLV_CONF) -> list[str]:
    """The addresses in a resolv.conf, as many as the C library takes."""
    try:
        with path.open(errors="replace") as file:
            lines = file.read(_MAX_FILE_BYTES).splitlines()
    except OSError:
        return []
    found = []
    for words in (line.split() for line in lines):
        if words[:1] == ["nameserver"] and len(words) > 1:
            with suppress(ValueError):
                found.append(str(ip_address(words[1])))
    return found[:MAX_SERVERS]


async def _ask(server: Address, query: bytes) -> bytes:
    """What `server` answers; whatever else comes is dropped. The socket is connected, its port random (RFC 5452)."""
    answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    sock = UdpSocket(server)

    def on_datagram(data: bytes) -> None:
        if data[:2] == query[:2] and len(data) >= 12 and data[2] & 0x80 and not answered.done():
            answered.set_result(data)

    def on_refused() -> None:
        if not answered.done():
            answered.set_exception(ConnectionRefusedError())

    sock.on_datagram, sock.on_refused = on_datagram, on_refused
    try:
        sock.send(query)
        return await answered
    finally:
        sock.close()
