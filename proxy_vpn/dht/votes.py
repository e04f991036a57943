"""Our external address, by agreement of what nodes in different networks say they see (BEP 42's `ip`)."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TypeVar

from proxy_vpn.addresses import Address
from proxy_vpn.dht.ids import subnet

QUORUM = 3
MAX_VOTERS = 9
VOTE_LIFE_S = 15 * 60.0

Seen = TypeVar("Seen", str, Address)


class Votes:
    """The latest vote of each of the last MAX_VOTERS subnets (/24, /48)."""

    def __init__(self) -> None:
        self._votes: OrderedDict[bytes, tuple[float, Address]] = OrderedDict()

    def add(self, voter: Address, seen: Address, now: float) -> None:
        """`voter` saw us as `seen`. Ignored when it can't know: another family, or a narrower scope than its own."""
        if seen.family is not voter.family or seen.scope < voter.scope or not seen.is_unicast:
            return
        key = subnet(voter.ip)
        self._votes[key] = (now, seen)
        self._votes.move_to_end(key)
        if len(self._votes) > MAX_VOTERS:
            self._votes.popitem(last=False)
        while self._votes and now - next(iter(self._votes.values()))[0] > VOTE_LIFE_S:
            self._votes.popitem(last=False)

    def clear(self) -> None:
        """Forget all votes: the network changed."""
        self._votes.clear()

    @property
    def ip(self) -> str | None:
        """The external IP that a majority and at least QUORUM subnets agree on."""
        return _agreed(Counter(seen.ip for _, seen in self._votes.values()))

    @property
    def address(self) -> Address | None:
        """The external endpoint, when they agree on its port too."""
        return _agreed(Counter(seen for _, seen in self._votes.values()))

    @property
    def symmetric(self) -> bool:
        """Whether they agree on the IP and not on the port: a NAT that maps each destination apart."""
        return self.ip is not None and self.address is None


def _agreed(votes: Counter[Seen]) -> Seen | None:
    for candidate, count in votes.most_common(1):
        if count >= QUORUM and count * 2 > votes.total():
            return candidate
    return None
