"""Handshakes: no state and no byte for who has no cookie, and limits for who has."""

from __future__ import annotations

import random

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.keys import Identity, NetworkKey
from proxy_vpn.mesh.admission import COOKIE_LIFE_S, HALF_OPEN_LIMIT, CookieJar
from proxy_vpn.mesh.dialer import Dial, Dialer
from proxy_vpn.mesh.keyring import Keyring
from proxy_vpn.mesh.prober import Sent, handshake_key, probe_key
from proxy_vpn.mesh.session import Session
from proxy_vpn.net.engines import engine_factory
from proxy_vpn.net.udp import Path
from proxy_vpn.wire.probe import PROBE_SIZES_BYTES, Pong
from proxy_vpn.wire.seal import OVERHEAD_BYTES
from tests.support.mesh_world import KEY, Member, Wire, WireDemux, identity, ordered, pause
from tests.support.virtual_loop import run_virtually

CALLER = Address("10.9.0.1", 5000)
RANDOM = random.Random(5).randbytes


class Caller:
    """Speaks QUIC to a member from any source, sealed as it likes."""

    def __init__(self, wire: Wire, member: Member) -> None:
        self.member = member
        self.cookies: CookieJar = member.mesh.seeker.dialer._cookies
        self.demux = WireDemux(wire, [CALLER])
        self.answers: list[bytes] = []
        self.demux.on_sealed = lambda datagram, path: self.answers.append(datagram)

    def initial(self, engine: str = "qh3", size: int = 1200) -> bytes:
        engine_ = engine_factory(engine)(True, size)
        engine_.connect(1000.0)
        return engine_.transmit(1000.0)[0]

    def cookie(self, source: Address, now: float, size: int = 1232) -> bytes:
        return self.cookies.cookie(source, size, now)

    def sealed(self, cookie: bytes, initial: bytes | None = None, key: NetworkKey = KEY) -> bytes:
        initial = self.initial() if initial is None else initial
        return handshake_key(key, self.member.mesh.identity.id).seal(RANDOM(12), initial, b"hs>" + cookie)

    def send(self, datagram: bytes, source: Address = CALLER) -> None:
        self.member.demux.deliver(datagram, Path(self.member.address.ip, 0, source))


def scene(test: object) -> None:
    async def main() -> None:
        wire = Wire()
        member = Member(wire, identity(1), "one", "10.0.0.1")
        await pause(1.0)
        wire.recording = True
        await test(wire, member, Caller(wire, member))  # type: ignore[operator]
        await member.close()

    run_virtually(main())


def half_open(member: Member) -> int:
    return len(member.mesh._sessions)


def test_a_cookie_for_its_source_begins_a_handshake() -> None:
    async def test(wire: Wire, member: Member, caller: Caller) -> None:
        caller.send(caller.sealed(caller.cookie(CALLER, member.mesh._loop.time())))
        await pause(0.1)
        assert half_open(member) == 1 and caller.answers
        assert all(datagram[0] < 0x40 for _, _, datagram in wire.seen)
        await pause(6.0)
        assert half_open(member) == 0 and not member.mesh.seeker.dialer._half_open

    scene(test)


@pytest.mark.parametrize(
    "fault", ["no cookie", "another source", "too old", "invented", "another network", "probe key", "for another"]
)
def test_who_has_no_cookie_gets_no_state_and_no_byte(fault: str) -> None:
    async def test(wire: Wire, member: Member, caller: Caller) -> None:
        now = member.mesh._loop.time()
        if fault == "too old":
            await pause(2 * COOKIE_LIFE_S + 1)
        cookie = {
            "no cookie": b"",
            "another source": caller.cookie(Address("10.9.0.1", 5001), now),
            "invented": RANDOM(16),
        }.get(fault, caller.cookie(CALLER, now))
        datagram = caller.sealed(cookie)
        if fault == "another network":
            datagram = caller.sealed(cookie, key=NetworkKey("home", KEY.network_id, b"x" * 32))
        elif fault == "probe key":
            datagram = probe_key(KEY, member.mesh.identity.id).seal(RANDOM(12), caller.initial(), b"hs>" + cookie)
        elif fault == "for another":
            datagram = handshake_key(KEY, identity(7).id).seal(RANDOM(12), caller.initial(), b"hs>" + cookie)
        wire.seen.clear()
        caller.send(datagram)
        await pause(1.0)
        assert half_open(member) == 0 and not wire.seen and not member.demux.links

    scene(test)


