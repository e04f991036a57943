"""One iterative lookup: who to ask next, and what came back. Event-driven, on kademlia's NodeHeap.

    start ──next_query──> asked ──receive──> answered     (its nodes join the shortlist)
                            ├──0.5 s──> slow ──1 s──> late     (its slot is free again, its answer welcome)
                            └──fail──> failed

Done when the K nearest of the others have answered; where there are fewer than K, slow ones are waited for.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from kademlia.node import Node, NodeHeap

from proxy_vpn.addresses import Address
from proxy_vpn.dht.ids import shared_bits, subnet
from proxy_vpn.dht.table import Contact, K
from proxy_vpn.wire.krpc import ID_BYTES, Call, FindNode, GetPeers, Reply

IN_FLIGHT = 5
IN_FLIGHT_AT_START = 12
SLOT_S = 0.5
GRACE_S = 1.0
SHORTLIST = 100
NODES_PER_REPLY = 16
VALUES_PER_SOURCE = 16
MAX_VALUES = 512
MAX_ASKED = 250
WIDE = 20
CROWDED_BITS = 6
CROWDED_SUBNETS = 5


class Step(Enum):
    """How far the lookup is with one node."""

    NEW = auto()
    ASKED = auto()
    SLOW = auto()
    LATE = auto()
    ANSWERED = auto()
    FAILED = auto()


@dataclass(slots=True)
class Seat:
    """One node of the shortlist."""

    contact: Contact
    step: Step = Step.NEW
    slow_at: float = 0.0
    token: bytes | None = None
    answers: int = 0
    values: int = 0


@dataclass(frozen=True, slots=True)
class Holder:
    """A node that answered get_peers, and the token it gave for an announce; `missed`: polls unanswered since."""

    contact: Contact
    token: bytes | None
    missed: int = 0


class Shortlist(NodeHeap):  # type: ignore[misc]
    """The SHORTLIST nodes nearest to a target, each endpoint once."""

    heap: list[tuple[int, Contact]]

    def __init__(self, target: bytes) -> None:
        super().__init__(Node(target), SHORTLIST)
        self.seats: dict[Address, Seat] = {}

    def push(self, nodes: Iterable[Contact]) -> None:
        for contact in nodes:
            if contact.address in self.seats:
                continue
            self.seats[contact.address] = Seat(contact)
            heapq.heappush(self.heap, (self.node.distance_to(contact), contact))
        if len(self.heap) > self.maxsize:
            self._cut()

    def move(self, address: Address, node_id: bytes) -> None:
        """Give the node at `address` the id it turned out to have."""
        seat = self.seats[address]
        if seat.contact.id == node_id:
            return
        seat.contact = Contact(node_id, address)
        self.heap = [entry for entry in self.heap if entry[1].address != address]
        heapq.heapify(self.heap)
        heapq.heappush(self.heap, (self.node.distance_to(seat.contact), seat.contact))

    def in_order(self) -> list[Seat]:
        """Every seat, nearest first."""
        return [self.seats[contact.address] for contact in self]

    def _cut(self) -> None:
        kept = heapq.nsmallest(self.maxsize, self.heap)
        gone = {contact.address for _, contact in self.heap} - {contact.address for _, contact in kept}
        self.heap = kept
        for address in gone:
            # Who was asked already keeps a seat: its answer may still hold peers.
            if self.seats[address].step is Step.NEW:
                del self.seats[address]


class Lookup:
    """Find the nodes nearest to `target`, and its peers when `for_peers`.

    With `widen` False only `start` is asked. `want`: the families find_node asks for (BEP 32); replies of the
    other family are the caller's to use.
    """

    def __init__(
        self,
        target: bytes,
        start: Iterable[Contact],
        *,
        family: int,
        for_peers: bool,
        widen: bool = True,
        want: tuple[int, ...] = (),
    ) -> None:
        self.target = target
        self.family = family
        self.for_peers = for_peers
        self.widen = widen
        self._want = want
        self.asked = 0
        self.answered = 0
        self.finished = False
        self._list = Shortlist(target)
        self._list.push(start)
        self._values: set[Address] = set()
        self._silent_about_nodes: list[Seat] = []

    def next_query(self, now: float) -> tuple[Contact, Call] | None:
        """Whom to ask what right now, or None; the caller calls again until None."""
        if self.finished:
            return None
        if self._silent_about_nodes:
            return self._ask(self._silent_about_nodes.pop(), FindNode(self.target), now)
        flying = good = 0
        limit = IN_FLIGHT if self.answered and self.widen else IN_FLIGHT_AT_START
        for seat in self._list.in_order():
            if good >= K or flying >= limit or self.asked >= MAX_ASKED:
                return None
            self._settle(seat, now)
            if seat.step is Step.ANSWERED:
                good += 1
            elif seat.step is Step.ASKED:
                flying += 1
            elif seat.step is Step.NEW:
                call = GetPeers(self.target) if self.for_peers else FindNode(self.target, self._want)
                return self._ask(seat, call, now)
        return None

    def receive(self, address: Address, reply: Reply) -> list[Address]:
        """Take a reply (screened: what may be asked or dialled); returns the peers that are new. Late ones count."""
        seat = self._list.seats.get(address)
        if seat is None:
            return []
        self._list.move(address, reply.sender)
        self.answered += not seat.answers
        seat.answers += 1
        seat.step = Step.ANSWERED
        seat.token = reply.token or seat.token
        if self.widen and not self.finished:
            self._list.push(Contact(node.id, node.address) for node in (reply.nodes or ())[:NODES_PER_REPLY])
            if self.for_peers and reply.values and reply.nodes is None and self.answered < K:
                self._silent_about_nodes.append(seat)
        return self._new_values(seat, reply.values)

    def fail(self, address: Address) -> None:
        """The node at `address` gave no answer in time, or an error."""
        seat = self._list.seats.get(address)
        if seat is not None and seat.step is not Step.ANSWERED:
            seat.step = Step.ANSWERED if seat.answers else Step.FAILED

    def check_finished(self, now: float) -> bool:
        """Whether the lookup has just finished; True once."""
        if self.finished:
            return False
        seats = self._list.in_order()
        for seat in seats:
            self._settle(seat, now)
        near = [seat for seat in seats if seat.step not in (Step.FAILED, Step.SLOW, Step.LATE)][:K]
        nearest_answered = bool(near) and all(seat.step is Step.ANSWERED for seat in near)
        # With fewer than K answers a slow node may still lead on to others.
        complete = nearest_answered and (len(near) == K or not any(seat.step is Step.SLOW for seat in seats))
        idle = all(seat.step in (Step.ANSWERED, Step.FAILED) for seat in seats)
        spent = self.asked >= MAX_ASKED and not any(seat.step is Step.ASKED for seat in seats)
        self.finished = not self._silent_about_nodes and (complete or idle or spent)
        return self.finished

    def next_timer(self) -> float | None:
        """When a node becomes slow or late."""
        if self.finished:
            return None
        extra_s = {Step.ASKED: 0.0, Step.SLOW: GRACE_S}
        times = (seat.slow_at + extra_s[seat.step] for seat in self._list.in_order() if seat.step in extra_s)
        return min(times, default=None)

    def holders(self, home_bits: int) -> list[Holder]:
        """The nearest that answered: K, or WIDE when those K sit suspiciously close together.

        `home_bits` is how many leading bits our own K nearest neighbours share with us: the network's density.
        """
        answered = [seat for seat in self._list.in_order() if seat.answers]
        near = answered[:K]
        if len(near) == K and len(answered) > K:
            crowded = shared_bits(near[-1].contact.id, self.target) > home_bits + CROWDED_BITS
            if crowded or len({subnet(seat.contact.ip) for seat in near}) < CROWDED_SUBNETS:
                near = answered[:WIDE]
        return [Holder(seat.contact, seat.token) for seat in near]

    def _ask(self, seat: Seat, call: Call, now: float) -> tuple[Contact, Call]:
        seat.step, seat.slow_at = Step.ASKED, now + SLOT_S
        self.asked += 1
        return seat.contact, call

    @staticmethod
    def _settle(seat: Seat, now: float) -> None:
        if seat.step is Step.ASKED and now >= seat.slow_at:
            seat.step = Step.SLOW
        if seat.step is Step.SLOW and now >= seat.slow_at + GRACE_S:
            seat.step = Step.LATE

    def _new_values(self, seat: Seat, values: Iterable[Address]) -> list[Address]:
        new: list[Address] = []
        for value in values:
            if seat.values >= VALUES_PER_SOURCE or len(self._values) >= MAX_VALUES:
                break
            if value not in self._values:
                self._values.add(value)
                seat.values += 1
                new.append(value)
        return new


def unknown_contact(address: Address, target: bytes) -> Contact:
    """A contact for an endpoint whose id is not known: taken for the farthest from `target`."""
    return Contact(bytes(byte ^ 0xFF for byte in target[:ID_BYTES]), address)
