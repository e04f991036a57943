"""The paths of a session: probes nobody else can answer, suspicion, a race, and a loss in the end."""

from __future__ import annotations

import random

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.mesh.keyring import Keyring
from proxy_vpn.mesh.paths import BUSY_LOST_S, IDLE_LOST_S, PATHS_LIMIT, PathMonitor
from proxy_vpn.net.udp import Path
from proxy_vpn.wire.seal import SealKey

ONE_KEY, TWO_KEY = SealKey(b"\x01" * 32, b"one!"), SealKey(b"\x02" * 32, b"two!")
A1, A2 = Address("10.0.0.1", 1), Address("10.1.0.1", 1)
B1, B2 = Address("10.0.0.2", 1), Address("10.1.0.2", 1)
LATENCY_S = 0.01
TICK_S = 0.25


class World:
    """Two monitors and what lies between them; `down` are addresses that nothing reaches."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.down: set[Address] = set()
        self.one = End(self, {"10.0.0.1": A1, "10.1.0.1": A2}, Path("10.0.0.1", 0, B1), ONE_KEY, b"one!", TWO_KEY)
        self.two = End(self, {"10.0.0.2": B1, "10.1.0.2": B2}, Path("10.0.0.2", 0, A1), TWO_KEY, b"two!", ONE_KEY)
        self.one.other, self.two.other = self.two, self.one
        self.line: list[tuple[float, End, bytes, Path]] = []

    def run(self, duration_s: float, busy: bool = True) -> None:
        """Ticks and deliveries for so long."""
        until, tick_at = self.now_s + duration_s, self.now_s
        while self.now_s < until:
            arrival = self.line[0][0] if self.line else until
            self.now_s = min(arrival, tick_at, until)
            while self.line and self.line[0][0] <= self.now_s:
                _, end, datagram, path = self.line.pop(0)
                end.keyring.receive(datagram, path)
            if tick_at <= self.now_s:
                tick_at += TICK_S
                for end in (self.one, self.two):
                    end.alive = end.monitor.tick(end.heard_at, busy) and end.alive


class End:
    """One side: its addresses by local IP, its monitor, and what it noticed."""

    def __init__(
        self, world: World, addresses: dict[str, Address], path: Path, own: SealKey, index: bytes, peer: SealKey
    ) -> None:
        self.world = world
        self.other: End
        self.addresses = addresses
        self.keyring = Keyring()
        self.switches: list[Path] = []
        self.alive = True
        self.returns = 0
        self.measured: list[float] = []
        self.heard_at = 0.0
        self.sent = 0
        self.recorded: list[bytes] = []
        self.monitor = PathMonitor(
            path,
            own,
            index,
            peer,
            keyring=self.keyring,
            send=self.send,
            entropy=random.Random(index).randbytes,
            now=lambda: world.now_s,
            on_switch=self.switches.append,
            on_return=self.returned,
            on_rtt=self.measured.append,
        )

    def returned(self) -> None:
        self.returns += 1

    def send(self, datagrams: list[bytes], path: Path) -> None:
        source = self.addresses[path.local or next(iter(self.addresses))]
        for datagram in datagrams:
            self.sent += 1
            self.recorded.append(datagram)
            if not {source, path.remote} & self.world.down and path.remote in self.other.addresses.values():
                arrived = Path(path.remote.ip, 0, source)
                self.world.line.append((self.world.now_s + LATENCY_S, self.other, datagram, arrived))


SECOND_OF_ONE, SECOND_OF_TWO = Path("10.1.0.1", 0, B2), Path("10.1.0.2", 0, A2)


def test_a_probe_measures_the_round_trip_and_says_how_we_are_seen() -> None:
    world = World()
    heard: list[float] = []
    world.one.monitor.probe(done=heard.append)
    world.run(0.1)
    assert heard == [pytest.approx(2 * LATENCY_S)] and world.one.monitor.rtt_s == pytest.approx(2 * LATENCY_S)
    assert world.one.monitor.observed == A1 and not world.one.switches and world.one.measured == heard


def test_a_good_path_is_probed_now_and_then() -> None:
    for busy, most in ((True, 20), (False, 8)):
        world = World()
        world.run(60.0, busy)
        assert world.one.alive and world.two.alive and not world.one.monitor.suspect
        assert 6 <= world.one.sent <= 2 * most + 4


def test_a_dead_path_is_suspected_soon_and_another_takes_over() -> None:
    world = World()
    for end, second in ((world.one, SECOND_OF_ONE), (world.two, SECOND_OF_TWO)):
        end.monitor.add([second])
    world.run(6.0)
    world.down = {A1, B1}
    world.run(5.0 + 3.0)
    for end, second in ((world.one, SECOND_OF_ONE), (world.two, SECOND_OF_TWO)):
        assert end.monitor.current == second and end.switches == [second]
        assert not end.monitor.suspect and end.alive
    world.run(60.0)
    assert world.one.alive and world.two.alive


def test_a_check_brings_the_answer_within_two_seconds() -> None:
    world = World()
    world.one.monitor.add([SECOND_OF_ONE])
    world.run(6.0)
    world.down = {A1, B1}
    world.one.monitor.check()
    world.run(2.0)
    assert world.one.monitor.current == SECOND_OF_ONE


@pytest.mark.parametrize(("busy", "lost_s"), [(True, BUSY_LOST_S), (False, IDLE_LOST_S)])
def test_silence_is_a_loss_in_the_end(busy: bool, lost_s: float) -> None:
    world = World()
    world.run(1.0, busy)
    world.down = {A1, B1}
    world.run(lost_s - 2.0, busy)
    assert world.one.alive and world.two.alive
    world.run(3.5, busy)
    assert not world.one.alive and not world.two.alive


def test_a_path_that_comes_back_is_good_again() -> None:
    world = World()
    world.run(1.0)
    world.down = {A1}
    world.run(10.0)
    assert world.one.monitor.suspect
    world.down = set()
    world.run(2.0)
    assert not world.one.monitor.suspect and world.one.alive
    assert world.one.monitor.current == Path("10.0.0.1", 0, B1)
    assert world.one.returns == 1, "the engine is kicked"


def test_a_peer_that_is_heard_is_not_lost_though_probes_are() -> None:
    world = World()
    world.down = {A1}
    for _ in range(240):
        world.one.heard_at = world.now_s
        world.run(0.25)
    assert world.one.alive


def test_another_source_is_probed_at_once_and_nothing_moves() -> None:
    world = World()
    world.run(1.0)
    before = world.two.sent
    world.two.monitor.heard_on(SECOND_OF_TWO)
    assert world.two.sent >= before + 1
    world.run(1.0)
    assert world.two.monitor.current == Path("10.0.0.2", 0, A1) and not world.two.switches


def test_a_peer_that_moved_is_followed_though_it_never_stops_sending() -> None:
    """Its packets come from a new place all the time: that it is heard says nothing of the old path."""
    world = World()
    world.run(6.0)
    world.down = {A1}
    for _ in range(40):
        world.two.heard_at = world.now_s
        world.two.monitor.heard_on(SECOND_OF_TWO)
        world.run(0.25)
    assert world.two.monitor.current == SECOND_OF_TWO


def test_a_recorded_probe_sent_again_gets_no_byte_and_moves_nothing() -> None:
    world = World()
    world.run(30.1)
    before = world.two.sent
    for datagram in world.one.recorded:
        world.two.keyring.receive(datagram, Path("10.0.0.2", 0, Address("198.51.100.1", 9)))
    assert world.two.sent == before and not world.two.switches


def test_strangers_noise_gets_no_byte() -> None:
    world = World()
    noise = random.Random(1)
    before = world.two.sent
    for size in range(16, 200):
        world.two.keyring.receive(bytes(12) + b"two!" + noise.randbytes(size), Path("10.0.0.2", 0, B2))
        world.two.keyring.receive(SealKey(b"\x09" * 32, b"two!").seal(bytes(12), bytes(size)), Path("", 0, B2))
    assert world.two.sent == before


def test_paths_are_bounded() -> None:
    world = World()
    for number in range(200):
        world.one.monitor.heard_on(Path("", 0, Address("198.51.100.1", 1000 + number)))
    assert world.one.sent <= 2 * PATHS_LIMIT + 2
    world.down = {A1}
    world.run(15.0)
    assert world.one.sent < 40 * PATHS_LIMIT


def test_a_closed_monitor_answers_nothing() -> None:
    world = World()
    world.two.monitor.close()
    world.one.monitor.probe()
    world.run(0.2)
    assert world.two.sent <= 1 and world.one.monitor.rtt_s is None
