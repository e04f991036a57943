"""The way around an interface of our own, from the kernel's tables as proc(5) shows them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy_vpn.net import bypass
from proxy_vpn.net.bypass import Bypass

# As a host with one line, a second LAN and a TUN that takes the internet's halves shows them (little-endian).
ROUTES4 = """Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
lo\t00000000\t01010101\t0003\t0\t0\t100\t00000000\t0\t0\t0
tun\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0
tun\t00000080\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0
down\t0000000A\t00000000\t0000\t0\t0\t0\t000000FF\t0\t0\t0
lan\t0007A8C0\t00000000\t0001\t0\t0\t600\t00FFFFFF\t0\t0\t0
"""
ANY, ZERO = "0" * 32, "0" * 8
ROUTES6 = f"""{ANY} 00 {ANY} 00 fe80{"0" * 27}1 00000400 00000001 {ZERO} 00000003 lo
{ANY} 01 {ANY} 00 {ANY} 00000400 00000001 {ZERO} 00000001 tun
{ANY} 00 {ANY} 00 {ANY} ffffffff 00000001 {ZERO} 00200200 lo
"""
INDICES = {"lo": 1, "lan": 5, "tun": 9}


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    def write(four: str, six: str) -> None:
        (tmp_path / "4").write_text(four)
        (tmp_path / "6").write_text(six)

    monkeypatch.setattr(bypass, "_ROUTES4", tmp_path / "4")
    monkeypatch.setattr(bypass, "_ROUTES6", tmp_path / "6")
    monkeypatch.setattr(socket, "if_nametoindex", INDICES.__getitem__)
    write(ROUTES4, ROUTES6)
    return write


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    ("ip", "interface"),
    [
        ("45.67.89.9", "lo"),
        ("200.1.2.3", "lo"),
        ("10.1.2.3", "lo"),  # not through the interface that is down
        ("192.168.7.9", "lan"),
        ("2a00::1", "lo"),
    ],
)
def test_the_longest_match_without_our_own(ip: str, interface: str) -> None:
    assert Bypass("tun").interface(ip) == INDICES[interface]


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", "fe80::1", "169.254.1.1"])
def test_the_kernel_chooses_for_what_never_leaves_the_link(ip: str) -> None:
    assert Bypass("tun").interface(ip) == 0


def test_where_no_way_leads_nothing_is_sent_and_changes_are_seen(tables: Callable[[str, str], None]) -> None:
    way = Bypass("tun")
    assert way.interface("45.67.89.9") == INDICES["lo"]
    tables("\n".join(line for line in ROUTES4.splitlines() if not line.startswith("lo")), "")
    assert way.interface("45.67.89.9") == INDICES["lo"], "until it is told, or after a while"
    way.forget()
    assert way.interface("45.67.89.9") is None
    assert way.interface("2a00::1") is None


def test_no_tables_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bypass, "_ROUTES4", tmp_path / "none")
    monkeypatch.setattr(bypass, "_ROUTES6", tmp_path / "none")
    assert Bypass("tun").interface("45.67.89.9") is None
