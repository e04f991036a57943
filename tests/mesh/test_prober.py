"""Probes: who gets an answer, who gets none, and what an answer may cost."""

from __future__ import annotations

import random

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.keys import EPOCH_S, Identity, NetworkKey
from proxy_vpn.mesh.admission import CookieJar
from proxy_vpn.mesh.keyring import Keyring
from proxy_vpn.mesh.prober import (
    AHEAD_CLOCKS_LIMIT,
    CLOCK_WINDOW_S,
    PENDING_LIMIT,
    PONG_TIMEOUT_S,
    Prober,
    Sent,
    handshake_key,
    probe_key,
)
from proxy_vpn.net.udp import Path
from proxy_vpn.wire.probe import PROBE_SIZES_BYTES, SMALL_PROBE_BYTES, Pong, Probe
from proxy_vpn.wire.seal import SealKey

KEY, OTHER_KEY = NetworkKey("home", b"n" * 16, b"s" * 32), NetworkKey("home", b"n" * 16, b"t" * 32)
ALICE, BOB = Identity(b"\x01" * 32), Identity(b"\x02" * 32)
HERE, THERE = Address("192.0.2.1", 5000), Address("192.0.2.2", 5000)
START_UNIX_S = 1_800_000_000.0


class Prone:
    """A device with a prober; what it sends is kept until `exchange` carries it over."""

    def __init__(self, who: Identity, address: Address, key: NetworkKey = KEY, clock_s: float = 0.0) -> None:
        self.who, self.address = who, address
        self.clock_s = 1000.0
        self.offset_s = clock_s
        self.keyring = Keyring()
        self.sent: list[tuple[bytes, Address]] = []
        self.pongs: list[tuple[Sent, Pong, Path, float]] = []
        self.probes: list[tuple[bytes, bytes, Path]] = []
        self.differences: list[float] = []
        self.own: list[Sent] = []
        self.live = False
        self._entropy = random.Random(repr(address) + str(clock_s)).randbytes
        self.cookies = CookieJar(b"c" * 32)
        self.prober = self.make_prober(key)

    def make_prober(self, key: NetworkKey = KEY) -> Prober:
        return Prober(
            key,
            self.who.id,
            b"boot-" + self.who.id[:3],
            keyring=self.keyring,
            cookies=self.cookies,
            handler=self,
            send=lambda datagrams, path: self.sent.extend((datagram, path.remote) for datagram in datagrams),
            entropy=self._entropy,
            now=lambda: self.clock_s,
            unix_time=self.unix_time,
        )

    def unix_time(self) -> float:
        return START_UNIX_S + self.clock_s + self.offset_s

    def pong_received(self, sent: Sent, pong: Pong, path: Path, rtt_s: float) -> None:
        self.pongs.append((sent, pong, path, rtt_s))

    def probe_received(self, sender: bytes, boot: bytes, path: Path) -> None:
        self.probes.append((sender, boot, path))

    def clock_differs(self, sender: bytes, difference_s: float) -> None:
        self.differences.append(difference_s)

    def own_address_found(self, sent: Sent) -> None:
        self.own.append(sent)

    def any_peer_live(self) -> bool:
        return self.live

    def probe(self, target: Prone, wanted: bytes = b"", size: int = SMALL_PROBE_BYTES) -> bytes:
        self.prober.probe(Path("", 0, target.address), wanted, size)
        return self.sent.pop()[0]

    def hear(self, datagram: bytes, source: Address) -> list[bytes]:
        """What it answers to a datagram."""
        before = len(self.sent)
        assert self.keyring.receive(datagram, Path(self.address.ip, 0, source)) is None
        answers = self.sent[before:]
        del self.sent[before:]
        assert all(to == source for _, to in answers)
        return [answer for answer, _ in answers]


@pytest.fixture
def pair() -> tuple[Prone, Prone]:
    alice, bob = Prone(ALICE, HERE), Prone(BOB, THERE)
    for one in (alice, bob):
        one.clock_s += 10.0
    return alice, bob


@pytest.mark.parametrize("wanted", [b"", BOB.id])
@pytest.mark.parametrize("size", [SMALL_PROBE_BYTES, *PROBE_SIZES_BYTES])
def test_a_probe_is_answered_with_a_pong_of_its_size(pair: tuple[Prone, Prone], wanted: bytes, size: int) -> None:
    alice, bob = pair
    probe = alice.probe(bob, wanted, size)
    (pong,) = bob.hear(probe, HERE)
    assert len(probe) == len(pong) == size
    assert bob.probes == [(ALICE.id, b"boot-" + ALICE.id[:3], Path(THERE.ip, 0, HERE))]
    alice.clock_s += 0.05
    assert alice.hear(pong, THERE) == []
    ((sent, answer, path, rtt_s),) = alice.pongs
    assert (answer.responder, answer.boot, answer.observed) == (BOB.id, b"boot-" + BOB.id[:3], HERE)
    assert answer.cookie == bob.cookies.cookie(HERE, size, bob.clock_s) and answer.size_bytes == sent.size_bytes == size
    assert path.remote == THERE and rtt_s == pytest.approx(0.05)


