"""The door that takes in the networks of `pvpn exec`: agreements, ends, and clients that mean no good."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from proxy_vpn.doors import namespace
from proxy_vpn.doors.namespace import Inside, NamespaceDoor
from proxy_vpn.doors.namespace_wire import MAX_DESCRIPTORS, Handover, Offer, Ready, Refusal, Wish, decode, encode
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.tun_setup import TunPlan
from proxy_vpn.errors import StateError, UsageError
from tests.support.loopback import connect

WAIT_S = 10.0
PLAN = TunPlan(
    name="pvpn0",
    mtu=1400,
    addresses=(ip_interface("100.64.1.1/24"), ip_interface("fd00:1::1/64")),
    routes=(ip_network("0.0.0.0/0"), ip_network("::/0")),
    dns=("100.64.1.253", "fd00:1::fd"),
)


class Device:
    """A stand-in for a TUN device: any descriptor."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.name = name
        self._file = os.fdopen(descriptor, "rb", buffering=0)

    def close(self) -> None:
        self._file.close()


class MemoryDoor:
    def __init__(self, inside: Inside) -> None:
        self.inside = inside
        self.fails: StateError | None = None
        self.started = asyncio.Event()
        self.closed = asyncio.Event()

    async def start(self) -> None:
        if self.fails:
            raise self.fails
        self.started.set()

    async def finish(self) -> None: ...

    async def close(self) -> None:
        assert all(listener.fileno() >= 0 for listener in self.inside.listeners), "closed under the door's feet"
        self.closed.set()


class World:
    """A NamespaceDoor whose TUN doors are memory, and clients of it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.doors: list[MemoryDoor] = []
        self.wishes: list[Wish] = []
        self.fails: StateError | None = None
        self.door = NamespaceDoor(path, self._plan, self._build, OwnListeners())

    def _plan(self, wish: Wish) -> TunPlan:
        self.wishes.append(wish)
        if wish.net not in ("", "home"):
            raise UsageError("no network is called that here", "see 'pvpn status'")
        return PLAN

    def _build(self, inside: Inside) -> MemoryDoor:
        door = MemoryDoor(inside)
        door.fails = self.fails
        self.doors.append(door)
        return door

    async def client(self) -> Client:
        return Client(await connect(self.path))

    async def idle(self) -> None:
        """Wait until no session is left."""
        async with asyncio.timeout(WAIT_S):
            for _more in iter(lambda: self.door.sessions, 0):
                await asyncio.sleep(0)


class Client:
    """The other end of the socket, which does what it is told."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def answer(self) -> Offer | Ready | Refusal | None:
        """Its next message; None for the end."""
        line = b""
        while not line.endswith(b"\n"):
            try:
                piece = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.sock, 1), WAIT_S)
            except ConnectionResetError:
                return None
            if not piece:
                return None
            line += piece
        return decode(line, Offer | Ready | Refusal)  # type: ignore[arg-type]

    async def offer(self, wish: Wish | None = None) -> Offer:
        await self.send(encode(wish or Wish()))
        answer = await self.answer()
        assert isinstance(answer, Offer)
        return answer

    def hand_over(self, *descriptors: int, message: bytes = encode(Handover("pvpn0"))) -> None:
        socket.send_fds(self.sock, [message], descriptors)


class Made:
    """What a command makes: a lifeline, something for a device, and listeners."""

    def __init__(self) -> None:
        self.lifeline, self.alive = os.pipe()
        self.device = os.open(os.devnull, os.O_RDWR)
        self.giver, self.taker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listeners = [socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))]

    @property
    def descriptors(self) -> list[int]:
        return [self.lifeline, self.device, self.giver.fileno(), *(listener.fileno() for listener in self.listeners)]

    def die(self) -> None:
        if self.alive >= 0:
            os.close(self.alive)
            self.alive = -1

    def close(self) -> None:
        self.die()
        os.close(self.lifeline)
        os.close(self.device)
        self.giver.close()
        self.taker.close()
        for listener in self.listeners:
            listener.close()


def run(tmp_path: Path, test: Callable[[World, Made], Awaitable[None]]) -> None:
    """Run a test, after which no descriptor may be left."""

    async def main() -> None:
        world = World(str(tmp_path / "exec"))
        await world.door.start()
        made = Made()
        try:
            await asyncio.wait_for(test(world, made), 60)
        finally:
            await world.door.close()
            made.close()

    before = set(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    assert set(os.listdir("/proc/self/fd")) == before
    assert not (tmp_path / "exec").exists()


@pytest.fixture(autouse=True)
def _devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "TunDevice", Device)


def test_a_session_from_the_wish_to_the_commands_end(tmp_path: Path) -> None:
    async def check(world: World, made: Made) -> None:
        client = await world.client()
        assert os.stat(world.path).st_mode & 0o777 == 0o600
        with client.sock:
            assert (await client.offer(Wish("home", only_peers=True))).plan() == PLAN
            client.hand_over(*made.descriptors)
            assert await client.answer() == Ready()
            assert await client.answer() is None, "the socket has done its work"
        (door,) = world.doors
        assert door.started.is_set() and world.door.sessions == 1
        assert (door.inside.plan, door.inside.wish) == (PLAN, Wish("home", only_peers=True))
        assert door.inside.device.name == "pvpn0"
        there = [listener.getsockname() for listener in door.inside.listeners]
        assert there == [listener.getsockname() for listener in made.listeners]
        assert not any(listener.getblocking() for listener in door.inside.listeners)
        made.die()
        await asyncio.wait_for(door.closed.wait(), WAIT_S)
        await world.idle()

    run(tmp_path, check)


