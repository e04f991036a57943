"""Datagrams without room, as the kernel counts them: from its texts, whole or not, and in a socket nobody reads."""

from __future__ import annotations

import socket
import sys
import time

import pytest

from proxy_vpn.net.overflow import counted, overflows

NAMES = "Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors"
SNMP = f"Ip: Forwarding\nIp: 1\n{NAMES}\nUdp: 10 1 2 20 7 0\nUdpLite: RcvbufErrors\nUdpLite: 9\n"


@pytest.mark.parametrize(
    ("snmp", "snmp6", "found"),
    [
        (SNMP, "Udp6InErrors 4\nUdp6RcvbufErrors \t 5\n", 12),
        (SNMP, "", 7),
        ("", "", 0),
        (NAMES, "", 0),
        (f"{NAMES}\nUdp: 10 1", "", 0),
        ("Udp:\nUdp:", "", 0),
        (f"{NAMES}\nUdp: a b c d e f", "Udp6RcvbufErrors -3", 0),
        (f"{NAMES}\nUdp: 1 1 1 1 {'9' * 5000} 1", "Udp6RcvbufErrors \nUdp6InErrors 4", 0),
    ],
)
def test_both_families_are_counted_whatever_the_text(snmp: str, snmp6: str, found: int) -> None:
    assert counted(snmp.splitlines(), snmp6.splitlines()) == found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts them where we look")
def test_a_socket_that_nobody_reads_counts() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        receiver.bind(("127.0.0.1", 0))
        before = overflows()
        for _ in range(50):
            sender.sendto(bytes(1000), receiver.getsockname())
        deadline = time.monotonic() + 5.0
        while overflows() - before <= 10:
            assert time.monotonic() < deadline