def test_bare_quic_and_what_is_no_initial_get_no_byte() -> None:
    async def test(wire: Wire, member: Member, caller: Caller) -> None:
        cookie = caller.cookie(CALLER, member.mesh._loop.time())
        initial = caller.initial()
        caller.send(initial)
        for inner in (
            b"",
            b"\x40" + bytes(1199),
            initial[:1199],
            initial[:1] + b"\0\0\0\2" + initial[5:],
            initial[:1] + b"\x6b\x33\x43\xcf" + initial[5:],
            bytes([initial[0] | 0x20]) + initial[1:],
        ):
            caller.send(caller.sealed(cookie, inner))
        await pause(1.0)
        assert half_open(member) == 0 and not wire.seen

    scene(test)


def test_garbage_in_a_good_envelope_costs_at_most_its_own_half_open_state() -> None:
    async def test(wire: Wire, member: Member, caller: Caller) -> None:
        rest = random.Random(1)
        for number in range(20):
            source = Address(f"10.9.1.{number + 1}", 5000)
            spoiled = bytearray(caller.initial())
            for _ in range(30):
                spoiled[rest.randrange(20, len(spoiled))] ^= rest.randrange(1, 256)
            caller.send(caller.sealed(caller.cookie(source, member.mesh._loop.time()), bytes(spoiled)), source)
        await pause(7.0)
        assert half_open(member) == 0 and not member.demux.links and not member.mesh.seeker.dialer._half_open

    scene(test)


def test_never_more_than_64_are_half_open() -> None:
    async def test(wire: Wire, member: Member, caller: Caller) -> None:
        now = member.mesh._loop.time()
        for number in range(HALF_OPEN_LIMIT + 30):
            source = Address(f"10.9.{number // 10 + 2}.{number % 10 + 1}", 5000)
            caller.send(caller.sealed(caller.cookie(source, now)), source)
        assert half_open(member) == HALF_OPEN_LIMIT
        await pause(6.0)
        assert half_open(member) == 0
        caller.send(caller.sealed(caller.cookie(CALLER, member.mesh._loop.time())))
        assert half_open(member) == 1

    scene(test)


def test_one_source_begins_four_handshakes_and_one_more_a_second() -> None:
    async def test(wire: Wire, member: Member, caller: Caller) -> None:
        for _ in range(10):
            caller.send(caller.sealed(caller.cookie(CALLER, member.mesh._loop.time())))
        assert half_open(member) == 4
        await pause(1.1)
        for _ in range(10):
            caller.send(caller.sealed(caller.cookie(CALLER, member.mesh._loop.time())))
        assert half_open(member) == 5

    scene(test)


def test_the_same_initial_again_belongs_to_the_same_handshake() -> None:
    async def test(wire: Wire, member: Member, caller: Caller) -> None:
        cookie, initial = caller.cookie(CALLER, member.mesh._loop.time()), caller.initial()
        for _ in range(5):
            caller.send(caller.sealed(cookie, initial))
        assert half_open(member) == 1

    scene(test)


def test_a_handshake_goes_on_after_its_cookie_has_expired() -> None:
    async def test(wire: Wire, member: Member, caller: Caller) -> None:
        loop = member.mesh._loop
        await pause(COOKIE_LIFE_S - loop.time() % COOKIE_LIFE_S + COOKIE_LIFE_S - 1.0)
        old = caller.cookie(CALLER, loop.time() - COOKIE_LIFE_S)
        initial = caller.initial()
        caller.send(caller.sealed(old, initial))
        assert half_open(member) == 1
        await pause(2.0)
        caller.send(caller.sealed(old, initial))
        await pause(0.5)
        assert half_open(member) == 1

    scene(test)


