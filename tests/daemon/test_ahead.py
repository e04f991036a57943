"""Names looked up before the way out changes: of a name server here, and of none."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.dns import DNS, DNSRR

from proxy_vpn.daemon.ahead import look_up
from proxy_vpn.doors.dns_elsewhere import HostResolver

KINDS = {1: "198.51.100.7", 28: "2001:db8::7"}


class NameServer(asyncio.DatagramProtocol):
    """Knows one name; says nonsense about another and nothing about the rest."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = DNS(data)
        name, kind = query.qd[0].qname, query.qd[0].qtype
        self.asked.append(name)
        if name == b"router.example.":
            answers = [DNSRR(rrname=name, type=kind, rdata=KINDS[kind])]
            self.transport.sendto(bytes(DNS(id=query.id, qr=1, qd=query.qd, an=answers)), addr)
        elif name == b"nonsense.example.":
            self.transport.sendto(data[:2] + b"\x80" + bytes(range(40)), addr)


async def looked_up(names: list[str], directory: Path) -> tuple[dict[str, list[str]], list[bytes]]:
    server = NameServer()
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: server, local_addr=("127.0.0.1", 0)
    )
    (directory / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    port = transport.get_extra_info("sockname")[1]
    try:
        resolver = HostResolver(lambda ip: False, directory / "resolv.conf", port)
        return dict(await look_up(names, resolver)), server.asked
    finally:
        transport.close()


def test_names_have_addresses_and_numbers_are_not_asked_for(tmp_path: Path) -> None:
    names = ["router.example", "192.0.2.1", "2001:db8::1", "router.example"]
    found, asked = asyncio.run(looked_up(names, tmp_path))
    assert {name: sorted(ips) for name, ips in found.items()} == {"router.example": sorted(KINDS.values())}
    assert asked == [b"router.example."] * 2


@pytest.mark.parametrize("name", ["nonsense.example", "a" * 300, ""])
def test_what_has_no_address_is_left_out(tmp_path: Path, name: str) -> None:
    found, _ = asyncio.run(looked_up(["router.example", name], tmp_path))
    assert list(found) == ["router.example"]
