"""Serving peers: which address is dialled, what is refused and how, and both kinds of flow."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import ExitStack

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.doors import serve as serve_module
from proxy_vpn.doors.beyond import Beyond
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.serve import ServeDoor
from proxy_vpn.doors.serve_udp import ServedUdp
from proxy_vpn.doors.tcp import TcpDuplex
from proxy_vpn.errors import FlowLost, Status
from proxy_vpn.mesh.routes import Offer as Networks
from proxy_vpn.ranges import IP, parse_route
from tests.support.duplex_pair import MemoryDuplex, MemoryUdp, RecordingSink, duplex_pair, udp_pair
from tests.support.loopback import echo, tcp_service, udp_service
from tests.support.ports import free_tcp_port, free_udp_port

WAIT_S = 10.0


class FakePolicy:
    def __init__(self, allowed: bool = True, exposed: bool = False) -> None:
        self.allowed = allowed
        self.exposed = exposed

    def allows(self, port: int, udp: bool, peer_name: str) -> bool:
        assert peer_name == "peer-a"
        return self.allowed

    def loopback(self, port: int, udp: bool) -> bool:
        return self.exposed


class Offer:
    """What a peer asked for, and what it was told."""

    def __init__(self, port: int, host: str = "") -> None:
        self.host = host
        self.port = port
        self.peer_name = "peer-a"
        self.refused: Status | None = None
        self.gone = False

    def refuse(self, status: Status) -> None:
        assert self.refused is None
        self.refused = status


def serve_door(policy: FakePolicy, own: OwnListeners, leads_to: tuple[str, ...] = ()) -> ServeDoor:
    networks = Networks(tuple(parse_route(text) for text in leads_to))
    return ServeDoor(policy, own, Beyond(networks, own, lambda: ["198.51.100.2"]))


class TcpOffer(Offer):
    def __init__(self, port: int, host: str = "") -> None:
        super().__init__(port, host)
        self.near, self.far = duplex_pair()

    def accept(self) -> MemoryDuplex:
        if self.gone:
            raise FlowLost("peer-a gave up")
        return self.near


class UdpOffer(Offer):
    def __init__(self, port: int, host: str = "") -> None:
        super().__init__(port, host)
        self.near, self.far = udp_pair()
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()
        self.far.on_datagram = self.heard.put_nowait

    def accept(self) -> MemoryUdp:
        if self.gone:
            raise FlowLost("peer-a gave up")
        return self.near

    async def ask(self, payload: bytes) -> bytes:
        self.far.send(payload)
        return await asyncio.wait_for(self.heard.get(), WAIT_S)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The host's own addresses as the door sees them; none to begin with."""
    addresses: list[str] = []
    monkeypatch.setattr(serve_module, "host_addresses", lambda: addresses)
    return addresses


async def echoed(offer: TcpOffer, door: ServeDoor) -> bytes:
    serving = asyncio.ensure_future(door.serve_tcp(offer))
    sink = RecordingSink(offer.far)
    offer.far.write(b"hello")
    offer.far.write_eof()
    await asyncio.wait_for(serving, WAIT_S)
    await sink.until(lambda s: "finished" in s.events or "lost" in s.events or offer.refused is not None)
    return bytes(sink.data)


async def refusal(port: int, door: ServeDoor) -> Status | None:
    offer = TcpOffer(port)
    await asyncio.wait_for(door.serve_tcp(offer), WAIT_S)
    return offer.refused


def test_without_a_default_route_only_what_listens_everywhere(host: list[str]) -> None:
    async def main() -> None:
        door = serve_door(FakePolicy(), OwnListeners())
        async with tcp_service(echo, "0.0.0.0") as everywhere, tcp_service(echo, "127.0.0.1") as private:
            assert await echoed(TcpOffer(everywhere.port), door) == b"hello"
            assert await refusal(private.port, door) is Status.REFUSED
            exposed = serve_door(FakePolicy(exposed=True), OwnListeners())
            assert await echoed(TcpOffer(private.port), exposed) == b"hello"

    asyncio.run(main())


