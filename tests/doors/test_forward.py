"""Forwards of the three kinds, with real programs' sockets in front and in-memory peers behind."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from proxy_vpn.addresses import Address, ForwardSpec, Target
from proxy_vpn.doors.direct import Direct
from proxy_vpn.doors.forward import ForwardDoor
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.errors import FlowError, StateError, Status
from tests.support.duplex_pair import FakeRouter, MemoryDuplex, MemoryUdp, RecordingSink
from tests.support.loopback import connect, datagram, receive_all, send, tcp_service, udp_socket


class Peer:
    """A peer that answers each TCP flow in capitals at its end, and each datagram at once."""

    def __init__(self) -> None:
        self.router = FakeRouter()
        self.router.peers["peer-b"] = self._tcp
        self.router.udp_peers["peer-b"] = self._udp
        self.udp_flows: list[MemoryUdp] = []

    def _tcp(self, far: MemoryDuplex, _target: Target) -> None:
        _Capitals(far)

    def _udp(self, far: MemoryUdp, _target: Target) -> None:
        self.udp_flows.append(far)
        far.on_datagram = lambda payload: far.send(payload.upper())


class _Capitals(RecordingSink):
    def eof_received(self) -> None:
        self._duplex.write(bytes(self.data).upper())
        self._duplex.write_eof()


async def opened(peer: Peer, spec: str | ForwardSpec, direct: bool = False) -> tuple[ForwardDoor, ForwardSpec]:
    own = OwnListeners()
    parsed = ForwardSpec.parse(spec) if isinstance(spec, str) else spec
    door = ForwardDoor(peer.router, parsed, Direct(own) if direct else None, own)
    return door, await door.start()


async def ask(where: Address | str, question: bytes) -> bytes:
    with await connect(where) as sock:
        await send(sock, question)
        sock.shutdown(socket.SHUT_WR)
        return await receive_all(sock)


def test_tcp_on_a_free_port() -> None:
    async def main() -> None:
        peer = Peer()
        door, spec = await opened(peer, "0:peer-b:22")
        assert spec.port and str(spec) == f"127.0.0.1:{spec.port}:peer-b:22"
        assert await ask(Address(spec.host, spec.port), b"hello") == b"HELLO"
        assert await ask(Address(spec.host, spec.port), b"x" * 1_000_000) == b"X" * 1_000_000
        assert peer.router.asked == [Target("peer-b", 22)] * 2
        await door.close()
        await door.close()
        with pytest.raises(ConnectionRefusedError):
            await connect(Address(spec.host, spec.port))

    asyncio.run(main())


def test_unix_socket(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "door"
        door, spec = await opened(Peer(), f"unix:{path}:peer-b:22")
        assert spec.path == str(path) and path.stat().st_mode & 0o777 == 0o600
        assert await ask(str(path), b"hello") == b"HELLO"
        await door.close()
        assert not path.exists()

    asyncio.run(main())


def test_udp_keeps_its_clients_apart() -> None:
    async def main() -> None:
        peer = Peer()
        door, spec = await opened(peer, "0:peer-b:53/udp")
        with udp_socket() as one, udp_socket() as two:
            for _round in range(2):
                for sock, word in ((one, b"one"), (two, b"two")):
                    sock.sendto(word, (spec.host, spec.port))
                    assert await datagram(sock) == word.upper()
            assert len(peer.udp_flows) == 2 and door.clients == 2
            peer.udp_flows[0].close()
            one.sendto(b"again", (spec.host, spec.port))
            assert await datagram(one) == b"AGAIN"
        await door.close()
        assert all(flow.closed for flow in peer.udp_flows)

    asyncio.run(main())


def test_a_peer_that_is_away_is_an_rst_and_may_come_back() -> None:
    async def main() -> None:
        peer = Peer()
        door, spec = await opened(peer, "0:peer-b:22")
        peer.router.errors["peer-b"] = FlowError(Status.UNREACHABLE, "peer-b is asleep")
        with pytest.raises(ConnectionResetError):
            await ask(Address(spec.host, spec.port), b"hello")
        del peer.router.errors["peer-b"]
        assert await ask(Address(spec.host, spec.port), b"hello") == b"HELLO"
        await door.close()

    asyncio.run(main())


def test_hosts_that_are_no_peers() -> None:
    async def hello(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"direct")

    async def main() -> None:
        async with tcp_service(hello) as service:
            elsewhere = ForwardSpec("127.0.0.1", 0, Target("127.0.0.1", service.port))
            door, spec = await opened(Peer(), elsewhere)
            with pytest.raises(ConnectionError):
                await ask(Address(spec.host, spec.port), b"hello")
            await door.close()
            door, spec = await opened(Peer(), elsewhere, direct=True)
            assert await ask(Address(spec.host, spec.port), b"") == b"direct"
            await door.close()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["", "/udp"])
def test_a_port_in_use_is_said(kind: str) -> None:
    async def main() -> None:
        door, spec = await opened(Peer(), f"0:peer-b:22{kind}")
        with pytest.raises(StateError) as caught:
            await opened(Peer(), f"{spec.port}:peer-b:22{kind}")
        assert f"port {spec.port} is in use" in str(caught.value)
        await door.close()

    asyncio.run(main())


def test_closing_breaks_what_is_open() -> None:
    async def main() -> None:
        peer, arrived = Peer(), asyncio.Event()
        peer.router.peers["peer-b"] = lambda _far, _target: arrived.set()
        door, spec = await opened(peer, "0:peer-b:22")
        with await connect(Address(spec.host, spec.port)) as sock:
            await asyncio.wait_for(arrived.wait(), 10)
            assert door.clients == 1
            await door.close()
            with pytest.raises(ConnectionResetError):
                await receive_all(sock)

    asyncio.run(main())