def test_a_pong_counts_once(pair: tuple[Prone, Prone]) -> None:
    alice, bob = pair
    (pong,) = bob.hear(alice.probe(bob), HERE)
    alice.hear(pong, THERE)
    alice.hear(pong, THERE)
    assert len(alice.pongs) == 1


def test_a_replayed_probe_gets_no_byte(pair: tuple[Prone, Prone]) -> None:
    alice, bob = pair
    probe = alice.probe(bob, BOB.id)
    assert bob.hear(probe, HERE)
    for later_s in (0.0, 60.0, 110.0, 130.0, 250.0, 400.0, 100_000.0):
        bob.clock_s = 1010.0 + later_s
        bob.prober.expire()
        bob.live = True
        assert bob.hear(probe, HERE) == [] and bob.hear(probe, Address("198.51.100.1", 9)) == []
    assert len(bob.probes) == 1


def test_a_replay_is_known_after_a_restart(pair: tuple[Prone, Prone]) -> None:
    alice, bob = pair
    probe = alice.probe(bob)
    assert bob.hear(probe, HERE)
    seen = bob.prober.seen()
    again = Prone(BOB, THERE)
    again.clock_s = bob.clock_s
    again.prober.remember_seen(seen)
    assert again.hear(probe, HERE) == []


@pytest.mark.parametrize("offset_s", [-CLOCK_WINDOW_S + 5, 0.0, CLOCK_WINDOW_S - 5])
def test_clocks_may_differ_a_little(offset_s: float) -> None:
    alice, bob = Prone(ALICE, HERE, clock_s=offset_s), Prone(BOB, THERE)
    for one in (alice, bob):
        one.clock_s += 500.0
    assert bob.hear(alice.probe(bob), HERE) and not bob.differences


@pytest.mark.parametrize("offset_s", [-7200.0, -CLOCK_WINDOW_S - 5, CLOCK_WINDOW_S + 5, 7200.0])
def test_a_wrong_clock_is_answered_only_to_who_is_known_and_if_behind_while_nobody_is_live(offset_s: float) -> None:
    alice, bob = Prone(ALICE, HERE, clock_s=offset_s), Prone(BOB, THERE)
    for one in (alice, bob):
        one.clock_s += 500.0
    assert bob.hear(alice.probe(bob), HERE) == [], "not under the discovery key"
    assert bob.hear(alice.probe(bob, BOB.id), HERE), "under our own key"
    bob.live = True
    for one in (alice, bob):
        one.clock_s += 5.0
    assert bob.hear(alice.probe(bob), HERE) == []
    assert len(bob.hear(alice.probe(bob, BOB.id), HERE)) == (1 if offset_s > 0 else 0)
    assert bob.differences and bob.differences[0] == pytest.approx(offset_s)


@pytest.mark.parametrize("live", [False, True])
def test_of_a_clock_that_is_ahead_no_recording_is_answered_while_a_peer_is_live(live: bool) -> None:
    alice, bob = Prone(ALICE, HERE, clock_s=7200.0), Prone(BOB, THERE)
    for one in (alice, bob):
        one.clock_s += 500.0
    bob.live = live
    lost = alice.probe(bob, BOB.id)
    alice.clock_s += 1.0
    heard = alice.probe(bob, BOB.id)
    assert bob.hear(heard, HERE)
    bob.live = True
    for later_s in (0.0, 1000.0):
        bob.clock_s += later_s
        bob.prober.expire()
        assert bob.hear(heard, HERE) == [] and bob.hear(lost, HERE) == []
    alice.clock_s += 2000.0
    assert bob.hear(alice.probe(bob, BOB.id), HERE)


def test_senders_with_clocks_ahead_are_bounded() -> None:
    bob = Prone(BOB, THERE)
    bob.clock_s += 500.0
    bob.live = True
    answered = 0
    for number in range(AHEAD_CLOCKS_LIMIT + 50):
        bob.clock_s += 1.0
        sender, time = number.to_bytes(32, "big"), bob.unix_time() + 7200.0
        probe = Probe(number.to_bytes(16, "big"), sender, b"b" * 8, time, SMALL_PROBE_BYTES).encode()
        answered += len(bob.hear(probe_key(KEY, BOB.id).seal(b"n" * 12, probe), HERE))
    assert answered == AHEAD_CLOCKS_LIMIT


def test_a_stranger_gets_no_byte(pair: tuple[Prone, Prone]) -> None:
    _, bob = pair
    stranger = Prone(ALICE, HERE, key=OTHER_KEY)
    stranger.clock_s = bob.clock_s
    for wanted in (b"", BOB.id):
        for size in (SMALL_PROBE_BYTES, *PROBE_SIZES_BYTES):
            assert bob.hear(stranger.probe(bob, wanted, size), HERE) == []
    assert not bob.probes and not bob.differences