def test_the_next_address_on_refusal(host: list[str]) -> None:
    host += ["127.0.0.3", "127.0.0.4", "::1"]

    async def main() -> None:
        door = serve_door(FakePolicy(), OwnListeners())
        for address in host:
            async with tcp_service(echo, address) as service:
                assert await echoed(TcpOffer(service.port), door) == b"hello"
        assert await refusal(free_tcp_port(), door) is Status.REFUSED

    asyncio.run(main())


def test_what_policy_closes(host: list[str]) -> None:
    async def main() -> None:
        async with tcp_service(echo, "0.0.0.0") as service:
            assert await refusal(service.port, serve_door(FakePolicy(allowed=False), OwnListeners())) is Status.POLICY
            udp = UdpOffer(service.port)
            await serve_door(FakePolicy(allowed=False), OwnListeners()).serve_udp(udp)
            assert udp.refused is Status.POLICY

    asyncio.run(main())


@pytest.mark.parametrize("own_ip", ["0.0.0.0", "127.0.0.1"])
def test_own_listeners_are_never_reached(host: list[str], own_ip: str) -> None:
    """Even with loopback exposed, and whatever else listens on that port of another address."""

    async def main() -> None:
        own = OwnListeners()
        async with tcp_service(echo, own_ip) as service:
            own.add(service)
            host.append("127.0.0.1")
            door = serve_door(FakePolicy(exposed=True), own)
            assert await refusal(service.port, door) in (Status.POLICY, Status.REFUSED)

    asyncio.run(main())


def test_a_service_that_does_not_answer(host: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_module, "CONNECT_TIMEOUT_S", 0.2)

    async def main() -> None:
        with ExitStack() as stack:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.2", 0))
            listener.listen(0)
            for _number in range(4):  # its backlog is full now: the kernel drops further SYNs
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(listener.getsockname())
            port = listener.getsockname()[1]
            assert await refusal(port, serve_door(FakePolicy(), OwnListeners())) is Status.TIMEOUT

    asyncio.run(main())


def test_a_peer_that_gave_up_meanwhile(host: list[str]) -> None:
    ended = asyncio.Event()

    async def watch(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            ended.set()

    async def main() -> None:
        door = serve_door(FakePolicy(), OwnListeners())
        async with tcp_service(watch, "0.0.0.0") as service:
            offer = TcpOffer(service.port)
            offer.gone = True
            await door.serve_tcp(offer)
            await asyncio.wait_for(ended.wait(), WAIT_S)
            assert offer.refused is None
            udp = UdpOffer(service.port)
            udp.gone = True
            await door.serve_udp(udp)

    asyncio.run(main())


def test_cancelling_breaks_both_sides(host: list[str]) -> None:
    async def main() -> None:
        broken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"ready")
            try:
                await reader.read()
                broken.set_result(False)
            except ConnectionResetError:
                broken.set_result(True)

        async with tcp_service(hold, "0.0.0.0") as service:
            offer = TcpOffer(service.port)
            serving = asyncio.ensure_future(serve_door(FakePolicy(), OwnListeners()).serve_tcp(offer))
            sink = RecordingSink(offer.far)
            await sink.until(lambda s: s.data == b"ready")
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            assert await asyncio.wait_for(broken, WAIT_S)
            assert offer.near.was_reset

    asyncio.run(main())


def test_datagrams_reach_a_service(host: list[str]) -> None:
    async def main() -> None:
        async with udp_service(bytes.upper, "0.0.0.0") as service:
            offer = UdpOffer(service.port)
            serving = asyncio.ensure_future(serve_door(FakePolicy(), OwnListeners()).serve_udp(offer))
            await asyncio.sleep(0)
            assert await offer.ask(b"one") == b"ONE"
            assert await offer.ask(b"two") == b"TWO"
            offer.far.close()
            await asyncio.wait_for(serving, WAIT_S)

    asyncio.run(main())


def test_datagrams_find_the_address_that_listens(host: list[str]) -> None:
    host += ["127.0.0.3", "127.0.0.4", "::1"]

    async def main() -> None:
        for address in host:
            async with udp_service(bytes.upper, address) as service:
                offer = UdpOffer(service.port)
                serving = asyncio.ensure_future(serve_door(FakePolicy(), OwnListeners()).serve_udp(offer))
                await asyncio.sleep(0)
                assert await offer.ask(b"one") == b"ONE"
                offer.far.close()
                await asyncio.wait_for(serving, WAIT_S)

    asyncio.run(main())


