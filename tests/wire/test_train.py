"""Trains: what a packet is split into comes together again, whatever is lost, doubled, shuffled or made up."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.wire.segments import HEAD_BYTES, Laid, Segments, alone
from proxy_vpn.wire.train import (
    COUNT_LIMIT,
    PACKET_BYTES,
    PENDING_BYTES,
    PENDING_LIMIT,
    Joiner,
    Splitter,
    cut,
    train_id,
)
from tests.support.segments import laid, scattered

DATAGRAM_BYTES = 1452
ID = b"\x01\x02\x03\x04\x05\x06\x07\x08"
sizes = st.integers(1200, 1500)
Read = Callable[[list[bytes]], Segments]
READS: tuple[Read, ...] = (laid, scattered)


def packet(size: int, seed: int = 1) -> bytes:
    return b"\x41" + ID + random.Random(seed).randbytes(size - 9)


def split(splitter: Splitter, whole: bytes, datagram_bytes: int, parity: bool) -> list[bytes]:
    return cut(splitter.split(whole, datagram_bytes, parity), datagram_bytes)


def fed(joiner: Joiner, datagrams: list[bytes]) -> list[bytes]:
    """The packets that come of datagrams one by one."""
    return [whole.data for datagram in datagrams for whole in joiner.feed(alone(datagram))]


@given(sizes, st.data())
def test_a_packet_comes_together_in_any_order_and_twice_is_once(datagram_bytes: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(datagram_bytes + 1, (COUNT_LIMIT - 1) * (datagram_bytes - HEAD_BYTES)))
    parity = data.draw(st.booleans())
    sent = packet(size)
    datagrams = split(Splitter(), sent, datagram_bytes, parity)
    assert all(datagram_bytes >= len(datagram) > HEAD_BYTES for datagram in datagrams)
    assert len({len(datagram) for datagram in datagrams[:-1]}) == 1, "one call of the kernel sends them"
    twice = data.draw(st.permutations(datagrams * 2))
    assert fed(Joiner(), twice) == [sent]


@given(sizes, st.integers(1600, 15_000), st.data())
def test_a_parity_replaces_any_one_part(datagram_bytes: int, size: int, data: st.DataObject) -> None:
    sent = packet(size)
    datagrams = split(Splitter(), sent, datagram_bytes, True)
    missing = data.draw(st.integers(0, len(datagrams) - 1))
    rest = datagrams[:missing] + datagrams[missing + 1 :]
    joiner = Joiner()
    assert fed(joiner, rest) == [sent]
    assert joiner.repaired == (missing < len(datagrams) - 1)
    assert fed(Joiner(), rest[1:]) == []


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("parity", [False, True])
def test_trains_that_are_read_together_come_as_one_run(parity: bool, read: Read) -> None:
    splitter, joiner = Splitter(), Joiner()
    packets = [packet(11_470, seed) for seed in range(4)]
    datagrams = [each for sent in packets for each in split(splitter, sent, DATAGRAM_BYTES, parity)]
    assert {len(datagram) for datagram in datagrams} == {DATAGRAM_BYTES}
    assert list(joiner.feed(read(datagrams))) == [Laid(b"".join(packets), 11_470)]
    del datagrams[3]
    again = Joiner()
    runs = list(again.feed(read(datagrams)))
    assert b"".join(run.data for run in runs) == b"".join(packets[0 if parity else 1 :])


@settings(deadline=None)  # a dozen packets take their time on a busy machine
@given(st.data())
def test_what_is_read_together_is_what_comes_one_by_one(data: st.DataObject) -> None:
    """Wherever a read begins and ends, and whatever is lost, doubled or spoiled on the way.

    But for the ID, which is one for all that is read together, and the number's first bytes, which are not looked at.
    A whole train comes through, also where a spoiled part was there first. What becomes of others that spoiled parts
    get into is for the order to say.
    """
    splitter = Splitter()
    shapes = data.draw(
        st.lists(st.tuples(st.sampled_from((2_000, PACKET_BYTES, PACKET_BYTES - 10)), st.booleans()), max_size=12)
    )
    sent = [packet(size, seed) for seed, (size, _) in enumerate(shapes)]
    trains = [split(splitter, whole, DATAGRAM_BYTES, parity) for whole, (_, parity) in zip(sent, shapes, strict=True)]
    datagrams = [each for train in trains for each in train]
    positions = st.integers(0, max(len(datagrams) - 1, 0))
    spoilt = False
    for at, what in data.draw(st.lists(st.tuples(positions, st.integers(11, 30)), max_size=4 if datagrams else 0)):
        spoiled = bytearray(datagrams[at])
        if what < 20:
            spoiled[what] ^= 1 << (what % 8)
            datagrams[at] = bytes(spoiled)
        elif what < 25:
            datagrams[at] = datagrams[at - 1]
        else:
            datagrams[at] = datagrams[at][: 14 + what]
        spoilt = spoilt or not 20 <= what < 25
    ends = data.draw(st.sets(positions)) | {at for at, each in enumerate(datagrams) if len(each) < DATAGRAM_BYTES}
    together, batch, joiner = [], [], Joiner()
    for at, each in enumerate(datagrams):
        batch.append(each)
        if at in ends or at == len(datagrams) - 1:
            read = data.draw(st.sampled_from(READS)) if len(batch[-1]) >= HEAD_BYTES else laid
            together += [whole for run in joiner.feed(read(batch)) for whole in cut(run.data, run.segment_bytes)]
            batch = []
    singly = fed(Joiner(), datagrams)
    at = 0
    for whole, train in zip(sent, trains, strict=True):
        places, at = range(at, at + len(train)), at + len(train)
        if [datagrams[place] for place in places] == train and not ends & set(places[:-1]):
            assert whole in together, "whatever came of it before"
    assert spoilt or set(singly) & set(sent) <= set(together) <= set(singly) | set(sent)
    once_each = Counter(set(together))
    assert Counter(together) <= Counter(singly) | once_each, "twice only where two trains were made of one"


@pytest.mark.parametrize("datagram_bytes", [1200, 1312, 1452])
def test_alike_trains_whose_last_part_is_hardly_more_than_padding(datagram_bytes: int) -> None:
    size = datagram_bytes - HEAD_BYTES
    for count in range(3, 9):
        for padding in (0, 1, 2, size // 4, size // 4 + 1, *range(size - 4, size)):
            splitter, length = Splitter(), count * size - 2 - padding
            packets = [packet(length, seed) for seed in range(3)]
            trains = [splitter.split(each, datagram_bytes, False) for each in packets]
            together = [trains] if all(len(train) % datagram_bytes == 0 for train in trains) else [[t] for t in trains]
            joiner, joined = Joiner(), []
            for some in together:
                runs = joiner.feed(Laid(b"".join(some), datagram_bytes))
                joined += [each for run in runs for each in cut(run.data, run.segment_bytes)]
            assert joined == packets


def test_a_train_that_comes_whole_makes_room_of_what_was_there_of_it() -> None:
    joiner, datagrams = Joiner(), split(Splitter(), packet(11_490), DATAGRAM_BYTES, False)
    assert fed(joiner, datagrams[:3]) == [] and joiner._held_bytes
    assert list(joiner.feed(laid(datagrams))) == [alone(packet(11_490))]
    assert not joiner._held_bytes and not joiner._pending


@pytest.mark.parametrize("read", READS)
def test_a_train_that_is_read_whole_needs_nothing_of_what_was_there_of_it(read: Read) -> None:
    sent, joiner = packet(11_000), Joiner()
    datagrams = split(Splitter(), sent, DATAGRAM_BYTES, False)
    assert len(datagrams[-1]) < DATAGRAM_BYTES
    assert fed(joiner, [datagrams[3][:-1] + b"?"]) == []
    assert list(joiner.feed(read(datagrams))) == [alone(sent)] and not joiner._pending


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("first", range(9))
def test_runs_of_parts_that_overlap_or_come_after_the_parity_make_the_packet(read: Read, first: int) -> None:
    sent = packet(12_900)
    *datagrams, parity = split(Splitter(), sent, DATAGRAM_BYTES, True)
    assert len(datagrams) == 9
    for reads in (
        (datagrams[first:], datagrams[: first + 1]),
        (datagrams[: first + 1], datagrams[max(first - 2, 0) :]),
        ([parity], datagrams[: first + 1], datagrams[first + 1 :]),
        (datagrams[first + 1 :], [parity], datagrams[: first + 1]),
    ):
        joiner = Joiner()
        assert [each.data for some in reads if some for each in joiner.feed(read(some))] == [sent]
        assert not joiner._held_bytes


@pytest.mark.parametrize("read", READS)
def test_parts_that_come_in_turn_are_each_of_its_own_train(read: Read) -> None:
    splitter, joiner = Splitter(), Joiner()
    packets = [packet(12_900, seed) for seed in range(2)]
    one, two = (split(splitter, each, DATAGRAM_BYTES, False) for each in packets)
    mixed = [(one, two)[index % 2][index] for index in range(9)] + [(two, one)[index % 2][index] for index in range(9)]
    joined = [whole for run in joiner.feed(read(mixed)) for whole in cut(run.data, run.segment_bytes)]
    assert sorted(joined) == sorted(packets)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("at", range(9, 12))
def test_a_spoiled_number_costs_no_more_than_its_own_datagram(read: Read, at: int) -> None:
    sent, joiner = packet(12_900), Joiner()
    *datagrams, parity = split(Splitter(), sent, DATAGRAM_BYTES, True)
    spoiled = bytearray(datagrams[2])
    spoiled[at] ^= 1
    datagrams[2] = bytes(spoiled)
    runs = [run for some in (datagrams[:2], datagrams[2:], [parity]) for run in joiner.feed(read(some))]
    assert runs == [alone(sent)] and joiner.repaired == 1


def test_what_comes_late_of_trains_that_were_joined_begins_none() -> None:
    splitter, joiner = Splitter(), Joiner()
    trains = [split(splitter, packet(3_000, seed), DATAGRAM_BYTES, True) for seed in range(20 * PENDING_LIMIT)]
    for number, (*parts, _) in enumerate(trains):
        assert len(list(joiner.feed(laid(parts)))) == 1
        for train in trains[max(number - PENDING_LIMIT + 1, 0) : number + 1]:
            assert fed(joiner, train[-1:]) == [] and not joiner._pending
    assert len(joiner._done) + len(joiner._done_before) <= 2 * PENDING_LIMIT


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("size", [11_000, 11_490])
def test_a_train_that_is_read_whole_comes_through_after_another_of_its_name(read: Read, size: int) -> None:
    joiner, datagrams = Joiner(), split(Splitter(), packet(size), DATAGRAM_BYTES, False)
    assert fed(joiner, [each[:HEAD_BYTES] + b"?" * 30 for each in datagrams]) == []
    assert list(joiner.feed(read(datagrams))) == [alone(packet(size))]


def test_one_packet_of_a_stranger_costs_none_of_the_others() -> None:
    splitter = Splitter()
    packets = [packet(11_470, seed) for seed in range(5)]
    packets[2] = b"\x41" + bytes(8) + packets[2][9:]
    datagrams = [each for sent in packets for each in split(splitter, sent, DATAGRAM_BYTES, False)]
    named = [each[:1] + train_id(ID) + each[9:] for each in datagrams]
    runs = list(Joiner().feed(laid(named)))
    assert b"".join(run.data for run in runs) == b"".join(packets[:2] + packets[3:])


@pytest.mark.parametrize("datagram_bytes", [1200, 1312, 1452])
def test_no_length_comes_out_wrong_whole_or_in_parts(datagram_bytes: int) -> None:
    step = datagram_bytes - HEAD_BYTES
    lengths = {count * step + more for count in range(1, 12) for more in range(-4, 5)} - set(range(datagram_bytes + 1))
    for size in sorted(lengths):
        for parity in (False, True):
            sent = packet(size)
            datagrams = split(Splitter(), sent, datagram_bytes, parity)
            assert [list(Joiner().feed(read(datagrams))) for read in READS] == [[alone(sent)]] * 2
            assert fed(Joiner(), datagrams) == [sent]


def test_what_no_path_carries_is_no_train() -> None:
    """Engines raise at more than 65535 bytes, and parts are not authenticated."""
    head = b"\x40" + train_id(ID) + b"\0\0\1"
    large = [head + bytes((index << 4 | 15,)) + b"\x41" + ID + bytes(4_374) for index in range(15)]
    joiner = Joiner()
    assert fed(joiner, large) == [] and not joiner._pending
    begun = [b"\x40" + train_id(ID) + number.to_bytes(3, "big") for number in range(PENDING_LIMIT)]
    for index in range(14):
        for each in begun:
            assert fed(joiner, [each + bytes((index << 4 | 15,)) + bytes(1_487)]) == []
            assert joiner._held_bytes <= PENDING_BYTES


def test_tiny_parts_that_somebody_adds_keep_no_train_from_coming_together() -> None:
    splitter, joiner = Splitter(), Joiner()
    trains = [split(splitter, packet(11_000, seed), DATAGRAM_BYTES, False) for seed in range(8)]
    for datagrams in trains:
        number = datagrams[0][:12]
        assert fed(joiner, [number + bytes((15,)) + b"x", number + b"\x02" + b"xx", number + b"\x12" + b"xx"]) == []
    for seed, datagrams in enumerate(trains):
        assert fed(joiner, datagrams) == [packet(11_000, seed)]


def test_runs_end_with_a_shorter_packet_and_before_a_longer_one() -> None:
    splitter = Splitter()
    lengths = [9_000, 9_000, 5_000, 9_000, 11_000]
    data = [split(splitter, packet(size), DATAGRAM_BYTES, True) for size in lengths]
    joiner = Joiner()
    runs = [run for datagrams in data for run in joiner.feed(laid(datagrams))]
    assert [run.segment_bytes for run in runs] == lengths
    merged = list(Joiner().feed(laid([each for datagrams in data for each in datagrams])))
    assert [(run.size, run.segment_bytes) for run in merged] == [(23_000, 9_000), (9_000, 9_000), (11_000, 11_000)]


def test_a_packet_that_is_too_large_makes_no_train() -> None:
    assert split(Splitter(), packet(COUNT_LIMIT * DATAGRAM_BYTES), DATAGRAM_BYTES, False) == []


def test_the_id_is_not_the_connections_own() -> None:
    assert train_id(train_id(ID)) == ID != train_id(ID)
    assert split(Splitter(), packet(3000), DATAGRAM_BYTES, False)[0][1:9] == train_id(ID)


def test_what_is_no_packet_of_the_trains_connection_is_dropped() -> None:
    for spoiled in (b"\xc1" + packet(3000)[1:], b"\x01" + packet(3000)[1:]):
        assert fed(Joiner(), split(Splitter(), spoiled, DATAGRAM_BYTES, False)) == []
    of_another = split(Splitter(), packet(3000), DATAGRAM_BYTES, False)
    assert fed(Joiner(), [each[:1] + bytes(8) + each[9:] for each in of_another]) == []
    handshake = b"\xc1\0\0\0\1\x08" + packet(3000)[1:]
    datagrams = split(Splitter(), handshake, DATAGRAM_BYTES, False)
    assert fed(Joiner(), datagrams) == [] and fed(Joiner(long_headers=True), datagrams) == [handshake]
    short = split(Splitter(), packet(3000), DATAGRAM_BYTES, False)
    assert fed(Joiner(long_headers=True), short) == []


def test_incomplete_trains_are_bounded_and_the_oldest_go() -> None:
    splitter, joiner = Splitter(), Joiner()
    trains = [split(splitter, packet(11_000, seed), DATAGRAM_BYTES, False) for seed in range(PENDING_LIMIT + 1)]
    for datagrams in trains:
        assert fed(joiner, datagrams[:-1]) == []
    assert joiner._held_bytes <= PENDING_BYTES and len(joiner._pending) <= PENDING_LIMIT
    assert fed(joiner, trains[0][-1:]) == []
    assert fed(joiner, trains[-1][-1:]) == [packet(11_000, PENDING_LIMIT)]


@pytest.mark.parametrize("read", READS)
def test_noise_raises_nothing_and_stays_bounded(read: Read) -> None:
    rest, joiner = random.Random(5), Joiner()
    good = split(Splitter(), packet(6_000), DATAGRAM_BYTES, True)

    def spoiled() -> bytes:
        datagram = bytearray(rest.choice(good))
        for _ in range(rest.choice((0, 0, 1, 2, 5))):
            datagram[rest.randrange(20)] = rest.randrange(256)
        return bytes(datagram)

    for _ in range(20_000):
        datagrams = [spoiled() for _ in range(rest.choice((1, 1, 2, 5, 12)))]
        datagrams[-1] = datagrams[-1][: rest.choice((rest.randrange(HEAD_BYTES, DATAGRAM_BYTES), DATAGRAM_BYTES))]
        segments: Segments = read(datagrams)
        if len(datagrams) == 1 and rest.random() < 0.5:
            cut_off = datagrams[0][: rest.randrange(1, DATAGRAM_BYTES)]
            segments = Laid(cut_off, rest.choice((len(cut_off), 1, 13, 14, 700)))
        for run in joiner.feed(segments):
            assert 21 <= run.segment_bytes <= run.size and run.data[0] & 0xC0 == 0x40 and run.data[1:9] == ID
        assert joiner._held_bytes == sum(pending.size for pending in joiner._pending.values()) <= PENDING_BYTES
        assert len(joiner._pending) <= PENDING_LIMIT and len(joiner._done) <= 2 * PENDING_LIMIT
