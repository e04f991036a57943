"""Which services of this host peers can reach."""

from __future__ import annotations

import socket

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.config import Expose
from proxy_vpn.doors.open_ports import OpenPort, is_open, listeners, open_ports
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.mesh.policy import Policy

TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 00000000:0050 0100007F:A000 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 20 4 30 10 -1
""".splitlines()
ZERO = "0" * 32
TCP6 = [
    f"   0: {ZERO}:01BB {ZERO}:0000 0A 0:0",
    f"   1: {'0' * 24}01000000:1F91 {ZERO}:0000 0A 0:0",
    f"   2: 0000000000000000FFFF00000100007F:1F92 {ZERO}:0000 0A 0:0",
    f"   3: B80D0120000000000000000001000000:1F93 {ZERO}:0000 0A 0:0",
    "odd",
]
UDP = ["   9: 00000000:14E9 00000000:0000 07 0:0", "  10: 0100007F:0035 00000000:0000 07 0:0"]


def little_endian() -> bool:
    return socket.ntohs(1) != 1


@pytest.mark.skipif(not little_endian(), reason="these tables are of a little-endian kernel")
def test_tables_of_the_kernel() -> None:
    assert list(listeners(TCP, "tcp")) == [Address("0.0.0.0", 22), Address("127.0.0.1", 8080)]
    assert list(listeners(TCP6, "tcp")) == [
        Address("::", 443),
        Address("::1", 8081),
        Address("127.0.0.1", 8082),
        Address("2001:db8::1", 8083),
    ]
    assert list(listeners(UDP, "udp")) == [Address("0.0.0.0", 5353), Address("127.0.0.1", 53)]


@pytest.mark.parametrize(
    ("ip", "rules"),
    [
        ("0.0.0.0", {"default", "all", "80", "none,80"}),
        ("::", {"default", "all", "80", "none,80"}),
        ("192.0.2.1", {"default", "all", "80", "none,80"}),
        ("127.0.0.1", {"all", "80", "none,80"}),
        ("::1", {"all", "80", "none,80"}),
        ("127.0.0.53", set()),
        ("172.17.0.1", set()),
    ],
)
def test_the_rule_that_serving_goes_by(ip: str, rules: set[str]) -> None:
    hosts = ["192.0.2.1"]  # of an interface with a default route, as 172.17.0.1 is not
    for text in ("default", "all", "none", "80", "none,80", "none,81"):
        policy = Policy(Expose.parse(text))
        assert is_open(Address(ip, 80), False, policy, hosts) is (text in rules), text


def found(own: OwnListeners, rules: str) -> set[OpenPort]:
    ports = open_ports(own, Policy(Expose.parse(rules)))
    assert ports == sorted(set(ports or ()))
    return set(ports)


def test_this_host() -> None:
    with (
        socket.create_server(("0.0.0.0", 0)) as everywhere,
        socket.create_server(("127.0.0.1", 0)) as private,
        socket.create_server(("::", 0), family=socket.AF_INET6) as everywhere6,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.create_server(("127.0.0.1", 0)) as ours,
    ):
        datagrams.bind(("0.0.0.0", 0))
        own = OwnListeners()
        own.add(Address("127.0.0.1", ours.getsockname()[1]))
        public = {
            OpenPort(everywhere.getsockname()[1], False, "0.0.0.0"),
            OpenPort(everywhere6.getsockname()[1], False, "::"),
            OpenPort(datagrams.getsockname()[1], True, "0.0.0.0"),
        }
        hidden = OpenPort(private.getsockname()[1], False, "127.0.0.1")
        ports = {port.port for port in (*public, hidden)} | {ours.getsockname()[1]}

        def here(rules: str) -> set[OpenPort]:
            return {port for port in found(own, rules) if port.port in ports}

        assert here("default") == public
        assert here("none") == set()
        assert here(f"none,{hidden.port}") == {hidden}
        assert here(f"{hidden.port}") == here("all") == public | {hidden}
    assert str(OpenPort(53, True, "::")) == "53/udp" and str(OpenPort(22, False, "::1")) == "22/tcp"
