"""The Mainline DHT on the event loop: Dht keeps a node running on the caller's UDP sockets.

dht = Dht(send=udp.send, entropy=os.urandom, bootstrap=[("dht.libtorrent.org", 25401)])
dht.start()
handle = dht.rendezvous(topics, port, on_peer, urgency)
...                                     # the demultiplexer calls dht.receive(datagram, source)
await dht.close()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from proxy_vpn.addresses import Address
from proxy_vpn.config import DHT_ROUTERS
from proxy_vpn.dht import saved as memory
from proxy_vpn.dht.events import Announced, Event, ExternalAddress, LookupDone, PeersFound
from proxy_vpn.dht.ids import family_of
from proxy_vpn.dht.node import DhtNode, Settings
from proxy_vpn.dht.rendezvous import Rendezvous, Urgency
from proxy_vpn.wire.krpc import NodeInfo

__all__ = ["DEFAULT_BOOTSTRAP", "Dht", "DhtStatus", "RendezvousHandle", "Urgency"]

DEFAULT_BOOTSTRAP: tuple[tuple[str, int], ...] = tuple((router.host, router.port) for router in DHT_ROUTERS)
RESOLVE_FIRST_S = 5.0
RESOLVE_MAX_S = 300.0
RESOLVED_MAX = 8
TOPICS_S = 5.0
MAX_NETWORKS = 64
_log = logging.getLogger(__name__)

Topics = Callable[[float], Sequence[bytes]]
Port = Callable[[], int | None]
OnPeer = Callable[[Address, Address], None]


@dataclass(frozen=True, slots=True)
class DhtStatus:
    """How the node is doing. `bootstrap_reachable`: None while no bootstrap node was asked.

    `nodes4/6`: the contacts we have, and 0 while none of those asked answers any more. `announced`: how many nodes
    hold our latest announce, None before the first has ended, 0 while nobody answers. `symmetric4/6`: nodes see us
    under one IP and several ports, so what they hold is of little use to peers; `external_ips` are those IPs.
    """

    nodes4: int = 0
    good4: int = 0
    nodes6: int = 0
    good6: int = 0
    external4: Address | None = None
    external6: Address | None = None
    external_ips: tuple[str, ...] = ()
    symmetric4: bool = False
    symmetric6: bool = False
    announced: int | None = None
    bootstrap_reachable: bool | None = None


class RendezvousHandle:
    """One network's announces and lookups, until closed."""

    def __init__(self, dht: Dht, topics: Topics, port: Port, on_peer: OnPeer, urgency: Callable[[], Urgency]) -> None:
        self._dht = dht
        self._topics = topics
        self._port = port
        self._on_peer = on_peer
        self._urgency = urgency
        self._schedule = dht.new_schedule()
        self._stepped_at = -math.inf

    @property
    def announced(self) -> int | None:
        """How many nodes hold our latest announce, the best info_hash and family counting; None before the first."""
        counts = [watch.stored for watch in self._schedule.watches.values() if watch.stored is not None]
        return max(counts, default=None)

    def poke(self) -> None:
        """Look up now, and announce again unless that was done within the last minute."""
        self._schedule.poke(self._dht.now())
        self._dht.turn()

    def close(self) -> None:
        """Stop announcing and looking up; idempotent."""
        self._dht.drop(self)

    def step(self, now: float) -> None:
        """Called by the Dht after every datagram: begin what is due; new topics are noticed every TOPICS_S."""
        due = self.next_timer()
        if now - self._stepped_at < TOPICS_S and (due is None or now < due):
            return
        self._stepped_at = now
        self._schedule.step(self._topics(time.time()), self._port(), self._urgency(), now)

    def next_timer(self) -> float | None:
        """Called by the Dht: when `step` has something to begin."""
        return self._schedule.next_timer(self._urgency(), self._port())

    def dispatch(self, event: Event, now: float) -> None:
        """Called by the Dht: an event of the node."""
        if isinstance(event, ExternalAddress):
            self._schedule.announce_anew(family_of(event.address), now)
        elif isinstance(event, PeersFound):
            if any(info_hash == event.info_hash for info_hash, _ in self._schedule.watches):
                for address in event.addresses:
                    self._on_peer(address, event.source)
        else:
            self._schedule.handle(event, self._port(), now)