def test_a_dial_waits_for_the_largest_size_or_its_deadline() -> None:
    path = Path("", 0, Address("10.0.0.2", 5000))
    dial = Dial(b"x" * 32, path, 100.0, 0.02)
    assert not dial.ready(100.0) and not dial.ready(200.0), "nothing came back at all"

    def measured(size: int, came_back: int, source: Path = path) -> None:
        pong = Pong(b"x" * 32, bytes(8), b"c%015d" % size, path.remote, came_back)
        dial.measured(Sent(path, b"x" * 32, 100.0, size, bytes(16)), pong, source)

    measured(1232, 1232)
    assert not dial.ready(100.1) and dial.ready(101.0)
    measured(1452, 1232)
    measured(1452, 1452, Path("", 0, Address("10.0.0.3", 5000)))
    assert not dial.ready(100.1) and max(dial.cookies) == 1232
    measured(1452, 1452)
    assert dial.ready(100.1) and max(dial.cookies) == 1452


@pytest.mark.parametrize("carries", [1500, 1400, 1300, 1232])
@pytest.mark.parametrize("engine", ["qh3", "aioquic"])
def test_no_datagram_is_larger_than_the_path_was_proven_to_carry(engine: str, carries: int) -> None:
    async def main() -> None:
        wire = Wire()
        wire.recording = True
        wire.drops = lambda source, target, datagram: len(datagram) > carries
        low, high = ordered(1, 2)
        one = Member(wire, low, "one", "10.0.0.1", engine=engine)
        two = Member(wire, high, "two", "10.0.0.2", engine=engine)
        one.knows(two)
        await one.until_live(two)
        await two.until_live(one)
        proven = max(size for size in PROBE_SIZES_BYTES if size <= carries)
        probes = [len(datagram) for _, _, datagram in wire.seen if len(datagram) > carries]
        wire.seen.clear()
        sink = await one.open_tcp(two)
        (await two.until_sink()).echo = True
        sink.flow.write(bytes(300_000))
        sink.flow.write_eof()
        await sink.until(lambda sink: sink.over)
        assert len(sink.data) == 300_000
        assert all(size in PROBE_SIZES_BYTES for size in probes), "only probes were too large"
        biggest = max(len(datagram) for _, _, datagram in wire.seen)
        assert proven - OVERHEAD_BYTES - 32 <= biggest <= proven
        await one.close()
        await two.close()

    run_virtually(main())


@pytest.mark.parametrize("carries", [1500, 1400, 1232])
@pytest.mark.parametrize("engine", ["qh3", "aioquic"])
def test_nor_when_a_handshake_is_sent_again_and_again(engine: str, carries: int) -> None:
    """Sealed, a datagram with a long header is 32 bytes longer than the engine made it."""

    async def main() -> None:
        wire = Wire()
        wire.recording = True
        wire.drops = lambda source, target, datagram: len(datagram) > carries or datagram[0] >= 0x40
        low, high = ordered(1, 2)
        one = Member(wire, low, "one", "10.0.0.1", engine=engine)
        two = Member(wire, high, "two", "10.0.0.2", engine=engine)
        one.knows(two)
        await pause(20.0)
        proven = max(size for size in PROBE_SIZES_BYTES if size <= carries)
        sizes = {len(datagram) for _, _, datagram in wire.seen} - set(PROBE_SIZES_BYTES)
        assert max(sizes) <= proven
        for member in (one, two):
            await member.close()

    run_virtually(main())


def test_the_dialer_is_built_for_one_device_and_knows_no_session() -> None:
    async def main() -> None:
        keyring = Keyring()
        who = Identity(b"\x05" * 32)

        class Maker:
            def make_session(self, *, initiator: bool, wanted: bytes) -> Session:
                raise AssertionError("nobody asked for one")

        dialer = Dialer(
            KEY,
            who.id,
            demux=WireDemux(Wire(), [CALLER]),
            keyring=keyring,
            cookies=CookieJar(b"c" * 32),
            engine=engine_factory("qh3"),
            maker=Maker(),
            entropy=RANDOM,
            now=lambda: 5.0,
        )
        sealed = handshake_key(KEY, who.id).seal(RANDOM(12), bytes(1200), b"hs>" + RANDOM(16))
        assert keyring.receive(sealed, Path("", 0, CALLER)) is None
        assert dialer.admission.admits(CALLER, 0, 1.0)

    run_virtually(main())
