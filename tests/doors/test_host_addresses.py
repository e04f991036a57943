"""Which interfaces hold a default route, and that this host's own answer is made of bindable addresses."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from proxy_vpn.doors.host_addresses import default_route_interfaces, host_addresses

ROUTES4 = """Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	010200C0	0003	0	0	0	00000000	0	0	0
eth0	000200C0	00000000	0001	0	0	0	00FFFFFF	0	0	0
docker0	000011AC	00000000	0001	0	0	0	0000FFFF	0	0	0
wlan0	00000000	0101A8C0	0002	0	0	0	00000000	0	0	0
tun0	00000000	00000000	0001	0	0	0	00000080	0	0	0
""".splitlines()
ZERO = "0" * 32
ROUTES6 = [
    f"{ZERO} 00 {ZERO} 00 fe800000000000000000000000000001 00000400 00000002 00000000 00000003 wlan1",
    f"20010db8000000000000000000000000 20 {ZERO} 00 {ZERO} 00000100 00000001 00000000 00000001 eth1",
    f"{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00200200 lo",
    f"{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00000201 eth2",
    "odd",
]


def test_only_live_default_routes_count() -> None:
    assert default_route_interfaces(ROUTES4, ROUTES6) == {"eth0", "wlan1"}
    assert default_route_interfaces([], []) == set()


def test_this_hosts_own() -> None:
    found = host_addresses()
    assert [ip_address(ip).version for ip in found] == sorted(ip_address(ip).version for ip in found)
    for ip in found:
        assert not ip_address(ip).is_loopback and not ip_address(ip).is_link_local
        with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((ip, 0))
