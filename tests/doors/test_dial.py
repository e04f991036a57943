"""Dialling from here: what people and far programs are told when it fails."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path

import pytest

from proxy_vpn.addresses import Address, Target
from proxy_vpn.doors.dial import dial, dial_error
from proxy_vpn.doors.direct import Direct
from proxy_vpn.doors.listen import listen_tcp, listen_unix
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.errors import FlowError, StateError, Status
from tests.support.ports import free_tcp_port


def refusal(target: Target, own: OwnListeners | None = None, udp: bool = False) -> FlowError:
    direct = Direct(own or OwnListeners())
    with pytest.raises(FlowError) as caught:
        asyncio.run(direct.open_udp(target) if udp else direct.open_tcp(target))
    return caught.value


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_refusal_in_our_own_words(host: str) -> None:
    port = free_tcp_port()
    assert str(refusal(Target(host, port))) == f"nothing listens on {Target(host, port)} (direct): connection refused"
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(dial(Address(host, port)))


def test_no_answer_and_no_way() -> None:
    assert str(dial_error("x:1", TimeoutError())) == "x:1 did not answer within 10 s"
    assert str(dial_error("x:1", OSError(errno.EHOSTUNREACH, "?"))) == "x:1 can't be reached: No route to host"


@pytest.mark.parametrize("udp", [False, True])
def test_a_link_local_address_without_its_link(udp: bool) -> None:
    error = refusal(Target("fe80::1", 1), udp=udp)
    assert error.status is Status.UNREACHABLE
    assert str(error).startswith("[fe80::1]:1 is link-local, and nothing says on which link - ")


@pytest.mark.parametrize(
    ("host", "what"),
    [
        ("peer-c", "no name server answers for peer-c, and no peer is called peer-c - "),
        ("example.org", "no name server answers for example.org - "),
    ],
)
def test_without_a_name_server(host: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    assert str(refusal(Target(host, 80))).startswith(what)


def test_this_process_is_no_target() -> None:
    own = OwnListeners()
    own.add(Address("127.0.0.1", 1080))
    error = refusal(Target("127.0.0.1", 1080), own)
    assert str(error) == "127.0.0.1:1080 is this pvpn itself - it can't be its own target"


def test_nobody_is_asked_for_the_address_to_listen_at() -> None:
    with pytest.raises(StateError, match=r"listen on localhost:0: that is no numeric address - use 127\.0\.0\.1"):
        asyncio.run(listen_tcp("localhost", 0, OwnListeners()))


def test_a_socket_without_its_directory(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="No such file or directory - make the directory first"):
        listen_unix(str(tmp_path / "missing" / "door"), OwnListeners())
