"""A Mainline DHT node without I/O: datagrams and the time go in, datagrams and events come out.

    receive(datagram, source, now) ─┐                    ┌─> datagrams()
    search, announce, add_nodes ────┼─> poll(now) ───────┼─> events()
    next_timer(now) <── the driver ─┘                    └─> next_timer(now)

Read-only by default (BEP 43): it asks and never answers. With `serve` it answers like any other node.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from proxy_vpn.addresses import Address
from proxy_vpn.dht import saved as memory
from proxy_vpn.dht.announces import Rounds
from proxy_vpn.dht.events import Event, ExternalAddress, LookupDone, PeersFound
from proxy_vpn.dht.half import MAX_BOOTSTRAP, Half
from proxy_vpn.dht.ids import Entropy, family_of
from proxy_vpn.dht.limits import Pacer
from proxy_vpn.dht.lookup import Holder, Lookup
from proxy_vpn.dht.pending import Pending, Question
from proxy_vpn.dht.screen import screened
from proxy_vpn.dht.server import Server
from proxy_vpn.dht.table import Contact, K
from proxy_vpn.errors import WireError
from proxy_vpn.wire.krpc import (
    ID_BYTES,
    AnnouncePeer,
    Call,
    Failure,
    FindNode,
    NodeInfo,
    Ping,
    Query,
    Reply,
    decode,
    encode,
    is_query_shaped,
    looks_like_krpc,
)

MAX_QUEUED = 256
MAX_LOOKUPS = 32
MAX_EVENTS = 1024
MAX_OUTBOX = 1024
START_PINGS = 30


@dataclass(frozen=True, slots=True)
class Settings:
    """`families`: any of 4 and 6. `version`: BEP 5's `v`; none by default, or any node could list our users."""

    families: tuple[int, ...] = (4, 6)
    serve: bool = False
    version: bytes = b""


@dataclass(frozen=True, slots=True)
class _Errand:
    """A single question that waits for its turn."""

    address: Address
    call: Call
    announce: int | None = None


