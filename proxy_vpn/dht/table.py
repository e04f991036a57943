"""The routing table: kademlia's buckets, holding only nodes that answered us, at most one per machine.

    never answered ──reply──> good ──15 min of silence──> questionable ──2 timeouts──> bad
                               ^─────────────reply──────────────┴────────────────────────┘

A full bucket splits only when it covers our own id; otherwise a newcomer waits as a replacement. `add_contact`
sends nothing: it returns the contact whose liveness should be checked, if any.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from enum import Enum

from kademlia.node import Node
from kademlia.routing import KBucket, RoutingTable

from proxy_vpn.addresses import Address
from proxy_vpn.dht.ids import host, id_fits

K = 8
REPLACEMENTS = 8
MAX_BUCKETS = 160
GOOD_S = 15 * 60.0
BAD_AFTER_FAILURES = 2
CHECK_PAUSE_S = 10.0


class State(Enum):
    """What a contact is worth (BEP 5)."""

    GOOD = "good"
    QUESTIONABLE = "questionable"
    BAD = "bad"


class Contact(Node):  # type: ignore[misc]
    """A node and what we know of it. `replied_at`: when it last answered us, or None."""

    def __init__(self, node_id: bytes, address: Address) -> None:
        super().__init__(node_id, address.ip, address.port)
        self.address = address
        self.host = host(address.ip)
        self.replied_at: float | None = None
        self.asked_at: float | None = None
        self.round_trip_s: float | None = None
        self.failures = 0

    def __lt__(self, other: Contact) -> bool:
        return self.address < other.address

    def state(self, now: float) -> State:
        if self.failures >= BAD_AFTER_FAILURES:
            return State.BAD
        if self.replied_at is not None and now - self.replied_at < GOOD_S:
            return State.GOOD
        return State.QUESTIONABLE

    def replied(self, now: float, round_trip_s: float | None = None) -> None:
        """Note an answer."""
        self.replied_at, self.failures = now, 0
        if round_trip_s is not None:
            self.round_trip_s = round_trip_s

    def failed(self) -> None:
        """Note a question that was not answered in time."""
        self.failures += 1


class Bucket(KBucket):  # type: ignore[misc]
    """Up to K contacts, least recently heard first, and REPLACEMENTS that wait for a place."""

    def __init__(self, lower: int, upper: int, k: int) -> None:
        super().__init__(lower, upper, k)
        self.max_replacement_nodes = REPLACEMENTS

    def touch_last_updated(self) -> None:
        """Nothing: liveness is each contact's own, told by the caller's clock."""

    def split(self) -> tuple[Bucket, Bucket]:
        middle = (self.range[0] + self.range[1]) // 2
        one, two = Bucket(self.range[0], middle, self.ksize), Bucket(middle + 1, self.range[1], self.ksize)
        for contact in self.everyone():
            (one if contact.long_id <= middle else two).add_node(contact)
        return one, two

    def everyone(self) -> Iterator[Contact]:
        yield from self.nodes.values()
        yield from self.replacement_nodes.values()

    def weakest(self, now: float, newcomer_fits: bool) -> Contact | None:
        """The contact that must give way to a newcomer: a bad one, else one whose id breaks BEP 42."""
        contacts = list(self.nodes.values())
        bad = next((contact for contact in contacts if contact.state(now) is State.BAD), None)
        if bad is not None or not newcomer_fits:
            return bad
        return next((contact for contact in contacts if not id_fits(contact.id, contact.ip)), None)

    def doubtful(self, now: float) -> Contact | None:
        """The contact most in need of a check, unless one was asked a moment ago."""
        contacts = [contact for contact in self.nodes.values() if contact.state(now) is not State.GOOD]
        if any(contact.asked_at is not None and now - contact.asked_at < CHECK_PAUSE_S for contact in contacts):
            return None
        return contacts[0] if contacts else None


class Table(RoutingTable):  # type: ignore[misc]
    """The contacts of one address family around our own id."""

    buckets: list[Bucket]

    def __init__(self, own_id: bytes) -> None:
        super().__init__(None, K, Node(own_id))

    def flush(self) -> None:
        self.buckets = [Bucket(0, 2**160 - 1, self.ksize)]
        self._by_host: dict[bytes, Contact] = {}

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)

    def __iter__(self) -> Iterator[Contact]:
        for bucket in self.buckets:
            yield from bucket.nodes.values()

    def get_bucket_for(self, node: Node) -> int:
        low, high = 0, len(self.buckets) - 1
        while low < high:
            middle = (low + high) // 2
            if node.long_id <= self.buckets[middle].range[1]:
                high = middle
            else:
                low = middle + 1
        return low

    def find(self, address: Address) -> Contact | None:
        """The contact at exactly this endpoint, replacements included."""
        contact = self._by_host.get(host(address.ip))
        return contact if contact is not None and contact.address == address else None

    def add_contact(self, contact: Contact, now: float) -> Contact | None:
        """Take in a contact that answered us; returns the contact to be pinged, or None."""
        if contact.replied_at is None or contact.long_id == self.node.long_id or not self._make_way(contact, now):
            return None
        bucket = self.buckets[self.get_bucket_for(contact)]
        self._by_host[contact.host] = contact
        while len(bucket) >= K and contact.id not in bucket.nodes and self._may_split(bucket):
            self.split_bucket(self.buckets.index(bucket))
            bucket = self.buckets[self.get_bucket_for(contact)]
        if len(bucket) >= K and contact.id not in bucket.nodes:
            weakest = bucket.weakest(now, id_fits(contact.id, contact.ip))
            if weakest is not None:
                self._drop(bucket, weakest)
        if bucket.add_node(contact):
            return None
        self._forget_overflow(bucket)
        doubtful: Contact | None = bucket.doubtful(now)
        return doubtful

    def remove_contact(self, node: Contact) -> None:
        bucket = self.buckets[self.get_bucket_for(node)]
        if self._by_host.get(node.host) is node:
            del self._by_host[node.host]
        bucket.remove_node(node)

    def has_room_for(self, contact: Contact, now: float) -> bool:
        """Whether it is worth a ping to learn if this unverified contact could join."""
        if contact.host in self._by_host or contact.long_id == self.node.long_id:
            return False
        bucket = self.buckets[self.get_bucket_for(contact)]
        return len(bucket) < K or self._may_split(bucket) or bucket.weakest(now, False) is not None

    def closest(self, target: bytes, now: float, count: int = K) -> list[Contact]:
        """Up to `count` contacts near `target`, nearest first; bad ones only when there are no others."""
        usable = [contact for contact in self if contact.state(now) is not State.BAD]
        return self._nearest(target, usable or self, count)

    def find_neighbors(self, node: Node, k: int | None = None, exclude: Node | None = None) -> list[Contact]:
        # kademlia's walk ends at the first side that runs out of buckets, so it may find none in a full table.
        others = (contact for contact in self if exclude is None or not contact.same_home_as(exclude))
        return self._nearest(node.id, others, k or self.ksize)

    def stalest(self, now: float, *, good_too: bool = False) -> Contact | None:
        """The contact that has not been heard or asked for the longest time, of those that are no longer good."""
        tired = [contact for contact in self if good_too or contact.state(now) is not State.GOOD]
        return min(tired, key=_last_touch, default=None)

    @staticmethod
    def _nearest(target: bytes, contacts: Iterable[Contact], count: int) -> list[Contact]:
        goal = Node(target)
        return heapq.nsmallest(count, contacts, key=goal.distance_to)

    def _may_split(self, bucket: Bucket) -> bool:
        covers_us: bool = bucket.has_in_range(self.node)
        return covers_us and len(self.buckets) < MAX_BUCKETS

    def _make_way(self, contact: Contact, now: float) -> bool:
        """Settle who holds this machine's and this id's single place; False if the newcomer is refused."""
        bucket = self.buckets[self.get_bucket_for(contact)]
        namesake: Contact | None = bucket.nodes.get(contact.id) or bucket.replacement_nodes.get(contact.id)
        for other in (self._by_host.get(contact.host), namesake):
            if other is None or other is contact:
                continue
            if other.address != contact.address and other.state(now) is not State.BAD:
                return False
            self.remove_contact(other)
        return True

    def _drop(self, bucket: Bucket, contact: Contact) -> None:
        del bucket.nodes[contact.id]
        if self._by_host.get(contact.host) is contact:
            del self._by_host[contact.host]

    def _forget_overflow(self, bucket: Bucket) -> None:
        # KBucket drops its oldest replacement by itself; the index must follow.
        if len(self._by_host) > len(self) + REPLACEMENTS * len(self.buckets):
            kept = {contact.host: contact for each in self.buckets for contact in each.everyone()}
            self._by_host = kept


def _last_touch(contact: Contact) -> float:
    return max(contact.replied_at or 0.0, contact.asked_at or 0.0)