def test_a_probe_for_another_device_and_a_handshakes_key_get_no_byte(pair: tuple[Prone, Prone]) -> None:
    alice, bob = pair
    assert bob.hear(alice.probe(bob, b"x" * 32), HERE) == []
    probe = Probe(b"t" * 16, ALICE.id, b"b" * 8, bob.unix_time(), SMALL_PROBE_BYTES).encode()
    assert bob.hear(handshake_key(KEY, BOB.id).seal(b"n" * 12, probe), HERE) == []
    assert bob.hear(SealKey(KEY.device_key(BOB.id)).seal(b"n" * 12, probe), HERE) == []
    assert bob.hear(probe_key(KEY, BOB.id).seal(b"n" * 12, probe), HERE)


def test_a_probe_too_short_for_its_pong_gets_no_byte(pair: tuple[Prone, Prone]) -> None:
    _, bob = pair
    for size in range(SMALL_PROBE_BYTES - 32):
        probe = Probe(b"t" * 16, ALICE.id, b"b" * 8, bob.unix_time(), SMALL_PROBE_BYTES).encode()[:size]
        assert bob.hear(probe_key(KEY, BOB.id).seal(b"n" * 12, probe), HERE) == []


def test_times_out_of_this_world_get_no_byte_while_a_peer_is_live(pair: tuple[Prone, Prone]) -> None:
    _, bob = pair
    bob.live = True
    for number, time in enumerate((float("nan"), float("inf"), float("-inf"), 1e300, 0.0)):
        probe = Probe(bytes([number]) * 16, ALICE.id, b"b" * 8, time, SMALL_PROBE_BYTES).encode()
        assert bob.hear(probe_key(KEY, BOB.id).seal(b"n" * 12, probe), HERE) == []


def test_a_flipped_bit_gets_no_byte(pair: tuple[Prone, Prone]) -> None:
    alice, bob = pair
    for at in range(0, SMALL_PROBE_BYTES * 8, 7):
        mutated = bytearray(alice.probe(bob))
        mutated[at // 8] ^= 1 << at % 8
        assert bob.hear(bytes(mutated), HERE) == []


def test_a_pong_from_somebody_else_than_wanted_is_ignored(pair: tuple[Prone, Prone]) -> None:
    alice, bob = pair
    probe = alice.probe(bob, BOB.id)
    tx = Probe.decode(probe_key(KEY, BOB.id).open(probe)).tx
    liar = Pong(b"x" * 32, b"b" * 8, b"c" * 16, HERE, SMALL_PROBE_BYTES)
    alice.hear(SealKey(KEY.reply_key(tx), tx[:4]).seal(b"n" * 12, liar.encode()), THERE)
    assert not alice.pongs


def test_our_own_probe_coming_back_tells_an_address_of_ours_and_is_not_answered(pair: tuple[Prone, Prone]) -> None:
    alice, _ = pair
    assert alice.hear(alice.probe(alice), HERE) == []
    assert len(alice.own) == 1 and alice.own[0].path.remote == HERE
    assert not alice.probes and not alice.pongs


def test_the_discovery_key_follows_the_date_and_both_neighbours_open_at_a_boundary() -> None:
    alice, bob = Prone(ALICE, HERE), Prone(BOB, THERE)
    epochs = KEY.epochs(bob.unix_time())
    bob.clock_s = alice.clock_s = alice.clock_s + 3 * EPOCH_S
    assert KEY.epochs(bob.unix_time()) != epochs
    assert bob.hear(alice.probe(bob), HERE)
    for hour in range(49):
        bob.clock_s = 1000.0 + 200.0 + hour * 3600.0
        alice.clock_s = bob.clock_s - 100.0
        assert bob.hear(alice.probe(bob), HERE), f"hour {hour}"


def test_pending_probes_are_bounded_and_forgotten(pair: tuple[Prone, Prone]) -> None:
    alice, bob = pair
    for _ in range(PENDING_LIMIT + 50):
        alice.prober.probe(Path("", 0, THERE), b"", SMALL_PROBE_BYTES)
    assert len(alice.sent) == PENDING_LIMIT
    (pong,) = bob.hear(alice.sent[0][0], HERE)
    alice.clock_s += PONG_TIMEOUT_S + 0.1
    alice.prober.expire()
    alice.hear(pong, THERE)
    assert not alice.pongs, "too late"
    alice.sent.clear()
    assert bob.hear(alice.probe(bob), HERE)


def test_addresses_that_are_none_are_not_probed(pair: tuple[Prone, Prone]) -> None:
    alice, _ = pair
    for address in (Address("224.0.0.1", 5), Address("0.0.0.0", 5), Address("192.0.2.1", 0)):
        alice.prober.probe(Path("", 0, address), b"", SMALL_PROBE_BYTES)
    assert not alice.sent


def test_a_recorded_probe_played_much_later_alarms_nobody(pair: tuple[Prone, Prone]) -> None:
    """Who only recorded a member's probe must not be able to make us warn of a member's clock."""
    alice, bob = pair
    probe = alice.probe(bob, BOB.id)
    assert bob.hear(probe, HERE)
    bob.clock_s += 7200.0
    bob.prober.expire()
    bob.live = True
    bob.hear(probe, Address("198.51.100.1", 9))
    assert not bob.differences
