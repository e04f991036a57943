"""UDP ASSOCIATE at a live proxy: peers, direct targets, names, strangers, and its end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.addresses import Address, Target
from proxy_vpn.doors.direct import Direct
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.proxy import ProxyDoor
from proxy_vpn.wire.socks5 import UdpHeader
from tests.support.duplex_pair import FakeRouter, MemoryUdp
from tests.support.loopback import connect, datagram, receive, receive_all, send, udp_service, udp_socket

ASSOCIATE = b"\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00"


class Client:
    """A program with an association: `udp` is its socket, `relay` where it sends."""

    def __init__(self, control: socket.socket, udp: socket.socket, relay: Address, router: FakeRouter) -> None:
        self.control = control
        self.udp = udp
        self.relay = relay
        self.router = router

    def send(self, target: Target, payload: bytes) -> None:
        self.udp.sendto(UdpHeader.build(target).raw + payload, tuple(self.relay))

    async def receive(self) -> tuple[Target, bytes]:
        header, payload = UdpHeader.parse(await datagram(self.udp))
        return header.target, payload


@asynccontextmanager
async def associated(host: str = "127.0.0.1", direct: bool = True, declared: bool = False) -> AsyncIterator[Client]:
    router, own = FakeRouter(), OwnListeners()

    def shout(far: MemoryUdp, _target: Target) -> None:
        far.on_datagram = lambda payload: far.send(payload.upper())

    router.udp_peers["peer-b"] = shout
    door = ProxyDoor(router, (host, 0), Direct(own) if direct else None, own)
    where = await door.start()
    try:
        with await connect(where) as control, udp_socket(host) as udp:
            port = udp.getsockname()[1] if declared else 0
            await send(control, ASSOCIATE[:-2] + port.to_bytes(2, "big"))
            if host == "::1":
                answer = await receive(control, 24)
                relay = Address(socket.inet_ntop(socket.AF_INET6, answer[6:22]), int.from_bytes(answer[22:], "big"))
            else:
                answer = await receive(control, 12)
                relay = Address(socket.inet_ntoa(answer[6:10]), int.from_bytes(answer[10:], "big"))
            assert answer[:5] == b"\x05\x00\x05\x00\x00" and relay.ip == host
            assert own.forbids(relay, udp=True)
            yield Client(control, udp, relay, router)
    finally:
        await door.close()


def run(
    test: Callable[[Client], Awaitable[None]], host: str = "127.0.0.1", direct: bool = True, declared: bool = False
) -> None:
    async def main() -> None:
        async with associated(host, direct, declared) as client:
            await test(client)

    asyncio.run(main())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_peer_answers_under_the_name_it_was_asked_by(host: str) -> None:
    async def check(client: Client) -> None:
        for word in (b"one", b"two"):
            client.send(Target("peer-b", 53), word)
            assert await client.receive() == (Target("peer-b", 53), word.upper())
        assert client.router.asked == [Target("peer-b", 53)]

    run(check, host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_direct_targets_answer(host: str) -> None:
    async def check(client: Client) -> None:
        async with udp_service(lambda data: data * 2, host) as service:
            client.send(Target(host, service.port), b"ab")
            assert await client.receive() == (Target(host, service.port), b"abab")

    run(check)


def test_several_targets_at_once() -> None:
    async def check(client: Client) -> None:
        async with udp_service(lambda data: b"1" + data) as one, udp_service(lambda data: b"2" + data) as two:
            for service in (one, two):
                client.send(Target(*service), b"x")
            client.send(Target("peer-b", 1), b"x")
            heard = {await client.receive() for _ in range(3)}
            assert heard == {(Target(*one), b"1x"), (Target(*two), b"2x"), (Target("peer-b", 1), b"X")}

    run(check)


def test_strangers_are_not_heard() -> None:
    async def check(client: Client) -> None:
        client.send(Target("peer-b", 1), b"mine")
        assert await client.receive() == (Target("peer-b", 1), b"MINE")
        with udp_socket() as stranger, udp_socket("127.0.0.2") as afar:
            for sock in (stranger, afar):
                sock.sendto(UdpHeader.build(Target("peer-b", 2)).raw + b"theirs", tuple(client.relay))
            client.send(Target("peer-b", 1), b"mine again")
            assert await client.receive() == (Target("peer-b", 1), b"MINE AGAIN")
        assert client.router.asked == [Target("peer-b", 1)]

    run(check)


def test_another_host_can_not_be_first() -> None:
    async def check(client: Client) -> None:
        with udp_socket("127.0.0.2") as afar:
            afar.sendto(UdpHeader.build(Target("peer-b", 2)).raw + b"theirs", tuple(client.relay))
            client.send(Target("peer-b", 1), b"mine")
            assert await client.receive() == (Target("peer-b", 1), b"MINE")

    run(check)


@pytest.mark.parametrize(("declared", "junk"), [(True, UdpHeader.build(Target("peer-b", 2)).raw), (False, b"junk")])
def test_who_is_first_does_not_matter(declared: bool, junk: bytes) -> None:
    """A client that declares its port is known by it, any other by a datagram that makes sense."""

    async def check(client: Client) -> None:
        with udp_socket() as stranger:
            stranger.sendto(junk, tuple(client.relay))
            client.send(Target("peer-b", 1), b"mine")
            assert await client.receive() == (Target("peer-b", 1), b"MINE")
        assert client.router.asked == [Target("peer-b", 1)]

    run(check, declared=declared)


def test_it_ends_with_its_connection() -> None:
    async def check(client: Client) -> None:
        client.send(Target("peer-b", 1), b"x")
        await client.receive()
        client.control.shutdown(socket.SHUT_WR)
        assert await receive_all(client.control) == b""
        client.udp.connect(tuple(client.relay))
        with pytest.raises(ConnectionRefusedError):
            for _try in range(3):
                client.udp.send(b"anybody?")

    run(check)


def test_the_relay_is_no_target_of_its_own() -> None:
    async def check(client: Client) -> None:
        client.send(Target(*client.relay), b"loop")
        client.send(Target("peer-b", 1), b"x")
        assert await client.receive() == (Target("peer-b", 1), b"X")

    run(check)


def test_a_unix_socket_has_no_association(tmp_path: Path) -> None:
    async def main() -> None:
        door = ProxyDoor(FakeRouter(), str(tmp_path / "door"), None, OwnListeners())
        with await connect(await door.start()) as control:
            await send(control, ASSOCIATE)
            assert await receive_all(control) == b"\x05\x00\x05\x02\x00\x01" + bytes(6)
        await door.close()

    asyncio.run(main())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=8))
def test_noise_is_dropped(datagrams: list[bytes]) -> None:
    async def check(client: Client) -> None:
        for noise in datagrams:
            client.udp.sendto(noise, tuple(client.relay))
        client.send(Target("peer-b", 1), b"still there")
        assert await client.receive() == (Target("peer-b", 1), b"STILL THERE")

    run(check, direct=False)
