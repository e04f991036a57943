"""mDNS by hand, for tests: datagrams of one's own making, and a socket that hears the group as others do."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Self

GROUP, PORT = "224.0.0.251", 5353
LOOPBACK = "127.0.0.1"
SERVICE = "_pvpn._udp.local"
PTR, TXT, SRV, A, AAAA, FLUSH = 12, 16, 33, 1, 28, 0x8000


def name(text: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in text.split(".") if label) + b"\0"


def record(owner: str, kind: int, data: bytes, ttl: int = 120, unique: bool = True) -> bytes:
    return name(owner) + struct.pack("!HHIH", kind, 1 | (FLUSH if unique else 0), ttl, len(data)) + data


def question(text: str = SERVICE, kind: int = PTR, number: int = 0, unicast: bool = False) -> bytes:
    head = struct.pack("!HHHHHH", number, 0, 1, 0, 0, 0)
    return head + name(text) + struct.pack("!HH", kind, 1 | (FLUSH if unicast else 0))


def response(*records: bytes, flags: int = 0x8400) -> bytes:
    return struct.pack("!HHHHHH", 0, flags, 0, len(records), 0, 0) + b"".join(records)


def announcement(label: str, port: int, ips: Sequence[str], ttl: int = 120, server: str = "somebody.local") -> bytes:
    """What a Responder sends for one service."""
    whole = f"{label}.{SERVICE}"
    return response(
        record(SERVICE, PTR, name(whole), ttl, unique=False),
        record(whole, SRV, struct.pack("!HHH", 0, 0, port) + name(server), ttl),
        record(whole, TXT, b"\0", ttl),
        *(
            record(server, AAAA, socket.inet_pton(socket.AF_INET6, ip), ttl)
            if ":" in ip
            else record(server, A, socket.inet_aton(ip), ttl)
            for ip in ips
        ),
    )


def mutated(data: bytes, dice: random.Random) -> bytes:
    """The same with a few bytes changed behind what the kernel's filter looks at, or cut short."""
    changed = bytearray(data) + bytes(1)
    for _ in range(dice.randint(1, 6)):
        changed[dice.randrange(34, len(changed))] = dice.randrange(256)
    changed[6:12] = struct.pack("!HHH", *(dice.choice((0, 1, 4, 65535)) for _ in range(3)))
    return bytes(changed[: dice.choice((len(changed), dice.randrange(34, len(changed))))])


class Bystander(asyncio.DatagramProtocol):
    """A member of the group on the loopback interface that hears all and can say anything."""

    def __init__(self, port: int = PORT) -> None:
        self.heard: list[bytes] = []
        self._port = port
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("", self._port))
        interface = socket.inet_aton(LOOPBACK)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + interface)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, sock=sock)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transport.close()

    def say(self, datagram: bytes, host: str = GROUP) -> None:
        self._transport.sendto(datagram, (host, PORT))

    async def hear(self, *wanted: bytes) -> bytes:
        """The first datagram, already heard or to come, that holds all of `wanted`."""
        at = 0
        while True:
            for datagram in self.heard[at:]:
                at += 1
                if all(part in datagram for part in wanted):
                    return datagram
            self._changed.clear()
            await self._changed.wait()

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.heard.append(data)
        self._changed.set()