class Dht:
    """A DHT node on the loop. `send(datagram, address)` sends from the socket of that address's family."""

    def __init__(
        self,
        send: Callable[[bytes, Address], None],
        entropy: Callable[[int], bytes],
        bootstrap: Sequence[tuple[str, int]] = DEFAULT_BOOTSTRAP,
        *,
        serve: bool = False,
        families: Collection[socket.AddressFamily] = (socket.AF_INET, socket.AF_INET6),
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._send = send
        self._entropy = entropy
        self._named = _numeric_apart(bootstrap)
        self._state = state
        self._settings = Settings(tuple(6 if family is socket.AF_INET6 else 4 for family in families), serve)
        self._node = DhtNode(self._settings, entropy, time.monotonic(), memory.load(state or {}))
        self._node.add_bootstrap(self._named.numeric, time.monotonic())
        self._handles: list[RendezvousHandle] = []
        self._announced: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._resolver: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turning = False

    @property
    def node(self) -> DhtNode:
        """The node itself, for those who need more than this driver."""
        return self._node

    @staticmethod
    def now() -> float:
        """The node's clock."""
        return time.monotonic()

    def start(self) -> None:
        """Begin; needs a running loop."""
        self._loop = asyncio.get_running_loop()
        if self._named.names:
            self._resolver = self._loop.create_task(self._resolve())
        self.turn()

    async def close(self) -> None:
        """Stop everything; nothing is sent afterwards. Idempotent."""
        self._loop = None
        self._handles.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._resolver is not None:
            self._resolver.cancel()
            await asyncio.gather(self._resolver, return_exceptions=True)
            self._resolver = None

    def receive(self, datagram: bytes, source: Address) -> None:
        """Take a datagram that looks like KRPC; whatever is not awaited is dropped."""
        if self._loop is None:
            return
        if self._node.receive(datagram, source, self.now()):
            self.turn()

    def rendezvous(
        self, topics: Topics, port: Port, on_peer: OnPeer, urgency: Callable[[], Urgency]
    ) -> RendezvousHandle:
        """Keep announcing at and looking up one network's info_hashes.

        topics(wall clock) gives the one or two current ones; port() the external port to announce, None to only
        look up; on_peer(address, DHT node that said so) is called for every hint, again at every lookup.
        """
        handle = RendezvousHandle(self, topics, port, on_peer, urgency)
        if len(self._handles) < MAX_NETWORKS:
            self._handles.append(handle)
        self.turn()
        return handle

    def drop(self, handle: RendezvousHandle) -> None:
        """Forget a handle."""
        if handle in self._handles:
            self._handles.remove(handle)

    def new_schedule(self) -> Rendezvous:
        """For the handles: a schedule on this node."""
        return Rendezvous(self._node, self._entropy)

    def add_nodes(self, addresses: Sequence[Address]) -> None:
        """DHT nodes that a peer vouches for; each is pinged before it is used."""
        self._node.add_nodes(addresses)
        self.turn()

    def good_nodes(self, limit: int = 16) -> list[Address]:
        """Nodes that answered lately, to give to peers."""
        best = [half.best_nodes(self.now())[:limit] for half in self._node.halves.values()]
        return [node.address for nodes in best for node in nodes][:limit]

    def adopt(self, nodes: Sequence[NodeInfo]) -> None:
        """Take nodes this process runs itself into the table at once."""
        self._node.adopt(nodes, self.now())

    def export_state(self) -> dict[str, Any]:
        """Numbers, bytes and lists for the next start's `state`: nodes, closest sets and, when serving, our ids."""
        return memory.dump(self._node.export(self.now()))

    def status(self) -> DhtStatus:
        """How it is doing now."""
        now, halves = self.now(), self._node.halves
        four, six = halves.get(4), halves.get(6)
        tried = [half for half in halves.values() if half.bootstrap]
        answering = {family: 0 if half.silent(now) else len(half.table) for family, half in halves.items()}
        return DhtStatus(
            nodes4=answering.get(4, 0),
            good4=four.good(now) if four else 0,
            nodes6=answering.get(6, 0),
            good6=six.good(now) if six else 0,
            external4=four.external if four else None,
            external6=six.external if six else None,
            external_ips=tuple(half.votes.ip for half in halves.values() if half.votes.ip),
            symmetric4=four is not None and four.votes.symmetric,
            symmetric6=six is not None and six.votes.symmetric,
            announced=self._announced if self._announced is None or any(answering.values()) else 0,
            bootstrap_reachable=any(half.bootstrap_reached for half in tried) if tried else None,
        )

    def turn(self) -> None:
        """The four beats after anything happened: feed time, collect and dispatch events, send, set the timer."""
        if self._loop is None or self._turning:
            return
        self._turning = True
        try:
            now = self.now()
            for handle in list(self._handles):
                handle.step(now)
            self._node.poll(now)
            while events := list(self._node.events()):
                for event in events:
                    self._dispatch(event, now)
                self._node.poll(now)
            for datagram, address in self._node.datagrams():
                with contextlib.suppress(OSError):
                    self._send(datagram, address)
        finally:
            self._turning = False
        self._arm()

    def _dispatch(self, event: Event, now: float) -> None:
        for handle in list(self._handles):
            handle.dispatch(event, now)
        if isinstance(event, Announced):
            self._announced = event.stored
            _log.info("announced at %d of %d nodes (IPv%d)", event.stored, event.asked, event.family)
        elif isinstance(event, LookupDone):
            _log.debug("searched: %d of %d nodes answered (IPv%d)", event.answered, event.asked, event.family)
        elif isinstance(event, ExternalAddress):
            _log.info("nodes see us at %s", event.address)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._loop is None:
            return
        now = self.now()
        times = [time for handle in self._handles if (time := handle.next_timer()) is not None]
        wait = min([self._node.next_timer(now), *times, now + TOPICS_S]) - now
        self._timer = self._loop.call_later(max(wait, 0.001), self.turn)

    async def _resolve(self) -> None:
        """Names to addresses, again and again for those that failed; quiet, since being offline is no error."""
        pause_s, names = RESOLVE_FIRST_S, list(self._named.names)
        while names:
            failed: list[tuple[str, int]] = []
            asked = len(names)
            for host, port in names:
                found = await _lookup_name(host, port)
                self._node.add_bootstrap(found, self.now())
                if found:
                    self.turn()
                else:
                    failed.append((host, port))
                    _log.info("bootstrap name %a did not resolve", host)
            names = failed
            if len(failed) < asked and not self._node_knows_anyone():
                for handle in self._handles:
                    handle.poke()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RESOLVE_MAX_S)

    def _node_knows_anyone(self) -> bool:
        return any(len(half.table) for half in self._node.halves.values())


@dataclass(frozen=True, slots=True)
class _Bootstrap:
    numeric: tuple[Address, ...]
    names: tuple[tuple[str, int], ...]


def _numeric_apart(bootstrap: Sequence[tuple[str, int]]) -> _Bootstrap:
    numeric, names = [], []
    for host, port in bootstrap:
        try:
            numeric.append(Address(str(ip_address(host)), port))
        except ValueError:
            names.append((host, port))
    return _Bootstrap(tuple(numeric), tuple(names))


async def _lookup_name(host: str, port: int) -> list[Address]:
    loop = asyncio.get_running_loop()
    try:
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return []
    return [Address(str(info[4][0]), int(info[4][1])) for info in infos if "%" not in str(info[4][0])][:RESOLVED_MAX]
