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

from collections.abc import Iterable, Iterator, Sequence

from proxy_vpn.wire.segments import HEAD_BYTES, Laid, Segments

CONNECTION_ID_BYTES = 8
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
        size = datagram_bytes - HEAD_BYTES
        count = -(-(len(packet) + TRAILER_BYTES) // size)
        if count > COUNT_LIMIT:
            return b""
        padding = count * size - len(packet) - TRAILER_BYTES
        if padding > size // PADDING_SHARE and size - padding >= TRAILER_BYTES and not parity:
            padding = 0
        end = bytes(padding) + padding.to_bytes(TRAILER_BYTES, "big")
        if len(packet) < (count - 1) * size:  # the end begins a part earlier
            packet, end = packet + end[:1], end[1:]
        view = memoryview(packet)
        self._number = (self._number + 1) % _NUMBERS
        head = _FIXED_BIT + _train_of(packet) + self._number.to_bytes(3, "big")
        pieces: list[bytes | memoryview] = [head] * (3 * count)
        pieces[1::3] = _PLACES[count]
        pieces[2::3] = [view[start : start + size] for start in range(0, count * size, size)]
        pieces.append(end)
        if parity:
            *parts, last = pieces[2::3]
            pieces += (head, bytes(((count << 4) | count,)), _xor((*parts, bytes(last) + end), size))
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
        self._done: set[bytes] = set()
        self._done_before: set[bytes] = set()

    def feed(self, segments: Segments) -> Iterator[Laid]:
        """Whole packets that datagrams of trains make."""
        run: list[bytes] = []
        for packets, packet_bytes in self._own_packets(segments):
            several = len(packets) > packet_bytes
            if run and (several or packet_bytes > len(run[0])):
                yield Laid(b"".join(run), len(run[0]))
                run = []
            if several:
                yield Laid(packets, packet_bytes)
                continue
            run.append(packets)
            if packet_bytes < len(run[0]):
                yield Laid(b"".join(run), len(run[0]))
                run = []
        if run:
            yield Laid(b"".join(run), len(run[0]))

    def _own_packets(self, segments: Segments) -> Iterator[tuple[bytes, int]]:
        """One or several of a length, of the connections whose trains brought them."""
        for train, packets, packet_bytes in self._packets(segments):
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

    def _packets(self, segments: Segments) -> Iterator[tuple[bytes, bytes, int]]:
        """Whose trains, one or several packets of a length, and that length."""
        if not HEAD_BYTES < segments.segment_bytes <= DATAGRAM_LIMIT_BYTES:
            return
        numbers, places = segments.columns(_NUMBER_END - 1, _PLACE + 1)
        at, full, body_bytes = 0, segments.size // segments.segment_bytes, segments.segment_bytes - HEAD_BYTES
        while at < len(places):
            head = segments.head(at)
            train, count = head[_ID_AT:_ID_END], places[at] & 15
            many = _whole_trains(places, numbers, at, count, full)
            if many:
                start, at = at, at + many * count
                self._finished(segments.heads(start, at, count, _ID_AT))
                for packets, packet_bytes in _joined(segments, start, at, count):
                    yield train, packets, packet_bytes
                continue
            parts = _successive(segments, places, at)
            name = head[_ID_AT:_NUMBER_END] + bytes((count,))
            packet = self._add(name, places[at] >> 4, segments.bodies(at, at + parts), body_bytes)
            if packet is not None:
                yield train, packet, len(packet)
            at += parts

    def _add(self, name: bytes, index: int, bodies: bytes, body_bytes: int) -> bytes | None:
        """The packet that these successive parts complete; `name`: the connection's ID, number and count."""
        count = name[-1]
        if index > count or count < 2 or not bodies:
            return None
        if len(bodies) > (count - 1) * body_bytes:  # whole: whatever came under its name before
            self._finished([name])
            return _trimmed(bodies)
        if name in self._done or name in self._done_before:
            return None
        while len(self._pending) >= PENDING_LIMIT or self._held_bytes + len(bodies) > PENDING_BYTES:
            self._drop(next(iter(self._pending)))
        pending = self._pending.get(name)
        if pending is None:
            pending = self._pending[name] = _Pending(count)
        self._held_bytes -= pending.size
        pending.add(index, bodies, body_bytes)
        self._held_bytes += pending.size
        if not pending.is_complete:
            return None
        self._finished([name])
        if pending.lacks_one:
            self.repaired += 1
        return pending.join()

    def _drop(self, name: bytes) -> None:
        self._held_bytes -= self._pending.pop(name).size

    def _finished(self, names: Sequence[bytes]) -> None:
        """What still comes of the trains of these names is not the beginning of others."""
        if self._pending:
            for name in self._pending.keys() & names:
                self._drop(name)
        if len(self._done) >= _DONE_REMEMBERED:
            self._done_before, self._done = self._done, set()
        self._done.update(names)


def _whole_trains(places: bytes, numbers: bytes, at: int, count: int, full: int) -> int:
    """How many trains of `count` parts follow, whole and in order, as they come where nothing is lost; at first all.

    `places`, `numbers`: the index and count, and the number's last byte, of each datagram; `full`: how many are not
    shorter. A look at two bytes of each datagram.
    """
    there = (full - at) // count if count > 1 else 0
    for many in (there, 1) if there else ():
        end = at + many * count
        if places[at:end] == _ORDERS[count] * many and numbers[at:end] == b"".join(
            [numbers[i : i + 1] * count for i in range(at, end, count)]
        ):
            return many
    return 0


def _successive(segments: Segments, places: bytes, at: int) -> int:
    """How many datagrams from this one on bring parts of one train, one after the other; at least itself."""
    index, count = places[at] >> 4, places[at] & 15
    parts = min(count - index, len(places) - at)
    if parts < 2:
        return 1
    there, expected = places[at : at + parts], _ORDERS[count][index : index + parts]
    if there != expected:
        parts = next(number for number in range(parts) if there[number] != expected[number])
    names = {head[:-1] for head in segments.heads(at, at + parts, 1, _ID_AT)}
    return parts if len(names) == 1 else 1


def _joined(segments: Segments, start: int, end: int, count: int) -> list[tuple[bytes, int]]:
    """The packets of whole trains of `count` parts, laid end to end if they are of one length, and that length."""
    trailers = set(segments.tails(start, end, count, TRAILER_BYTES))
    if len(trailers) == 1:
        over, body_bytes = _over(trailers.pop()), segments.segment_bytes - HEAD_BYTES
        if over < body_bytes:
            return [(segments.cut_bodies(start, end, count, over), count * body_bytes - over)]
    packets = [_trimmed(segments.bodies(first, first + count)) for first in range(start, end, count)]
    return [(packet, len(packet)) for packet in packets]


def _train_of(packet: bytes) -> bytes:
    at = _LONG_ID_AT if packet[0] & _LONG_BIT else _ID_AT
    return train_id(packet[at : at + CONNECTION_ID_BYTES])


class _Pending:
    """What came of one train so far: bodies of successive parts, by the first one's index."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._runs: dict[int, tuple[bytes, int]] = {}
        self._there = 0  # a bit for each part
        self.size = 0

    def add(self, index: int, bodies: bytes, body_bytes: int) -> None:
        """Take those of them that are not there: from this index on, each of so many bytes but perhaps the last."""
        parts = -(-len(bodies) // body_bytes)
        mask = ((1 << parts) - 1) << index
        if not mask & self._there:
            self._runs[index] = bodies, body_bytes
            self._there |= mask
            self.size += len(bodies)
        elif parts > 1:
            for later, body in enumerate(cut(bodies, body_bytes), index):
                self.add(later, body, body_bytes)

    @property
    def is_complete(self) -> bool:
        return self._there.bit_count() >= self._count

    @property
    def lacks_one(self) -> bool:
        """Of those that are complete, whether the parity stands for a part."""
        return self._there.bit_count() == self._count and bool(self._there >> self._count)

    def join(self) -> bytes:
        """The packet, or something that is none if its parts do not fit together."""
        if self.lacks_one:
            return _trimmed(b"".join(self._repaired()))
        self._runs.pop(self._count, None)
        return _trimmed(b"".join([self._runs[index][0] for index in sorted(self._runs)]))

    def _repaired(self) -> list[bytes]:
        """All parts, one of them from the others and the parity."""
        parts = {index: body for first, run in self._runs.items() for index, body in enumerate(cut(*run), first)}
        parity = parts.pop(self._count)
        (missing,) = set(range(self._count)) - parts.keys()
        parts[missing] = _xor((parity, *parts.values()), len(parity))
        return [parts[index] for index in range(self._count)]


def _over(trailer: bytes) -> int:
    """How much at the end is not the packet's."""
    return int.from_bytes(trailer, "big") + TRAILER_BYTES


def _trimmed(joined: bytes) -> bytes:
    """Without the zeros at the end and their number."""
    return joined[: max(len(joined) - _over(joined[-TRAILER_BYTES:]), 0)]


def _xor(parts: Iterable[bytes | memoryview], size: int) -> bytes:
    """The exclusive or of all parts, which are meant to have `size` bytes."""
    total = 0
    for part in parts:
        total ^= int.from_bytes(part[:size], "little")
    return total.to_bytes(size, "little")