def test_a_datagram_service_may_start_late(host: list[str]) -> None:
    async def main() -> None:
        port = free_udp_port("127.0.0.2")
        offer = UdpOffer(port)
        serving = asyncio.ensure_future(serve_door(FakePolicy(), OwnListeners()).serve_udp(offer))
        refused = asyncio.Event()
        offer.far.on_refused = refused.set
        for _try in range(3):
            await asyncio.sleep(0)
            offer.far.send(b"anybody?")
        await asyncio.wait_for(refused.wait(), WAIT_S)
        async with udp_service(bytes.upper, "127.0.0.2", port):
            while not offer.heard.empty() or not (await offer.ask(b"now")).startswith((b"NOW", b"ANYBODY?")):
                offer.heard.get_nowait()
        offer.far.close()
        await asyncio.wait_for(serving, WAIT_S)

    asyncio.run(main())


class Anywhere:
    """An offer of everything, loopback too, which stands for another host here."""

    exit = False

    def allows(self, ip: IP) -> bool:
        return True


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_datagrams_reach_a_host_beyond(ip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_address(sock: socket.socket, address: object) -> None:
        raise OSError(errno.EADDRNOTAVAIL, "it is another host's")

    async def main() -> None:
        door = ServeDoor(FakePolicy(), OwnListeners(), Beyond(Anywhere(), OwnListeners(), list))
        async with udp_service(bytes.upper, ip) as service:
            monkeypatch.setattr(socket.socket, "bind", no_such_address, raising=False)
            offer = UdpOffer(service.port, ip)
            serving = asyncio.ensure_future(door.serve_udp(offer))
            await asyncio.sleep(0)
            assert await offer.ask(b"one") == b"ONE"
            offer.far.close()
            await asyncio.wait_for(serving, WAIT_S)

    asyncio.run(main())


class OwnListenersSeen(OwnListeners):
    """Remembers what was added."""

    def __init__(self) -> None:
        super().__init__()
        self.added: list[Address] = []

    def add(self, address: Address, udp: bool = False) -> None:
        assert udp
        self.added.append(address)
        super().add(address, udp)


def test_its_own_sockets_are_no_services(host: list[str]) -> None:
    async def main() -> None:
        async with udp_service(bytes.upper, "0.0.0.0") as service:
            own, offer = OwnListenersSeen(), UdpOffer(service.port)
            door = serve_door(FakePolicy(), own)
            serving = asyncio.ensure_future(door.serve_udp(offer))
            await asyncio.sleep(0)
            assert await offer.ask(b"one") == b"ONE"
            (ours,) = own.added
            second = UdpOffer(ours.port)
            await door.serve_udp(second)
            assert second.refused is Status.POLICY
            offer.far.close()
            await asyncio.wait_for(serving, WAIT_S)
            assert not own.forbids(ours, udp=True)

    asyncio.run(main())


def test_idle_datagrams_end() -> None:
    async def main() -> None:
        near, far = udp_pair()
        served = ServedUdp(near, [Address("127.0.0.1", free_udp_port())], OwnListeners(), idle_s=0.05)
        await asyncio.wait_for(served.run(), WAIT_S)
        assert far.closed

    asyncio.run(main())


def test_what_was_dialled_at_an_address_that_is_gone_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is being closed at the time."""
    monkeypatch.setattr("proxy_vpn.doors.serve.GONE_AFTER_S", 0.0)

    class Gone(TcpDuplex):
        local_ip = "198.51.100.7"

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            socks = [socket.create_connection(listener.getsockname()) for _ in range(2)]
            closed, gone = TcpDuplex(socks[0]), Gone(socks[1])
            closed.abort()
            door = serve_door(FakePolicy(), OwnListeners())
            door._services.update({closed: None, gone: None})
            door.network_changed()
            async with asyncio.timeout(WAIT_S):
                await gone.wait_closed()

    asyncio.run(main())
