"""Datagrams that came in one read, all of one length but the last, which may be shorter.

A head is what a datagram begins with, HEAD_BYTES of it; its body is what follows. UDP GRO lays datagrams end to end. A
scattering read (readv(2)) lays heads and bodies apart: where many datagrams carry one packet (wire.train), that is in
one piece then.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Protocol

HEAD_BYTES = 13  # a train's header
_LENGTHS_REMEMBERED = 256


class Segments(Protocol):
    """What both have in common; indices count datagrams, and an end is not included."""

    @property
    def segment_bytes(self) -> int:
        """The length of each, but perhaps for the last."""

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def size(self) -> int:
        """The length of all together."""

    @property
    def data(self) -> bytes:
        """All, laid end to end."""

    def part(self, start: int, end: int) -> Segments:
        """Some of them."""

    def datagram(self, index: int) -> bytes:
        """One of them."""

    def head(self, index: int) -> bytes:
        """Of one, as far as it goes."""

    def heads(self, start: int, end: int, step: int, without: int) -> list[bytes]:
        """Of the first of every `step`, without so many bytes at the beginning."""

    def columns(self, start: int, end: int) -> list[bytes]:
        """The bytes at each of these places, of less than `segment_bytes`: of all heads that have one."""

    def bodies(self, start: int, end: int) -> bytes:
        """Laid end to end."""

    def cut_bodies(self, start: int, end: int, step: int, over: int) -> bytes:
        """The same without the last `over` bytes, less than a body, of every `step`th; none may be shorter."""

    def tails(self, start: int, end: int, step: int, size: int) -> list[bytes]:
        """The last `size` bytes, of its body, of every `step`th; none may be shorter."""


@dataclass(slots=True)
class Laid:
    """Datagrams laid end to end."""

    data: bytes
    segment_bytes: int

    @property
    def count(self) -> int:
        return -(-len(self.data) // self.segment_bytes)

    @property
    def size(self) -> int:
        return len(self.data)

    def part(self, start: int, end: int) -> Laid:
        return Laid(self.data[start * self.segment_bytes : end * self.segment_bytes], self.segment_bytes)

    def datagram(self, index: int) -> bytes:
        return self.data[index * self.segment_bytes : (index + 1) * self.segment_bytes]

    def head(self, index: int) -> bytes:
        start = index * self.segment_bytes
        return self.data[start : start + min(HEAD_BYTES, self.segment_bytes)]

    def heads(self, start: int, end: int, step: int, without: int) -> list[bytes]:
        data, size = self.data, self.segment_bytes
        return [data[at + without : at + HEAD_BYTES] for at in range(start * size, end * size, step * size)]

    def columns(self, start: int, end: int) -> list[bytes]:
        data, size = self.data, self.segment_bytes
        return [data[at::size] for at in range(start, end)]

    def bodies(self, start: int, end: int) -> bytes:
        data, size = self.data, self.segment_bytes
        return b"".join([data[at + HEAD_BYTES : at + size] for at in range(start * size, end * size, size)])

    def cut_bodies(self, start: int, end: int, step: int, over: int) -> bytes:
        data = self.data[start * self.segment_bytes : end * self.segment_bytes]
        return b"".join(chain.from_iterable(_bodies(self.segment_bytes, step, over).iter_unpack(data)))

    def tails(self, start: int, end: int, step: int, size: int) -> list[bytes]:
        data, several = self.data, step * self.segment_bytes
        first, last = start * self.segment_bytes, end * self.segment_bytes
        return [data[at - size : at] for at in range(first + several, last + 1, several)]


@dataclass(slots=True)
class Scattered:
    """Whole heads end to end, and bodies end to end: in the reader's own buffer, until it reads on."""

    starts: bytes
    rests: memoryview
    segment_bytes: int

    @property
    def count(self) -> int:
        return len(self.starts) // HEAD_BYTES

    @property
    def size(self) -> int:
        return len(self.starts) + len(self.rests)

    @property
    def data(self) -> bytes:
        return b"".join([self.datagram(index) for index in range(self.count)])

    def part(self, start: int, end: int) -> Scattered:
        size = self.segment_bytes - HEAD_BYTES
        starts = self.starts[start * HEAD_BYTES : end * HEAD_BYTES]
        return Scattered(starts, self.rests[start * size : end * size], self.segment_bytes)

    def datagram(self, index: int) -> bytes:
        return self.head(index) + self.bodies(index, index + 1)

    def head(self, index: int) -> bytes:
        return self.starts[index * HEAD_BYTES : (index + 1) * HEAD_BYTES]

    def heads(self, start: int, end: int, step: int, without: int) -> list[bytes]:
        starts, first, last = self.starts, start * HEAD_BYTES, end * HEAD_BYTES
        return [starts[at + without : at + HEAD_BYTES] for at in range(first, last, step * HEAD_BYTES)]

    def columns(self, start: int, end: int) -> list[bytes]:
        return [self.starts[at::HEAD_BYTES] for at in range(start, end)]

    def bodies(self, start: int, end: int) -> bytes:
        size = self.segment_bytes - HEAD_BYTES
        return bytes(self.rests[start * size : end * size])

    def cut_bodies(self, start: int, end: int, step: int, over: int) -> bytes:
        rests, size = self.rests, self.segment_bytes - HEAD_BYTES
        several = step * size
        return b"".join([rests[at : at + several - over] for at in range(start * size, end * size, several)])

    def tails(self, start: int, end: int, step: int, size: int) -> list[bytes]:
        rests, body_bytes = self.rests, self.segment_bytes - HEAD_BYTES
        several = step * body_bytes
        first, last = start * body_bytes, end * body_bytes
        return [bytes(rests[at - size : at]) for at in range(first + several, last + 1, several)]


def alone(datagram: bytes) -> Laid:
    """One datagram."""
    return Laid(datagram, len(datagram) or 1)


@lru_cache(maxsize=_LENGTHS_REMEMBERED)
def _bodies(segment_bytes: int, step: int, over: int) -> struct.Struct:
    """Of so many datagrams: their bodies, without `over` bytes of the last."""
    size = segment_bytes - HEAD_BYTES
    return struct.Struct(f"{HEAD_BYTES}x{size}s" * (step - 1) + f"{HEAD_BYTES}x{size - over}s{over}x")
