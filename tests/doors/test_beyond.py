"""Beyond: what a peer is led to behind this host, and that a name is no way around the rules."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import pytest

from proxy_vpn.addresses import Address, Target
from proxy_vpn.doors import beyond as beyond_module
from proxy_vpn.doors.beyond import MAX_ADDRESSES, Beyond
from proxy_vpn.doors.lookups import AddressInfo
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.errors import FlowError, Status
from proxy_vpn.mesh.routes import Offer
from proxy_vpn.ranges import parse_route

HOME = Offer((parse_route("192.168.7.0/24"), parse_route("fd00:7::/64")))
EXIT = Offer(exit=True)
HERE = "192.168.7.2"


class Names:
    """A resolver that says what it is told, and counts how often it was asked."""

    def __init__(self, *answers: Sequence[str] | Exception) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def look_up(self, host: str, port: int, kind: socket.SocketKind) -> Sequence[AddressInfo]:
        self.asked += 1
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [(socket.AF_INET6 if ":" in ip else socket.AF_INET, kind, 0, "", (ip, port)) for ip in answer]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    def ask(offer: Offer, host: str, names: Names | None = None, udp: bool = False) -> list[str] | Status:
        monkeypatch.setattr(beyond_module, "Lookups", lambda: names or Names())
        own = OwnListeners()
        own.add(Address("192.168.7.3", 80))
        door = Beyond(offer, own, lambda: [HERE, "8.8.8.8"])
        try:
            return [address.ip for address in asyncio.run(door.addresses(Target(host, 80), udp))]
        except FlowError as error:
            return error.status

    return ask


@pytest.mark.parametrize("host", ["192.168.7.9", "::ffff:192.168.7.9", "fd00:7::9"])
def test_an_offered_network_is_led_to(ask, host: str) -> None:  # type: ignore[no-untyped-def]
    assert ask(HOME, host) == [host.removeprefix("::ffff:")]


@pytest.mark.parametrize("offer", [Offer(), HOME, EXIT])
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "::1", "169.254.169.254", "::ffff:169.254.169.254", "10.0.0.1", "fe80::1"]
)
def test_never_where_nobody_may_be_led(ask, offer: Offer, host: str) -> None:  # type: ignore[no-untyped-def]
    assert ask(offer, host) is Status.POLICY
    assert ask(offer, "rebound.example", Names([host])) is Status.POLICY


@pytest.mark.parametrize("host", ["peer-c.pvpn", "peer-c.home.PVPN.", "pvpn"])
def test_peers_names_are_told_to_no_name_server(ask, host: str) -> None:  # type: ignore[no-untyped-def]
    names = Names(["1.1.1.1"])
    assert ask(EXIT, host, names) is Status.NO_SUCH_NAME and not names.asked


def test_an_exit_leads_to_the_internet_alone(ask) -> None:  # type: ignore[no-untyped-def]
    assert ask(EXIT, "1.1.1.1") == ["1.1.1.1"]
    assert ask(EXIT, "192.168.7.9") is Status.POLICY
    assert ask(HOME, "1.1.1.1") is Status.POLICY


def test_this_hosts_own_addresses_keep_to_its_own_rules(ask) -> None:  # type: ignore[no-untyped-def]
    assert ask(HOME, HERE) is Status.POLICY and ask(EXIT, "8.8.8.8") is Status.POLICY
    assert ask(HOME, "192.168.7.3") is Status.POLICY  # where this process listens


def test_a_name_is_resolved_once_and_only_what_is_allowed_is_left(ask) -> None:  # type: ignore[no-untyped-def]
    names = Names(["127.0.0.1", "1.1.1.1", "10.0.0.1", "2606:4700::1111", "1.1.1.1"], ["127.0.0.1"])
    assert ask(EXIT, "mixed.example", names) == ["1.1.1.1", "2606:4700::1111"] and names.asked == 1
    assert ask(EXIT, "many.example", Names([f"1.1.1.{n}" for n in range(1, 99)])) == [
        f"1.1.1.{n}" for n in range(1, 1 + MAX_ADDRESSES)
    ]


def test_who_offers_nothing_asks_no_name_server(ask) -> None:  # type: ignore[no-untyped-def]
    names = Names(["1.1.1.1"])
    assert ask(Offer(), "a.example", names) is Status.POLICY and names.asked == 0


@pytest.mark.parametrize(
    ("error", "status"),
    [(socket.gaierror(), Status.NO_SUCH_NAME), (UnicodeError(), Status.NO_SUCH_NAME), (TimeoutError(), Status.TIMEOUT)],
)
def test_a_name_that_can_not_be_resolved(ask, error: Exception, status: Status) -> None:  # type: ignore[no-untyped-def]
    assert ask(EXIT, "a.example", Names(error)) is status
