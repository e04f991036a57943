"""One address family's half of a node (BEP 32): its id, table, votes, and what it remembers for the next start."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from itertools import chain

from proxy_vpn.addresses import Address
from proxy_vpn.dht.ids import Entropy, distance, id_fits, make_id, shared_bits
from proxy_vpn.dht.lookup import Holder, unknown_contact
from proxy_vpn.dht.table import Contact, K, State, Table
from proxy_vpn.dht.votes import Votes
from proxy_vpn.wire.krpc import ID_BYTES, NodeInfo

MAX_CACHED = 200
MAX_BOOTSTRAP = 32
MAX_CANDIDATES = 64
MAX_CLOSEST = 8
MISSES_MAX = 2
ENOUGH_GOOD = 4
BOOTSTRAP_FIRST_S = 10.0
BOOTSTRAP_MAX_S = 300.0
REFRESH_S = 10.0
REFRESH_HUNGRY_S = 0.5
REFRESH_MAX_S = 300.0
QUIET_S = 20.0
ONLINE_S = 30.0
SILENT_AFTER = 12
TOKEN_LIFE_S = 5 * 60.0


@dataclass(frozen=True, slots=True)
class Closest:
    """The nodes found nearest to an info_hash, and when."""

    at: float
    holders: tuple[Holder, ...]

    def tokens_fresh(self, now: float) -> bool:
        return now - self.at < TOKEN_LIFE_S


class Half:
    """The state of one family; sends nothing itself."""

    def __init__(self, family: int, entropy: Entropy, now: float, own_id: bytes | None = None) -> None:
        self.family = family
        self.table = Table(own_id or entropy(ID_BYTES))
        self.votes = Votes()
        self.external: Address | None = None
        self.bootstrap: OrderedDict[Address, None] = OrderedDict()
        self.bootstrap_reached = False
        self.candidates: deque[NodeInfo] = deque(maxlen=MAX_CANDIDATES)
        self.bootstrap_at = now
        self.refresh_at = now
        self.heard_at: float | None = None
        self._entropy = entropy
        self._unanswered = 0
        self._refresh_pause_s = REFRESH_S
        self._bootstrap_pause_s = BOOTSTRAP_FIRST_S
        self._cached: OrderedDict[Address, Contact] = OrderedDict()
        self._closest: OrderedDict[bytes, Closest] = OrderedDict()

    @property
    def id(self) -> bytes:
        own_id: bytes = self.table.node.id
        return own_id

    def heard(self, node_id: bytes, address: Address, now: float, round_trip_s: float | None) -> Contact | None:
        """A node answered us: keep it. Returns a contact to be pinged, if the table doubts one."""
        self.bootstrap_reached |= address in self.bootstrap
        self.heard_at, self._unanswered = now, 0
        if self._refresh_pause_s > REFRESH_S:
            self._refresh_pause_s, self.refresh_at = REFRESH_S, min(self.refresh_at, now + REFRESH_S)
        contact = self.table.find(address)
        if contact is None or contact.id != node_id:
            contact = Contact(node_id, address)
        contact.replied(now, round_trip_s)
        self._cached.pop(address, None)
        return self.table.add_contact(contact, now)

    def failed(self, address: Address, now: float) -> None:
        """A node did not answer, which is its fault only if others do."""
        self._unanswered += 1
        if not self._online(now):
            if not self.silent(now):
                self.refresh_at = min(self.refresh_at, now + REFRESH_HUNGRY_S)
            return
        contact = self.table.find(address)
        if contact is not None:
            contact.failed()
        self._cached.pop(address, None)

    def consider(self, node: NodeInfo, now: float) -> None:
        """Somebody mentioned a node; it is pinged later if the table has room for it."""
        if self.table.has_room_for(Contact(node.id, node.address), now):
            self.candidates.append(node)
            if self.refresh_at > now + REFRESH_HUNGRY_S and self.good(now) < K:
                self.refresh_at = now + REFRESH_HUNGRY_S

    def cache(self, node: NodeInfo) -> None:
        """Remember a node of an earlier run."""
        if len(self._cached) < MAX_CACHED:
            self._cached[node.address] = Contact(node.id, node.address)

    def cached(self) -> list[Contact]:
        """Nodes of an earlier run that neither answered nor failed yet."""
        return list(self._cached.values())

    def start_nodes(self, target: bytes, now: float) -> list[Contact]:
        """Whom a lookup asks first: what we know near `target`; strangers and bootstrap nodes while we know few."""
        known = self.table.closest(target, now)
        found = {contact.address: contact for contact in known}
        if (closest := self._closest.get(target)) is not None:
            found |= {holder.contact.address: holder.contact for holder in closest.holders}
        if self.good(now) < K:
            nearest = sorted(self._cached.values(), key=lambda contact: distance(contact.id, target))[:K]
            strangers = (unknown_contact(address, target) for address in self.bootstrap)
            for contact in chain(nearest, strangers):
                found.setdefault(contact.address, contact)
        return list(found.values())

    def silent(self, now: float) -> bool:
        """Whether all who were asked lately, several times, left it unanswered: the DHT is out of reach."""
        return self._unanswered >= SILENT_AFTER and not self._online(now)

    def good(self, now: float) -> int:
        """How many contacts are good; none while nobody answers."""
        return 0 if self.silent(now) else sum(contact.state(now) is State.GOOD for contact in self.table)

    def home_bits(self, now: float) -> int:
        """How many leading bits our K nearest neighbours share with our id; all of them while we know too few."""
        near = self.table.closest(self.id, now)
        return shared_bits(near[-1].id, self.id) if len(near) == K else ID_BYTES * 8

    def remember_closest(self, info_hash: bytes, holders: list[Holder], now: float) -> None:
        """Keep the outcome of a lookup; finding nothing while others answer means the old outcome is stale."""
        if not holders and not self._online(now):
            return
        self._closest.pop(info_hash, None)
        if holders:
            self._closest[info_hash] = Closest(now, tuple(holders))
        if len(self._closest) > MAX_CLOSEST:
            self._closest.popitem(last=False)

    def remember_poll(self, info_hash: bytes, holders: list[Holder], now: float) -> None:
        """Keep the outcome of re-asking: who missed one poll stays, for datagrams get lost, who missed two goes."""
        previous = self._closest.get(info_hash)
        if previous is None or not self._online(now):
            return
        answered = {holder.contact.address: holder for holder in holders}
        merged = [
            answered.get(holder.contact.address) or replace(holder, token=None, missed=holder.missed + 1)
            for holder in previous.holders[:K]
        ]
        kept = [holder for holder in merged if holder.missed < MISSES_MAX]
        # When most are gone, the next search starts afresh.
        self.remember_closest(info_hash, kept if len(answered) * 2 >= len(merged) else [], now)

    def closest(self, info_hash: bytes) -> Closest | None:
        """The latest outcome for this info_hash."""
        return self._closest.get(info_hash)

    def closest_sets(self) -> dict[bytes, tuple[NodeInfo, ...]]:
        """All remembered outcomes as plain nodes."""
        return {
            info_hash: tuple(NodeInfo(holder.contact.id, holder.contact.address) for holder in closest.holders)
            for info_hash, closest in self._closest.items()
        }

    def best_nodes(self, now: float) -> list[NodeInfo]:
        """Up to MAX_CACHED nodes worth knowing, the good ones first, those of an earlier run last."""
        rank = {State.GOOD: 0, State.QUESTIONABLE: 1, State.BAD: 2}
        contacts = sorted(self.table, key=lambda contact: (rank[contact.state(now)], contact.failures))
        return [NodeInfo(contact.id, contact.address) for contact in chain(contacts, self._cached.values())][
            :MAX_CACHED
        ]

    def bootstrap_due(self, now: float) -> bool:
        """Whether to look for neighbours now; a True pushes the next time away."""
        if now < self.bootstrap_at:
            return False
        if self.good(now) >= ENOUGH_GOOD:
            self._bootstrap_pause_s = BOOTSTRAP_FIRST_S
            self.bootstrap_at = now + BOOTSTRAP_FIRST_S
            return False
        self.bootstrap_at = now + self._bootstrap_pause_s * self._jitter()
        self._bootstrap_pause_s = min(self._bootstrap_pause_s * 2, BOOTSTRAP_MAX_S)
        return True

    def refresh_target(self, now: float) -> Contact | None:
        """Whom to ask now to keep the table alive, if that is due: the stalest contact, else a candidate.

        When nothing was heard for a while also a good one, to notice that the DHT is gone: first again and again,
        and once nobody answers ever more seldom.
        """
        if now < self.refresh_at:
            return None
        quiet = self.heard_at is not None and now - self.heard_at > QUIET_S
        if self.silent(now):
            hungry = False
            self._refresh_pause_s = min(self._refresh_pause_s * 2, REFRESH_MAX_S)
        elif quiet:
            hungry = self._unanswered > 0
        else:
            hungry = bool(self.candidates) and self.good(now) < K
        self.refresh_at = now + (REFRESH_HUNGRY_S if hungry else self._refresh_pause_s) * self._jitter()
        stalest = self.table.stalest(now, good_too=quiet)
        while stalest is None and self.candidates:
            node = self.candidates.popleft()
            contact = Contact(node.id, node.address)
            if self.table.has_room_for(contact, now):
                return contact
        return stalest

    def settle_id(self, now: float) -> bool:
        """Take a new id if the agreed external IP asks for one (BEP 42), keeping the contacts; True if changed."""
        ip = self.votes.ip
        if ip is None or id_fits(self.id, ip):
            return False
        contacts = list(self.table)
        self.table = Table(make_id(ip, self._entropy))
        for contact in contacts:
            self.table.add_contact(contact, now)
        return True

    def _online(self, now: float) -> bool:
        return self.heard_at is not None and now - self.heard_at < ONLINE_S

    def _jitter(self) -> float:
        return 0.8 + self._entropy(1)[0] / 640