class DhtNode:
    """One node in the IPv4 and the IPv6 DHT."""

    def __init__(self, settings: Settings, entropy: Entropy, now: float, saved: memory.Saved | None = None) -> None:
        saved = saved or memory.Saved()
        self.settings = settings
        self.halves = {family: Half(family, entropy, now, saved.own_id(family)) for family in settings.families}
        self.server = Server(entropy, now) if settings.serve else None
        self._entropy = entropy
        self._pending = Pending(entropy)
        self._pacer = Pacer(now)
        self._lookups: list[Lookup] = []
        self._errands: deque[_Errand] = deque()
        self._rounds = Rounds()
        self._outbox: deque[tuple[bytes, Address]] = deque()
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._recall(saved, now)

    # What comes in

    def receive(self, datagram: bytes, source: Address, now: float) -> bool:
        """Take a datagram that came from `source`; False if it was dropped, not understood or not awaited."""
        half = self.halves.get(family_of(source))
        if half is None or not looks_like_krpc(datagram):
            return False
        # Decided before decoding, so that a flood costs next to nothing.
        if is_query_shaped(datagram):
            if self.server is None:
                return False
        elif not self._pending.expects(source):
            return False
        try:
            message = decode(datagram)
        except WireError:
            return False
        if isinstance(message, Query):
            self._receive_query(message, source, now)
            return True
        question = self._pending.take(message.tid, source)
        if question is None:
            return False
        if isinstance(message, Failure) or message.sender == half.id:
            self._finish(question, stored=False)
        else:
            self._receive_reply(message, question, half, now)
        self.poll(now)
        return True

    def poll(self, now: float) -> None:
        """Do what is due: give up on silent nodes, keep the tables, ask what may be asked, end lookups."""
        for question in self._pending.expired(now):
            self.halves[family_of(question.address)].failed(question.address, now)
            self._finish(question, stored=False)
        for half in self.halves.values():
            self._keep(half, now)
        self._ask_all(now)
        self._end_lookups(now)

    def search(self, info_hash: bytes, family: int, now: float, *, cheap: bool = False) -> bool:
        """Look for peers; `cheap` re-asks only the nodes found nearest last time. False: too many, or already on."""
        if any(lookup.for_peers and (lookup.target, lookup.family) == (info_hash, family) for lookup in self._lookups):
            return False
        half, start = self.halves[family], None
        closest = half.closest(info_hash)
        if cheap and closest is not None:
            start = [holder.contact for holder in closest.holders[:K]]
        return self._begin(
            Lookup(
                info_hash,
                start or half.start_nodes(info_hash, now),
                family=family,
                for_peers=True,
                widen=start is None,
            )
        )

    def announce(self, info_hash: bytes, family: int, port: int, now: float) -> bool:
        """Announce `port` to the nodes the last search found, with their tokens; False if there is none to tell."""
        closest = self.halves[family].closest(info_hash)
        if closest is None or not closest.tokens_fresh(now):
            return False
        tellable = [holder for holder in closest.holders if holder.token is not None]
        if not tellable or len(self._errands) + len(tellable) > MAX_QUEUED:
            return False
        number = self._rounds.begin(info_hash, family, len(tellable))
        for holder in tellable:
            # Nodes that heed implied_port store the NAT's own port; the others need the number.
            call = AnnouncePeer(info_hash, port, holder.token or b"", implied_port=True)
            self._errands.appendleft(_Errand(holder.contact.address, call, number))
        return True

    def add_bootstrap(self, addresses: Iterable[Address], now: float) -> None:
        """Nodes whose ids are not known, asked while we know few others."""
        for address in addresses:
            half = self.halves.get(family_of(address))
            if half is None or not address.is_unicast or address in half.bootstrap:
                continue
            half.bootstrap[address] = None
            half.bootstrap_at = now
            if len(half.bootstrap) > MAX_BOOTSTRAP:
                half.bootstrap.popitem(last=False)

    def add_nodes(self, addresses: Iterable[Address]) -> None:
        """Nodes that somebody vouched for; pinged when their turn comes."""
        for address in addresses:
            if address.is_unicast:
                self._queue(_Errand(address, Ping()))

    def adopt(self, nodes: Iterable[NodeInfo], now: float) -> None:
        """Take nodes into the table unasked: only for those the caller runs itself."""
        for node in nodes:
            if (half := self.halves.get(family_of(node.address))) is not None:
                half.heard(node.id, node.address, now, None)

    # What goes out

    def datagrams(self) -> Iterator[tuple[bytes, Address]]:
        """Take what is to be sent."""
        while self._outbox:
            yield self._outbox.popleft()

    def events(self) -> Iterator[Event]:
        """Take what happened."""
        while self._events:
            yield self._events.popleft()

    def next_timer(self, now: float) -> float:
        """When `poll` must be called at the latest."""
        times = [time for half in self.halves.values() for time in (half.bootstrap_at, half.refresh_at)]
        times += [time for lookup in self._lookups if (time := lookup.next_timer()) is not None]
        if (expiry := self._pending.next_timer()) is not None:
            times.append(expiry)
        if (self._errands or self._lookups) and not self._pacer.may_ask(now):
            times.append(self._pacer.next_token_at(now))
        return min(times)

    def export(self, now: float) -> memory.Saved:
        """What the next run should start from."""
        halves = self.halves.values()
        return memory.Saved(
            nodes=[entry for half in halves for entry in memory.pack(half.best_nodes(now))],
            closest=[
                (info_hash, memory.pack(nodes)) for half in halves for info_hash, nodes in half.closest_sets().items()
            ],
            ids=[(half.family, half.id) for half in halves] if self.settings.serve else [],
        )

    # The parts of receive and poll

    def _receive_query(self, query: Query, source: Address, now: float) -> None:
        half = self.halves[family_of(source)]
        if self.server is None or not source.is_unicast or query.sender == half.id:
            return
        if not self._pacer.answer(source.ip, now):
            return
        self._send(encode(self.server.answer(query, source, self.halves, now)), source)
        if not query.read_only:
            half.consider(NodeInfo(query.sender, source), now)

    def _receive_reply(self, reply: Reply, question: Question, half: Half, now: float) -> None:
        source = question.address
        doubtful = half.heard(reply.sender, source, now, now - question.asked_at)
        if doubtful is not None:
            self._ping(doubtful, now)
        if reply.ip is not None:
            self._count_vote(half, source, reply.ip, now)
        reply = screened(reply, source)
        nodes = [node for node in reply.nodes or () if node.id not in {half.id for half in self.halves.values()}]
        if question.lookup is not None:
            near = tuple(node for node in nodes if family_of(node.address) == question.lookup.family)
            heeded = replace(reply, nodes=None if reply.nodes is None else near)
            if peers := question.lookup.receive(source, heeded):
                self._events.append(PeersFound(question.lookup.target, tuple(peers), source))
        for node in nodes if isinstance(question.call, FindNode) else ():
            if (home := self.halves.get(family_of(node.address))) is not None:
                home.consider(node, now)
        self._finish(question, stored=True)

    def _finish(self, question: Question, *, stored: bool) -> None:
        """A question is over; `stored` when it was answered with a reply."""
        if question.lookup is not None and not stored:
            question.lookup.fail(question.address)
        if question.announce is not None:
            self._finish_announce(question.announce, stored)

    def _finish_announce(self, number: int, stored: bool) -> None:
        if (outcome := self._rounds.finish_one(number, stored=stored)) is not None:
            self._events.append(outcome)

    def _count_vote(self, half: Half, source: Address, seen: Address, now: float) -> None:
        half.votes.add(source, seen, now)
        if (address := half.votes.address) != half.external:
            half.external = address
            if address is not None:
                self._events.append(ExternalAddress(address))
        half.settle_id(now)

    def _keep(self, half: Half, now: float) -> None:
        if half.bootstrap_due(now):
            start = half.start_nodes(half.id, now)
            if start:
                self._begin(Lookup(half.id, start, family=half.family, for_peers=False, want=self._want(now)))
        contact = half.refresh_target(now)
        if contact is not None:
            contact.asked_at = now
            # A random target, so that the answer brings nodes from all over.
            self._queue(_Errand(contact.address, FindNode(self._entropy(ID_BYTES), self._want(now))))

    def _want(self, now: float) -> tuple[int, ...]:
        """Both families while one of them is short of nodes: the other half's nodes can tell (BEP 32)."""
        lacking = len(self.halves) > 1 and any(half.good(now) < K for half in self.halves.values())
        return tuple(self.halves) if lacking else ()

    def _ask_all(self, now: float) -> None:
        while self._errands and self._may_ask(now):
            errand = self._errands.popleft()
            if not self._ask(errand.address, errand.call, now, announce=errand.announce) and errand.announce:
                self._finish_announce(errand.announce, stored=False)
        for lookup in self._lookups:
            while self._may_ask(now) and (query := lookup.next_query(now)) is not None:
                contact, call = query
                if not self._ask(contact.address, call, now, lookup=lookup):
                    lookup.fail(contact.address)

    def _ask(
        self, address: Address, call: Call, now: float, *, lookup: Lookup | None = None, announce: int | None = None
    ) -> bool:
        if family_of(address) not in self.halves or not address.is_unicast or not self._pacer.ask(address.ip, now):
            return False
        half = self.halves[family_of(address)]
        question = self._pending.add(address, call, now, lookup=lookup, announce=announce)
        read_only = not self.settings.serve
        self._send(encode(Query(question.tid, half.id, call, read_only, self.settings.version)), address)
        return True

    def _may_ask(self, now: float) -> bool:
        return not self._pending.full and self._pacer.may_ask(now)

    def _send(self, datagram: bytes, address: Address) -> None:
        if len(self._outbox) < MAX_OUTBOX:
            self._outbox.append((datagram, address))

    def _ping(self, contact: Contact, now: float) -> None:
        contact.asked_at = now
        self._queue(_Errand(contact.address, Ping()))

    def _queue(self, errand: _Errand) -> None:
        if len(self._errands) < MAX_QUEUED:
            self._errands.append(errand)

    def _begin(self, lookup: Lookup) -> bool:
        if len(self._lookups) >= MAX_LOOKUPS:
            return False
        self._lookups.append(lookup)
        return True

    def _end_lookups(self, now: float) -> None:
        for lookup in [lookup for lookup in self._lookups if lookup.check_finished(now)]:
            self._lookups.remove(lookup)
            if not lookup.for_peers:
                continue
            half = self.halves[lookup.family]
            remember = half.remember_closest if lookup.widen else half.remember_poll
            remember(lookup.target, lookup.holders(half.home_bits(now)), now)
            self._events.append(LookupDone(lookup.target, lookup.family, lookup.asked, lookup.answered))

    def _recall(self, saved: memory.Saved, now: float) -> None:
        for node in saved.known_nodes():
            if (half := self.halves.get(family_of(node.address))) is not None:
                half.cache(node)
        for info_hash, nodes in saved.closest_sets().items():
            for family, half in self.halves.items():
                holders = [
                    Holder(Contact(node.id, node.address), None) for node in nodes if family_of(node.address) == family
                ]
                if holders:
                    half.remember_closest(info_hash, holders, now)
        for half in self.halves.values():
            for contact in half.cached()[:START_PINGS]:
                self._queue(_Errand(contact.address, Ping()))
