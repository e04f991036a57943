"""The kernel's filter for mDNS sockets: what passes, and all that does not."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from proxy_vpn.net.mdns_filter import MAX_DATAGRAM_BYTES, listen_only_to, listen_to_nothing
from tests.net.mdns_wire import GROUP, LOOPBACK, PORT, announcement, name, question, record, response

WAIT_S = 5.0
TYPE = "_pvpn._udp.local."
LAST = announcement(f"last-{os.urandom(8).hex()}", 4000, ["192.0.2.1"])
OURS = int.from_bytes(os.urandom(2), "big")


@contextmanager
def member(family: socket.AddressFamily, port: int = PORT) -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("", port))
        sock.settimeout(WAIT_S)
        here = socket.inet_aton(LOOPBACK)
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + here)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, here)
        else:
            index = socket.if_nametoindex("lo").to_bytes(4, "little")
            group = socket.inet_pton(family, "ff02::fb")
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        yield sock


def passed(*datagrams: bytes, host: str = GROUP, port: int = PORT) -> list[bytes]:
    """Which of the datagrams come in; LAST is sent after them, from where it is welcome."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with member(family) as listener, member(family, port) as sender, member(family) as friend:
        assert listen_only_to(listener, TYPE)
        for datagram in datagrams:
            sender.sendto(datagram, (host, PORT))
        friend.sendto(LAST, ("ff02::fb" if family == socket.AF_INET6 else GROUP, PORT))
        received = []
        while (datagram := listener.recv(65536)) != LAST:
            received.append(datagram)
    return [datagram for datagram in received if datagram in datagrams]  # other tests may talk there too


def test_questions_and_announcements_of_the_type_pass() -> None:
    welcome = [question(number=OURS), question(), announcement("a-b", 4000, ["192.0.2.1", "2001:db8::1"])]
    assert passed(*welcome) == welcome


def test_over_ipv6_too() -> None:
    try:
        with member(socket.AF_INET6) as sock:
            sock.sendto(b"", ("ff02::fb", PORT))
    except OSError as error:
        pytest.skip(f"no IPv6 multicast on the loopback interface: {error}")
    assert passed(question(number=OURS), question("_http._tcp.local"), host="ff02::fb") == [question(number=OURS)]


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"\0" * 12,
        question(number=OURS)[:-1],
        question(unicast=True),
        question(kind=255),
        question("_http._tcp.local"),
        question("_pvpn._udp.local.local"),
        question("x._pvpn._udp.local"),
        response(record("x._pvpn._udp.local", 33, bytes(6) + name("x.local"))),
        response(record("_pvpn._udp.local", 12, name("x.local"), unique=False), flags=0x8600),
        response(record("_pvpn._udp.local", 12, name("x.local"), unique=False), flags=0xA800),
        question(number=OURS) + bytes(MAX_DATAGRAM_BYTES),
    ],
)
def test_everything_else_is_dropped(datagram: bytes) -> None:
    assert passed(datagram) == []


def test_nothing_sent_to_this_host_alone_passes() -> None:
    assert passed(question(number=OURS), host=LOOPBACK) == []


def test_nothing_from_another_port_passes() -> None:
    assert passed(question(number=OURS), port=0) == []


def test_deaf_until_it_listens_again() -> None:
    with member(socket.AF_INET) as listener, member(socket.AF_INET) as sender:
        assert listen_to_nothing(listener)
        sender.sendto(question(number=OURS), (GROUP, PORT))
        assert listen_only_to(listener, TYPE)
        sender.sendto(LAST, (GROUP, PORT))
        while (datagram := listener.recv(65536)) != LAST:
            assert datagram != question(number=OURS)
