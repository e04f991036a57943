"""DNS queries that are not about peers: handed to this host's own name servers, as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from proxy_vpn.addresses import Address
from proxy_vpn.doors.udp import UdpSocket

RESOLV_CONF: Final = Path("/etc/resolv.conf")
ANSWER_S: Final = 2.0
MAX_SERVERS: Final = 3  # glibc's MAXNS
MAX_IN_FLIGHT: Final = 256
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
            for server in self._servers():
                with suppress(OSError, TimeoutError):
                    async with asyncio.timeout(ANSWER_S):
                        return await _ask(Address(server, self._port), query)
            return None
        finally:
            self._in_flight -= 1

    def _servers(self) -> list[str]:
        try:
            with self._path.open(errors="replace") as file:
                lines = file.read(_MAX_FILE_BYTES).splitlines()
        except OSError:
            return []
        found = []
        for words in (line.split() for line in lines):
            if words[:1] == ["nameserver"] and len(words) > 1:
                with suppress(ValueError):
                    found.append(str(ip_address(words[1])))
        return [ip for ip in found[:MAX_SERVERS] if not self._is_ours(ip)]


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
