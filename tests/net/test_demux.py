"""Which datagram goes where, by its first byte and its connection ID, alone or in a batch."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.net.demux import ALONE_BYTES, LOOK_EVERY, SHORT_TURN_BATCHES, Demultiplexer, LinkReceiver
from proxy_vpn.net.turns import Turns
from proxy_vpn.net.udp import Path, UdpSocket, _Call
from proxy_vpn.wire.segments import HEAD_BYTES, Segments
from tests.support.segments import laid, scattered

WAIT_S = 10.0
ID_A, ID_B = b"aaaaaaaa", b"bbbbbbbb"
KRPC = b"d1:ad2:id20:" + bytes(20) + b"e1:q4:ping1:t2:aa1:y1:qe"
BULK_TURNS = 50


class FakeLink:
    """Keeps what it is given."""

    def __init__(self, settled: list[FakeLink]) -> None:
        self.received: list[tuple[bytes, int, Path]] = []
        self.settled = 0
        self.has_settled = asyncio.Event()
        self._order = settled

    def receive(self, segments: Segments, path: Path) -> None:
        self.received.append((segments.data, segments.segment_bytes, path))

    def settle(self) -> None:
        self.settled += 1
        self.has_settled.set()
        self._order.append(self)

    @property
    def segments(self) -> list[bytes]:
        return [data[at : at + size] for data, size, _ in self.received for at in range(0, len(data), size)]


class Bench:
    """A demultiplexer on loopback, a sender, two links, and everything it hands out."""

    def __init__(self, *ips: str) -> None:
        self.demux = Demultiplexer([UdpSocket(Address(ip, 0)) for ip in ips or ("127.0.0.1",)])
        self.sender = UdpSocket(Address("127.0.0.1", 0))
        self.order: list[FakeLink] = []
        self.a, self.b = FakeLink(self.order), FakeLink(self.order)
        self.demux.links.update({ID_A: self.a, ID_B: self.b})
        self.sealed: list[tuple[bytes, Path]] = []
        self.krpc: list[tuple[bytes, Address]] = []
        self.answer: LinkReceiver | None = None
        self.demux.on_sealed = self._on_sealed
        self.demux.on_krpc = lambda datagram, source: self.krpc.append((datagram, source))
        self._end = asyncio.Event()

    def _on_sealed(self, datagram: bytes, path: Path) -> LinkReceiver | None:
        if datagram == b"\x3f" + b"." * 40:
            self._end.set()
            return None
        self.sealed.append((datagram, path))
        return self.answer

    async def send(self, *datagrams: bytes) -> None:
        """Send and wait until all of it has been routed."""
        path = Path("", 0, self.demux.addresses[0])
        self.sender.send(datagrams, path)
        self.sender.send([b"\x3f" + b"." * 40], path)
        async with asyncio.timeout(WAIT_S):
            await self._end.wait()
        self._end.clear()

    def close(self) -> None:
        self.demux.close()
        self.sender.close()


def run(test: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        bench = Bench()
        try:
            await test(bench)
        finally:
            bench.close()

    asyncio.run(main())


def short(connection_id: bytes, body: bytes = b"x" * 30, first: int = 0x40) -> bytes:
    return bytes([first]) + connection_id + body


@pytest.mark.parametrize("first", range(0, 256, 3))
def test_every_class_of_first_byte(first: int) -> None:
    async def test(bench: Bench) -> None:
        known = short(ID_A, first=first)
        unknown = short(b"nobodys!", first=first)
        await bench.send(known)
        await bench.send(unknown)
        if first < 0x40:
            assert [datagram for datagram, _ in bench.sealed] == [known, unknown] and not bench.a.received
        elif first < 0x80:
            assert bench.a.segments == [known] and not bench.sealed
        else:
            assert not (bench.sealed or bench.a.received)
        assert not bench.krpc and not bench.b.received

    run(test)


def test_krpc_is_known_by_its_brackets_and_its_length() -> None:
    async def test(bench: Bench) -> None:
        good = [KRPC, b"d1:ad2:id20:" + bytes(20) + b"ee"]
        await bench.send(*good, KRPC[:-1], KRPC + b"\0", b"de", b"d" + b"e" * 18, b"", b"d", b"\x40", b"\xc0")
        assert [datagram for datagram, _ in bench.krpc] == good
        assert {source for _, source in bench.krpc} == {bench.sender.address}
        assert not bench.sealed and not bench.a.received

    run(test)


def test_a_connection_id_that_looks_like_krpc_is_a_connection() -> None:
    async def test(bench: Bench) -> None:
        bench.demux.links[KRPC[1:9]] = bench.b
        await bench.send(KRPC)
        assert bench.b.segments == [KRPC] and not bench.krpc

    run(test)


def test_what_is_too_short_to_be_sealed_is_dropped() -> None:
    async def test(bench: Bench) -> None:
        await bench.send(b"\0" * 31, b"\0" * 32, b"\0")
        assert [datagram for datagram, _ in bench.sealed] == [b"\0" * 32]

    run(test)


def test_two_connections_mixed_in_one_batch_each_get_their_own() -> None:
    async def test(bench: Bench) -> None:
        size = 1200
        sent = [short(one, bytes([number]).ljust(size - 9, b"p")) for number, one in enumerate([ID_A] * 5 + [ID_B] * 3)]
        sent += [short(ID_A, bytes([20]).ljust(size - 9, b"p")), short(ID_B, bytes([21]).ljust(size - 9, b"p"))]
        sent += [short(b"nobodys!", b"n" * (size - 9)), short(ID_A, b"tail")]
        await bench.send(*sent)
        assert bench.a.segments == [one for one in sent if one[1:9] == ID_A]
        assert bench.b.segments == [one for one in sent if one[1:9] == ID_B]
        assert all(path.remote == bench.sender.address for _, _, path in bench.a.received + bench.b.received)
        assert 1 <= bench.a.settled <= 2 and 1 <= bench.b.settled <= 2

    run(test)


def test_sealed_datagrams_and_krpc_within_a_batch_are_singled_out() -> None:
    async def test(bench: Bench) -> None:
        sealed = b"\x01" + b"s" * (len(KRPC) - 1)
        one = short(ID_A, b"q" * (len(KRPC) - 9))
        await bench.send(one, sealed, one, KRPC, one, b"\xc0" + b"l" * (len(KRPC) - 1), one)
        assert bench.a.segments == [one] * 4
        assert [datagram for datagram, _ in bench.sealed] == [sealed]
        assert [datagram for datagram, _ in bench.krpc] == [KRPC]

    run(test)


@pytest.mark.parametrize("read", [laid, scattered])
def test_however_they_were_read_each_gets_its_own_in_order(read: Callable[[list[bytes]], Segments]) -> None:
    async def test(bench: Bench) -> None:
        path, size = Path("127.0.0.1", 0, bench.sender.address), len(KRPC)
        kinds = [short(ID_A, bytes(size - 9)), short(ID_B, bytes(size - 9)), short(ID_A, bytes(size - 9), first=0xC0)]
        kinds += [bytes(size), KRPC]
        noise = random.Random(3)
        for _ in range(200):
            among = noise.sample(kinds, noise.randrange(1, 4))
            sent = [bytearray(noise.choice(among)) for _ in range(noise.randrange(1, 20))]
            for number, datagram in enumerate(sent):
                datagram[-3] = number
            if noise.random() < 0.5:
                sent[-1] = sent[-1][: noise.randrange(HEAD_BYTES, size)]
            datagrams = [bytes(datagram) for datagram in sent]
            touched: dict[int, LinkReceiver] = {}
            bench.demux._route(read(datagrams), path, touched)
            assert touched == {id(link): link for link in (bench.a, bench.b) if link.received}
            assert bench.a.segments == [one for one in datagrams if one[:9] == b"\x40" + ID_A]
            assert bench.b.segments == [one for one in datagrams if one[:9] == b"\x40" + ID_B]
            assert [one for one, _ in bench.sealed] == [one for one in datagrams if not one[0] and len(one) >= 32]
            assert [one for one, _ in bench.krpc] == [one for one in datagrams if one[:1] == b"d" and one[-1:] == b"e"]
            del bench.a.received[:], bench.b.received[:], bench.sealed[:], bench.krpc[:]

    run(test)


def test_runs_of_one_connection_stay_together() -> None:
    async def test(bench: Bench) -> None:
        sent = [short(ID_A, bytes([number]).ljust(1191, b"p")) for number in range(40)]
        await bench.send(*sent)
        assert bench.a.segments == sent
        assert len(bench.a.received) < 10

    run(test)


def test_the_link_a_sealed_datagram_leads_to_is_settled() -> None:
    async def test(bench: Bench) -> None:
        bench.answer = bench.b
        await bench.send(b"\x01" + b"s" * 40, b"\x01" + b"s" * 40)
        assert len(bench.sealed) == 2 and bench.b.settled >= 1

    run(test)


def test_bytes_are_counted_and_sent_from_the_family_of_the_path() -> None:
    async def test(bench: Bench) -> None:
        bench.demux.send([b"to nowhere"], Path("", 0, Address("::1", 9)))
        bench.demux.send([b"hello"], Path("", 0, bench.sender.address))
        readable = asyncio.Event()
        asyncio.get_running_loop().add_reader(bench.sender.fileno(), readable.set)
        async with asyncio.timeout(WAIT_S):
            await readable.wait()
        asyncio.get_running_loop().remove_reader(bench.sender.fileno())
        (batch,) = bench.sender.receive()
        assert batch.segments.data == b"hello"
        assert bench.demux.sent_bytes >= 5
        await bench.send(short(ID_A))
        assert bench.demux.received_bytes >= 39

    run(test)


def test_two_sockets_of_one_family_both_receive_answer_and_close() -> None:
    async def main() -> None:
        sockets = [UdpSocket(Address(ip, 0)) for ip in ("127.0.0.1", "127.0.0.2")]
        sender = UdpSocket(Address("127.0.0.1", 0))
        demux = Demultiplexer(sockets)
        heard: list[Path] = []
        everything = asyncio.Event()

        def on_sealed(datagram: bytes, path: Path) -> None:
            heard.append(path)
            if len(heard) == 2:
                everything.set()

        demux.on_sealed = on_sealed
        try:
            sender.send([b"\x01" * 40], Path("", 0, sockets[0].address))
            sender.send([b"\x01" * 40], Path("", 0, sockets[1].address))
            async with asyncio.timeout(WAIT_S):
                await everything.wait()
            for path in heard:
                demux.send([b"\x02" * 40], path)
            answers = set()
            while batches := sender.receive():
                answers |= {batch.path.remote for batch in batches}
            assert sorted(demux.addresses) == sorted(one.address for one in sockets)
            assert answers == {one.address for one in sockets}
            demux.close()
            assert [one.fileno() for one in sockets] == [-1, -1]
        finally:
            demux.close()
            for one in (*sockets, sender):
                one.close()

    asyncio.run(main())


@pytest.mark.parametrize("hurried", [True, False])
def test_a_turn_is_shorter_while_somebody_waits(hurried: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns()
    monkeypatch.setattr("proxy_vpn.net.demux.TURNS", turns)

    async def test(bench: Bench) -> None:
        if hurried:
            turns.hurry(asyncio.get_running_loop().time())
        # Each longer than the one before: none are joined.
        await bench.send(*(short(ID_A, bytes(ALONE_BYTES + number)) for number in range(2 * SHORT_TURN_BATCHES)))
        assert len(bench.a.received) == 2 * SHORT_TURN_BATCHES
        assert (bench.a.settled > 1) is hurried

    run(test)


def test_a_full_kernel_holds_links_back_and_wakes_them() -> None:
    async def test(bench: Bench) -> None:
        path = Path("", 0, bench.sender.address)
        assert not bench.demux.holds_back(bench.a, path)
        assert not bench.demux.holds_back(bench.a, Path("", 0, Address("::1", 9)))
        fill(bench)
        assert not bench.demux.holds_back(bench.b, Path("", 0, Address("::1", 9))), "another socket's"
        assert bench.demux.holds_back(bench.a, path)
        async with asyncio.timeout(WAIT_S):
            await bench.a.has_settled.wait()
        assert not bench.demux.holds_back(bench.a, path)
        assert bench.a.settled == 1 and not bench.b.settled, "who did not ask has nothing to send"

    run(test)


class SendingLink(FakeLink):
    """Sends once it may; if it is `bulk`, as often as it may, and more than the kernel takes."""

    def __init__(self, bench: Bench, *, bulk: bool) -> None:
        super().__init__(bench.order)
        self._bench = bench
        self._more = BULK_TURNS if bulk else 0
        self._path = Path("", 0, bench.sender.address)

    def settle(self) -> None:
        if self._bench.demux.holds_back(self, self._path):
            return
        super().settle()
        if self._more:
            self._more -= 1
            fill(self._bench)
            assert self._bench.demux.holds_back(self, self._path)


def fill(bench: Bench) -> None:
    """The kernel takes no more on the only socket."""
    (socket,) = bench.demux._sockets
    socket._enqueue(_Call([b"waits"], 0, (), bench.sender.address))


def test_who_was_held_back_is_served_before_those_who_fill_the_kernel_again() -> None:
    async def test(bench: Bench) -> None:
        first, second = SendingLink(bench, bulk=True), SendingLink(bench, bulk=True)
        other = SendingLink(bench, bulk=False)
        fill(bench)
        for link in (first, second, other):
            link.settle()
        async with asyncio.timeout(WAIT_S):
            await other.has_settled.wait()
        assert bench.order[:3] == [first, second, other]

    run(test)


def test_small_datagrams_are_taken_many_a_turn_once_they_come_so() -> None:
    async def test(bench: Bench) -> None:
        sent = [short(ID_A, bytes(30 + number)) for number in range(200)]
        await bench.send(*sent)
        assert len(bench.a.received) == len(sent)
        assert LOOK_EVERY <= bench.a.settled < LOOK_EVERY + 30, "one by one at first, then up to 32 a turn"

    run(test)
