"""DNS queries that are not about peers: handed as they are to this host's own name servers, or to those of an exit.

An exit answers queries that come to port 53 of a name that no host can have (RFC 6761). What does not fit a datagram is
asked for once more over TCP, for programs that ask so (RFC 7766).
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
from proxy_vpn.doors.streams import open_streams
from proxy_vpn.doors.udp import UdpSocket
from proxy_vpn.errors import FlowError
from proxy_vpn.wire.dns import answers, is_truncated

RESOLV_CONF: Final = Path("/etc/resolv.conf")
ANSWER_S: Final = 2.0
MAX_SERVERS: Final = 3  # glibc's MAXNS
MAX_IN_FLIGHT: Final = 256
NAME_SERVER: Final = Target("name-server.invalid", 53)
EXIT_ANSWER_S: Final = 5.0
_PORT: Final = 53
_MAX_FILE_BYTES: Final = 65536
_LENGTH_BYTES: Final = 2


class HostResolver:
    """Asks the servers of resolv.conf in turn; never one for which `is_ours` says that it is this process itself."""

    def __init__(self, is_ours: Callable[[str], bool], path: Path = RESOLV_CONF, port: int = _PORT) -> None:
        self._is_ours = is_ours
        self._path = path
        self._port = port
        self._in_flight = 0

    async def ask(self, query: bytes, over_tcp: bool = False) -> bytes | None:
        """The first answer; None when nobody answers within 2 s each. With `over_tcp`, in full if it is to be had."""
        if self._in_flight >= MAX_IN_FLIGHT:
            return None
        self._in_flight += 1
        try:
            said = None
            for server in [ip for ip in name_servers(self._path) if not self._is_ours(ip)]:
                with suppress(OSError, TimeoutError, EOFError):
                    async with asyncio.timeout(ANSWER_S):
                        said = await _ask(Address(server, self._port), query)
                        if not (over_tcp and is_truncated(said)):
                            return said
                        return await _exchange(*await asyncio.open_connection(server, self._port), query)
            return said
        finally:
            self._in_flight -= 1


class ExitResolver:
    """Asks the exit, which asks its own name servers."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def ask(self, query: bytes, over_tcp: bool = False) -> bytes | None:
        """The exit's answer; None when it is away or has none within 5 s. With `over_tcp`, in full if it can."""
        said = await self._ask(query)
        if said is None or not (over_tcp and is_truncated(said)):
            return said
        with suppress(FlowError, OSError, TimeoutError, EOFError):
            async with asyncio.timeout(EXIT_ANSWER_S):
                flow = await self._router.open_tcp(NAME_SERVER)
                if flow is not None:
                    return await _exchange(*await open_streams(flow), query)
        return said

    async def _ask(self, query: bytes) -> bytes | None:
        try:
            flow = await self._router.open_udp(NAME_SERVER)
        except FlowError:
            return None
        if flow is None:
            return None
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def on_datagram(data: bytes) -> None:
            if answers(data, query) and not answered.done():
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
        if answers(data, query) and not answered.done():
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


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, query: bytes) -> bytes:
    """A question and its answer over a stream, which ends with it; raises OSError and EOFError."""
    try:
        writer.write(len(query).to_bytes(_LENGTH_BYTES, "big") + query)
        said = await reader.readexactly(int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big"))
        if not answers(said, query):
            raise ConnectionAbortedError("another question's answer")
        return said
    finally:
        writer.close()
