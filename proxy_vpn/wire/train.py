"""Trains: a QUIC packet larger than a datagram leaves as several datagrams and is put together again.

What a QUIC stack does, it does by the packet, so few large packets cost a fraction of many small ones, and a congestion
window that grows by a packet a round trip fills a long line sooner. IP fragments would do the same, but NATs drop them,
and what is lost of them stays in the kernel for half a minute.

    0x40 | 8 bytes of the packet's destination connection ID, complemented | number (3) | index << 4 | count | part

`count` parts, 2 to 15, are of one length; the last ends with zeros and their number (2), so that a kernel that cuts
buffers into datagrams can send many trains in one call. Only where that would be many zeros there are none, and it is
shorter. Where a line loses datagrams one more follows, whose index is the count: the parts' exclusive or, which stands
for any one of them. Nothing here is authenticated, as nothing of IP's own fragments is: what was joined wrongly is a
packet that QUIC does not open.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice

CONNECTION_ID_BYTES = 8
HEADER_BYTES = 13
TRAILER_BYTES = 2
COUNT_LIMIT = 15
# Eleven full datagrams of 1452 bytes: four such packets fill a call of the kernel, larger ones save nothing more, and a
# lost datagram costs a packet.
PACKET_BYTES = 15_807
PADDING_SHARE = 4
DATAGRAM_LIMIT_BYTES = 1500
PACKET_LEAST_BYTES = 21  # of QUIC's: header, packet number, sample for the header's protection
PENDING_LIMIT = 64
PENDING_BYTES = 1 << 20
_FIXED_BIT = b"\x40"
_NUMBERS = 1 << 24
_LONG_BIT = 0x80
_ID_AT, _ID_END, _LONG_ID_AT = 1, 9, 6
_NUMBER_END, _PLACE = 12, 12
_COMPLEMENT = bytes(255 - byte for byte in range(256))
# Of packets with a short and with a long header (RFC 9000, section 17): what their first bytes may be.
SHORT_FIRST, _LONG_FIRST = bytes(range(0x40, 0x80)), bytes(range(0xC0, 0x100))
_ORDERS = [bytes((index << 4) | count for index in range(count)) for count in range(COUNT_LIMIT + 1)]
_PLACES = [[order[index : index + 1] for index in range(len(order))] for order in _ORDERS]
_DONE_REMEMBERED = 64
_LENGTHS_REMEMBERED = 256


def train_id(connection_id: bytes) -> bytes:
    """What the datagrams of trains to this connection bear instead of its ID."""
    return connection_id.translate(_COMPLEMENT)


def cut(data: bytes, segment_bytes: int) -> list[bytes]:
    """The datagrams that are laid end to end in `data`, all but the last of `segment_bytes`."""
    return [data[start : start + segment_bytes] for start in range(0, len(data), segment_bytes)]


class Splitter:
    """Makes one connection's trains."""

    def __init__(self) -> None:
        self._number = 0

    def split(self, packet: bytes, datagram_bytes: int, parity: bool) -> bytes:
        """The train of a packet larger than `datagram_bytes`, laid end to end in such datagrams; b"" if too large."""
        size = datagram_bytes - HEADER_BYTES
        count = -(-(len(packet) + TRAILER_BYTES) // size)
        if count > COUNT_LIMIT:
            return b""
        padding = count * size - len(packet) - TRAILER_BYTES
        if padding > size // PADDING_SHARE and size - padding >= TRAILER_BYTES and not parity:
            padding = 0
        end = bytes(padding) + padding.to_bytes(TRAILER_BYTES, "big")
        if len(packet) < (count - 1) * size:  # the end begins a part earlier
            packet, end = packet + end[:1], end[1:]
        parts = [*_cutter(size, count, len(packet))(packet)]
        parts[-1] += end
        self._number = (self._number + 1) % _NUMBERS
        pieces = [_FIXED_BIT + _train_of(packet) + self._number.to_bytes(3, "big")] * (3 * count)
        pieces[1::3] = _PLACES[count]
        pieces[2::3] = parts
        if parity:
            pieces += (pieces[0], bytes(((count << 4) | count,)), _xor(parts, size))
        return b"".join(pieces)


class Joiner:
    """Puts trains together, of any connections; holds at most PENDING_LIMIT that are incomplete, and PENDING_BYTES.

    It takes packets with the header asked for, whose connection ID is their train's, and no others.
    """

    def __init__(self, *, long_headers: bool = False) -> None:
        self._id_at, self._first_bytes = (_LONG_ID_AT, _LONG_FIRST) if long_headers else (_ID_AT, SHORT_FIRST)
        self.repaired = 0  # how many parts the parity has replaced
        self._pending: dict[bytes, _Pending] = {}
        self._held_bytes = 0
        self._done: dict[bytes, None] = {}

    def feed(self, data: bytes, segment_bytes: int) -> Iterator[tuple[bytes, int]]:
        """Runs of whole packets, laid end to end, all but the last of a run of the given size.

        `data`: datagrams of trains, laid end to end; all but the last have `segment_bytes`.
        """
        run: list[bytes] = []
        for packets, packet_bytes in self._own_packets(data, segment_bytes):
            several = len(packets) > packet_bytes
            if run and (several or packet_bytes > len(run[0])):
                yield b"".join(run), len(run[0])
                run = []
            if several:
                yield packets, packet_bytes
                continue
            run.append(packets)
            if packet_bytes < len(run[0]):
                yield b"".join(run), len(run[0])
                run = []
        if run:
            yield b"".join(run), len(run[0])

    def _own_packets(self, data: bytes, segment_bytes: int) -> Iterator[tuple[bytes, int]]:
        """One or several of a length, of the connections whose trains brought them."""
        for train, packets, packet_bytes in self._packets(data, segment_bytes):
            if self._are_of(train, packets, packet_bytes):
                yield packets, packet_bytes
            elif len(packets) > packet_bytes:
                singles = cut(packets, packet_bytes)
                yield from ((packet, packet_bytes) for packet in singles if self._are_of(train, packet, packet_bytes))

    def _are_of(self, train: bytes, packets: bytes, packet_bytes: int) -> bool:
        if packet_bytes < PACKET_LEAST_BYTES or packets[::packet_bytes].translate(None, self._first_bytes):
            return False
        starts = range(self._id_at, len(packets), packet_bytes)
        return {packets[start : start + CONNECTION_ID_BYTES] for start in starts} == {train_id(train)}

    def _packets(self, data: bytes, segment_bytes: int) -> Iterator[tuple[bytes, bytes, int]]:
        """Whose trains, one or several packets of a length, and that length."""
        if segment_bytes > DATAGRAM_LIMIT_BYTES:
            return
        places = data[_PLACE::segment_bytes]
        numbers = data[_NUMBER_END - 1 :: segment_bytes]
        at, segments, full = 0, len(places), len(data) // segment_bytes
        while at < segments:
            first, count = at * segment_bytes, places[at] & 15
            train = data[first + _ID_AT : first + _ID_END]
            many = _whole_trains(places, numbers, at, count, full)
            if many:
                at += many * count
                whole = data[first : at * segment_bytes]
                self._finished(
                    [whole[i + _ID_AT : i + HEADER_BYTES] for i in range(0, len(whole), count * segment_bytes)]
                )
                yield from ((train, *joined) for joined in _joined(whole, segment_bytes, count))
                continue
            packet = self._part(data[first : first + segment_bytes])
            if packet is not None:
                yield train, packet, len(packet)
            at += 1

    def _part(self, datagram: bytes) -> bytes | None:
        """The packet that this datagram completes."""
        if len(datagram) <= HEADER_BYTES:
            return None
        index, count = datagram[_PLACE] >> 4, datagram[_PLACE] & 15
        train = datagram[_ID_AT:_NUMBER_END] + bytes((count,))
        if train in self._done or index > count or count < 2:
            return None
        while len(self._pending) >= PENDING_LIMIT or self._held_bytes + len(datagram) > PENDING_BYTES:
            self._drop(next(iter(self._pending)))
        pending = self._pending.get(train)
        if pending is None:
            pending = self._pending[train] = _Pending(count)
        if index in pending.parts:
            return None
        pending.parts[index] = datagram[HEADER_BYTES:]
        self._held_bytes += len(datagram)
        if len(pending.parts) < count:
            return None
        self._finished([train])
        if count in pending.parts:
            self.repaired += 1
        return pending.join()

    def _drop(self, train: bytes) -> None:
        pending = self._pending.pop(train)
        self._held_bytes -= sum(len(part) + HEADER_BYTES for part in pending.parts.values())

    def _finished(self, trains: Sequence[bytes]) -> None:
        """What still comes of these, named by ID, number and count, is not the beginning of others."""
        if self._pending:
            for train in self._pending.keys() & trains:
                self._drop(train)
        self._done.update(dict.fromkeys(trains))
        for train in [*islice(self._done, max(len(self._done) - _DONE_REMEMBERED, 0))]:
            del self._done[train]


def _whole_trains(places: bytes, numbers: bytes, at: int, count: int, full: int) -> int:
    """How many trains of `count` parts follow, whole and in order, as they come where nothing is lost; at first all.

    `places`, `numbers`: the index and count, and the number's last byte, of each datagram; `full`: how many are not
    shorter. A look at two bytes of each datagram.
    """
    for many in ((full - at) // count, 1) if count > 1 else ():
        end = at + many * count
        alike = many > 0 and places[at:end] == _ORDERS[count] * many
        if alike and numbers[at:end] == b"".join([numbers[i : i + 1] * count for i in range(at, end, count)]):
            return many
    return 0


def _joined(data: bytes, segment_bytes: int, count: int) -> Iterator[tuple[bytes, int]]:
    """The packets of whole trains of `count` parts, laid end to end if they are of one length, and that length."""
    train_bytes = count * segment_bytes
    trailers = {data[end - TRAILER_BYTES : end] for end in range(train_bytes, len(data) + 1, train_bytes)}
    if len(trailers) == 1:
        over = int.from_bytes(trailers.pop(), "big") + TRAILER_BYTES
        if over < segment_bytes - HEADER_BYTES:
            parts = chain.from_iterable(_parts(segment_bytes, count, over).iter_unpack(data))
            yield b"".join(parts), train_bytes - count * HEADER_BYTES - over
            return
    for train in cut(data, train_bytes):
        packet = _trimmed(b"".join([datagram[HEADER_BYTES:] for datagram in cut(train, segment_bytes)]))
        yield packet, len(packet)


@lru_cache(maxsize=_LENGTHS_REMEMBERED)
def _parts(segment_bytes: int, count: int, over: int) -> struct.Struct:
    """Of a train of `count` datagrams: their parts, without `over` bytes of the last."""
    part_bytes = segment_bytes - HEADER_BYTES
    return struct.Struct(f"{HEADER_BYTES}x{part_bytes}s" * (count - 1) + f"{HEADER_BYTES}x{part_bytes - over}s{over}x")


@lru_cache(maxsize=_LENGTHS_REMEMBERED)
def _cutter(size: int, count: int, packet_bytes: int) -> Callable[[bytes], tuple[bytes, ...]]:
    """What cuts a packet of such a length into `count` parts, all but the last of `size` bytes."""
    return struct.Struct(f"{size}s" * (count - 1) + f"{packet_bytes - (count - 1) * size}s").unpack


def _train_of(packet: bytes) -> bytes:
    at = _LONG_ID_AT if packet[0] & _LONG_BIT else _ID_AT
    return train_id(packet[at : at + CONNECTION_ID_BYTES])


class _Pending:
    """The parts of one train so far, by index."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.parts: dict[int, bytes] = {}

    def join(self) -> bytes:
        """The packet, or something that is none if its parts do not fit together."""
        parity = self.parts.pop(self.count, None)
        if parity is not None:
            (missing,) = set(range(self.count)) - self.parts.keys()
            self.parts[missing] = _xor((parity, *self.parts.values()), len(parity))
        return _trimmed(b"".join(self.parts[index] for index in range(self.count)))


def _trimmed(joined: bytes) -> bytes:
    """Without the zeros at the end and their number."""
    end = len(joined) - TRAILER_BYTES
    return joined[: max(end - int.from_bytes(joined[end:], "big"), 0)]


def _xor(parts: Iterable[bytes], size: int) -> bytes:
    """The exclusive or of all parts, which are meant to have `size` bytes."""
    total = 0
    for part in parts:
        total ^= int.from_bytes(part[:size], "little")
    return total.to_bytes(size, "little")