def test_sessions_end_with_the_process(tmp_path: Path) -> None:
    async def check(world: World, made: Made) -> None:
        client = await world.client()
        with client.sock:
            await client.offer()
            client.hand_over(*made.descriptors)
            assert await client.answer() == Ready()
        silent = await world.client()
        with silent.sock:
            await world.door.close()
            assert world.doors[0].closed.is_set()
            assert await silent.answer() is None

    run(tmp_path, check)


def test_what_is_refused_is_said(tmp_path: Path) -> None:
    async def check(world: World, made: Made) -> None:
        client = await world.client()
        with client.sock:
            await client.send(encode(Wish("attic")))
            assert await client.answer() == Refusal("no network is called that here", "see 'pvpn status'", usage=True)
        client = await world.client()
        world.fails = StateError("no room", "make some")
        with client.sock:
            await client.offer()
            client.hand_over(*made.descriptors)
            assert await client.answer() == Refusal("no room", "make some")
        await asyncio.wait_for(world.doors[0].closed.wait(), WAIT_S)
        await world.idle()

    run(tmp_path, check)


def test_the_number_of_sessions_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "MAX_SESSIONS", 1)

    async def check(world: World, made: Made) -> None:
        first, second = await world.client(), await world.client()
        with first.sock, second.sock:
            await first.offer()
            answer = await second.answer()
            assert isinstance(answer, Refusal) and "end one of them" in answer.hint
            first.hand_over(*made.descriptors)
            assert await first.answer() == Ready()
        made.die()
        await world.idle()
        third = await world.client()
        with third.sock:
            await third.offer()

    run(tmp_path, check)


@pytest.mark.parametrize("cut", [0, 1, 10])
def test_one_who_says_too_little_is_not_waited_for(tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "SETUP_S", 0.1)

    async def check(world: World, made: Made) -> None:
        client = await world.client()
        with client.sock:
            await client.send(encode(Wish())[:cut])
            answer = await client.answer()
            assert isinstance(answer, Refusal) and "too long" in answer.error
        client = await world.client()
        with client.sock:
            await client.offer()
            client.hand_over(*made.descriptors, message=encode(Handover("pvpn0"))[: cut + 1])
            assert isinstance(await client.answer(), Refusal)
        await world.idle()

    run(tmp_path, check)


def test_messages_may_come_in_pieces(tmp_path: Path) -> None:
    async def check(world: World, made: Made) -> None:
        client = await world.client()
        with client.sock:
            for byte in encode(Wish("home")):
                await client.send(bytes([byte]))
            assert isinstance(await client.answer(), Offer)
            line = encode(Handover("pvpn0"))
            for position, descriptor in enumerate(made.descriptors):
                client.hand_over(descriptor, message=line[position : position + 1])
            await client.send(line[len(made.descriptors) :])
            assert await client.answer() == Ready()
        made.die()
        await world.idle()

    run(tmp_path, check)


@pytest.mark.parametrize(
    "said",
    [
        b"\n",
        b'{"type":"x"}\n',
        b"GET / HTTP/1.1\r\n",
        b"[" * 5000 + b"\n",
        b"x" * 100_000,
        encode(Wish()) * 2,
        encode(Ready()),
    ],
    ids=["nothing", "no kind", "http", "deep", "endless", "twice", "another"],
)
def test_a_wish_that_is_none(tmp_path: Path, said: bytes) -> None:
    async def check(world: World, made: Made) -> None:
        client = await world.client()
        with client.sock:
            try:
                await client.send(said)
            except OSError:
                return
            assert isinstance(await client.answer(), Refusal | None)
            assert await client.answer() is None
        assert not world.wishes and not world.doors
        await world.idle()

    run(tmp_path, check)


def test_descriptors_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    async def check(world: World, made: Made) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as udp, socket.socket() as idle, (tmp_path / "f").open("w+") as file:
            lifeline, device, giver, listener, _ = made.descriptors
            for wrong in (
                [lifeline],
                [lifeline, device, giver],
                [lifeline, device, device, listener],
                [lifeline, device, listener, listener],
                [lifeline, device, giver, device],
                [lifeline, device, giver, listener, udp.fileno()],
                [lifeline, device, giver, listener, idle.fileno()],
                [file.fileno(), device, giver, listener],
                [lifeline, device, giver, *[listener] * (MAX_DESCRIPTORS - 2)],
                [listener] * 250,
            ):
                client = await world.client()
                with client.sock:
                    await client.offer()
                    client.hand_over(*wrong)
                    assert isinstance(await client.answer(), Refusal), wrong
        await world.idle()
        assert not any(door.started.is_set() and not door.closed.is_set() for door in world.doors)

    run(tmp_path, check)


def test_descriptors_before_they_are_due(tmp_path: Path) -> None:
    async def check(world: World, made: Made) -> None:
        client = await world.client()
        with client.sock:
            client.hand_over(*made.descriptors, message=encode(Wish()))
            assert isinstance(await client.answer(), Refusal)
        assert not world.wishes

    run(tmp_path, check)


def test_one_who_leaves_in_between_leaves_nothing(tmp_path: Path) -> None:
    async def check(world: World, made: Made) -> None:
        for asks in (False, True):
            client = await world.client()
            with client.sock:
                if asks:
                    await client.offer()
        await world.idle()
        assert not world.doors
        client = await world.client()
        with client.sock:
            await client.offer()
            client.hand_over(*made.descriptors)
        made.die()
        await world.idle()

    run(tmp_path, check)
