"""A fake world for DHT nodes: a virtual clock, latency, loss, NAT ports, and a few hundred serving nodes."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

from proxy_vpn.addresses import Address
from proxy_vpn.dht.events import Event
from proxy_vpn.dht.node import DhtNode, Settings
from proxy_vpn.dht.saved import Saved
from proxy_vpn.wire.krpc import NodeInfo

DELAY_S = (0.02, 0.4)


class World:
    """Nodes by address; `run(seconds)` moves the clock. Datagrams to nobody vanish."""

    def __init__(self, seed: int = 1, loss: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.loss = loss
        self.nodes: dict[Address, DhtNode] = {}
        self.events: dict[Address, list[Event]] = {}
        self.sent: list[tuple[float, Address, Address, bytes]] = []
        self.hooks: list[Callable[[], None]] = []
        self.timers: list[Callable[[], float | None]] = []
        self._queue: list[tuple[float, int, Address, Address, bytes]] = []
        self._count = itertools.count()
        self._asleep: dict[Address, float] = {}

    def add(self, address: Address, settings: Settings, saved: Saved | None = None) -> DhtNode:
        node = DhtNode(settings, self.rng.randbytes, self.now, saved)
        self.nodes[address] = node
        self.events[address] = []
        return node

    def populate(self, count: int, dead: float = 0.0) -> list[Address]:
        """Serving nodes at 10.x.y.1 that know some of the others; a share of them is dead."""
        addresses = [Address(f"10.{n >> 8}.{n & 255}.1", 6881) for n in range(count)]
        for address in addresses:
            self.add(address, Settings(families=(4,), serve=True))
        infos = [NodeInfo(self.nodes[address].halves[4].id, address) for address in addresses]
        for address in addresses:
            own_id = self.nodes[address].halves[4].id
            near = sorted(infos, key=lambda info: int.from_bytes(info.id, "big") ^ int.from_bytes(own_id, "big"))
            known = near[1:25] + self.rng.sample(infos, min(60, count))
            self.nodes[address].adopt([info for info in known if info.address != address], self.now)
        for address in self.rng.sample(addresses, int(count * dead)):
            del self.nodes[address]
        return addresses

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; True as soon as `until` holds, False at the end."""
        end = self.now + seconds
        self.turn()
        while not (until is not None and until()):
            times = [self._queue[0][0]] if self._queue else []
            times += [time for address, time in self._asleep.items() if address in self.nodes]
            times += [time for timer in self.timers if (time := timer()) is not None]
            self.now = max(self.now, min([end, *times]))
            if self.now >= end:
                return False
            while self._queue and self._queue[0][0] <= self.now:
                _, _, source, target, datagram = heapq.heappop(self._queue)
                if target in self.nodes:
                    self.nodes[target].receive(datagram, source, self.now)
                    self._drain(target)
            self.turn()
        return True

    def turn(self) -> None:
        """Poll whoever is due and take everyone's output."""
        for hook in self.hooks:
            hook()
        for address, node in list(self.nodes.items()):
            if self._asleep.get(address, 0.0) <= self.now:
                node.poll(self.now)
                self._drain(address)
        for hook in self.hooks:
            hook()

    def wake(self, address: Address) -> None:
        """Somebody called the node: poll it at the next turn."""
        self._asleep[address] = self.now

    def _drain(self, address: Address) -> None:
        node = self.nodes[address]
        self.events[address] += list(node.events())
        for datagram, target in node.datagrams():
            self.sent.append((self.now, address, target, datagram))
            if self.rng.random() >= self.loss:
                arrival = self.now + self.rng.uniform(*DELAY_S)
                heapq.heappush(self._queue, (arrival, next(self._count), address, target, datagram))
        self._asleep[address] = max(node.next_timer(self.now), self.now + 0.001)
