"""One connection's trains: its packets that are larger than a datagram, on their way out and in."""

from __future__ import annotations

from collections.abc import Iterable

from proxy_vpn.addresses import Address
from proxy_vpn.net.demux import LinkReceiver
from proxy_vpn.net.engine import LONG_HEADER_BIT
from proxy_vpn.net.udp import Path
from proxy_vpn.wire.segments import Segments, alone
from proxy_vpn.wire.train import Joiner, Splitter

PARITY_S = 5.0
JOINERS_LIMIT = 16
_LONG_HEADER = bytes((LONG_HEADER_BIT,))


class Trains:
    """Splits what leaves and joins what comes, for `link`, which takes the packets.

    While `until` is ahead, each train has a parity: the line is said to lose datagrams at random.
    """

    def __init__(self, link: LinkReceiver) -> None:
        self._link = link
        self._splitter = Splitter()
        self._joiner = Joiner()
        self._parity_until = -1.0

    @property
    def repaired(self) -> int:
        """How many datagrams that were lost on their way here a parity has replaced."""
        return self._joiner.repaired

    def expect_losses(self, now: float) -> None:
        """Datagrams were lost that no full queue explains, or a parity was of use: it is worth sending for a while."""
        self._parity_until = now + PARITY_S

    def split(self, packets: Iterable[bytes], datagram_bytes: int, now: float) -> list[bytes]:
        """The datagrams that carry these packets, each packet's laid end to end."""
        parity, split = now < self._parity_until, self._splitter.split
        trains = (p if len(p) <= datagram_bytes else split(p, datagram_bytes, parity) for p in packets)
        return [train for train in trains if train]

    def receive(self, segments: Segments, path: Path) -> None:
        """Take datagrams of trains; LinkReceiver."""
        for packets in self._joiner.feed(segments):
            self._link.receive(packets, path)

    def settle(self) -> None:
        """All of this turn's datagrams have been received; LinkReceiver."""
        self._link.settle()


class Parts:
    """What sealed datagrams hold: handshake datagrams, or parts of some that are too large for one (wire.train)."""

    def __init__(self) -> None:
        self._joiners: dict[str, Joiner] = {}

    def whole(self, opened: bytes, source: Address) -> list[bytes]:
        """The handshake datagrams that are there now; each source has a joiner of its own."""
        if opened[:1] >= _LONG_HEADER or not opened:
            return [opened]
        joiner = self._joiners.get(source.ip)
        if joiner is None:
            if len(self._joiners) >= JOINERS_LIMIT:
                del self._joiners[next(iter(self._joiners))]
            joiner = self._joiners[source.ip] = Joiner(long_headers=True)
        return [packet.data for packet in joiner.feed(alone(opened))]
