"""The peers of one network: who they are, what we call them, and what to remember of them.

A name belongs to the first identity that bore it (the pin). Another identity under a pinned name, or under this
machine's own, is shown as `name-ab12` and never replaces the first; `forget` gives the name free for a reinstalled
machine, and the next one that comes with it takes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy_vpn.addresses import Address, valid_name
from proxy_vpn.errors import UsageError
from proxy_vpn.keys import short_id
from proxy_vpn.ranges import Network

if TYPE_CHECKING:
    from proxy_vpn.mesh.session import Session

PEERS_LIMIT = 4096
ADDRESSES_REMEMBERED = 8
PINS_PER_PEER = 4
NAME_LIMIT_CHARS = 32


@dataclass(slots=True, eq=False)
class Peer:
    """Another device of the network; `name` is what we call it, `claimed` what it calls itself.

    `last_seen` and `since` (of the present state) are Unix seconds, `lost_at` is the loop's clock; `left`: it said
    goodbye. `routes` and `is_exit`: what it offered to lead to, when it was last here.
    """

    identity: bytes
    name: str
    claimed: str
    network: str
    addresses: list[Address] = field(default_factory=list)
    last_seen: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0
    sessions: list[Session] = field(default_factory=list)
    since: float = 0.0
    lost_at: float = 0.0
    left: bool = False
    record: bytes = b""
    routes: tuple[Network, ...] = ()
    is_exit: bool = False

    @property
    def session(self) -> Session | None:
        """The session that takes new flows, if the peer is live."""
        return self.sessions[0] if self.sessions else None

    def remember(self, address: Address) -> None:
        """The peer was reached there: the address to try first next time."""
        if address in self.addresses:
            self.addresses.remove(address)
        self.addresses.insert(0, address)
        del self.addresses[ADDRESSES_REMEMBERED:]


class Roster:
    """All peers known in one network, by identity and by name."""

    def __init__(self, network: str, own_name: str = "") -> None:
        self._network = network
        self._own_name = own_name
        self._forgotten: set[bytes] = set()
        self._by_identity: dict[bytes, Peer] = {}
        self.pins: dict[str, bytes] = {}

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._by_identity.values()))

    def __len__(self) -> int:
        return len(self._by_identity)

    def get(self, identity: bytes) -> Peer | None:
        return self._by_identity.get(identity)

    def find(self, name: str) -> Peer | None:
        """The peer we call so."""
        return next((peer for peer in self._by_identity.values() if peer.name == name), None)

    def load(self, identity: bytes, name: str, addresses: list[Address], last_seen: float) -> Peer:
        """A peer remembered from an earlier run; a name is its own only where a pin says so."""
        peer = self._know(identity, _valid(identity, name))
        peer.addresses, peer.last_seen = addresses[:ADDRESSES_REMEMBERED], last_seen
        return peer

    def meet(self, identity: bytes, claimed: str) -> Peer:
        """The peer with this identity, here in person: a free name is its own from now on (the pin).

        A claim that is no valid name becomes `peer-ab12`.
        """
        claimed = _valid(identity, claimed)
        self._forgotten.discard(identity)
        if claimed != self._own_name and self.pins.setdefault(claimed, identity) == identity:
            self._bound_pins(identity)
        for other in self._by_identity.values():
            if other.name == claimed and other.identity != identity and self.pins.get(claimed) == identity:
                other.name = _suffixed(other.identity, claimed)
        return self._know(identity, claimed)

    def hear_of(self, identity: bytes, claimed: str) -> Peer | None:
        """The peer that others speak of; it owns no name yet. None for a forgotten one, until it comes itself."""
        if identity in self._forgotten:
            return None
        return self._by_identity.get(identity) or self._know(identity, _valid(identity, claimed))

    def _know(self, identity: bytes, claimed: str) -> Peer:
        name = self._name_for(identity, claimed)
        peer = self._by_identity.get(identity)
        if peer is None:
            peer = self._by_identity[identity] = Peer(identity, name, claimed, self._network)
            self._bound(identity)
        else:
            peer.name, peer.claimed = name, claimed
        return peer

    def _name_for(self, identity: bytes, claimed: str) -> str:
        owner = self.pins.get(claimed)
        taken = any(peer.name == claimed and peer.identity != identity for peer in self._by_identity.values())
        free = owner is None and not taken and claimed != self._own_name
        return claimed if owner == identity or free else _suffixed(identity, claimed)

    def _drop_pins(self, identity: bytes) -> None:
        self.pins = {name: owner for name, owner in self.pins.items() if owner != identity}

    def _bound_pins(self, identity: bytes) -> None:
        """A peer that changes its name keeps the last ones from others."""
        names = [name for name, owner in self.pins.items() if owner == identity]
        for name in names[:-PINS_PER_PEER]:
            del self.pins[name]

    def _bound(self, newcomer: bytes) -> None:
        """Forget whom we have not seen for longest; never the one that is just being met."""
        if len(self._by_identity) > PEERS_LIMIT:
            idle = (peer for peer in self._by_identity.values() if not peer.sessions and peer.identity != newcomer)
            oldest = min(idle, key=lambda peer: peer.last_seen)
            del self._by_identity[oldest.identity]
            self._drop_pins(oldest.identity)

    def forget(self, name: str) -> Peer:
        """Give a name free: its pin and what is remembered go; raises UsageError for a name nobody has."""
        peer = self.find(name)
        identity = peer.identity if peer is not None else self.pins.get(name)
        if identity is None:
            raise UsageError(f"no peer is called {name!a}", "see 'pvpn peers' for the names")
        self._drop_pins(identity)
        if len(self._forgotten) < PEERS_LIMIT:
            self._forgotten.add(identity)
        forgotten = self._by_identity.pop(identity, None)
        for other in self._by_identity.values():
            if other.claimed == name and other.sessions:
                self.meet(other.identity, name)
        return forgotten or Peer(identity, name, name, self._network)


def _valid(identity: bytes, claimed: str) -> str:
    return claimed if valid_name(claimed) else f"peer-{short_id(identity)}"


def _suffixed(identity: bytes, claimed: str) -> str:
    suffix = f"-{short_id(identity)}"
    return claimed[: NAME_LIMIT_CHARS - len(suffix)] + suffix
