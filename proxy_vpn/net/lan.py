"""Peers on the same LAN: Lan announces and hears DNS-SD services that only members of a network can tell apart.

    lan = Lan(addresses, os.urandom)
    lan.add(tags, on_peer)               # per network
    lan.start()
    ...
    await lan.close()

What is multicast: the type _pvpn._udp, the label TAG-TOKEN, a target TOKEN.local, and our addresses and port. TAG is an
opaque text of the network's that rotates, TOKEN is random and new in every process. No name of anything is sent.
Whoever hears a tag can repeat it: what is found is a hint, to be proved by a probe.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from proxy_vpn.addresses import Address
from proxy_vpn.net.lan_interfaces import multicast_interfaces
from proxy_vpn.net.lan_services import Instances, Service, chosen, shareable

if TYPE_CHECKING:
    from proxy_vpn.net.mdns import Responder

MAX_NETWORKS = 64
MAX_TAGS = 2
MAX_PORTS = 4
TOKEN_BYTES = 8
CHECK_S = 60.0
RETRY_S = 10.0
ASK_AGAIN_S = (1.0, 3.0)
JITTER_S = 0.1
_TAG = re.compile(r"[a-z0-9]{1,46}")
_log = logging.getLogger(__name__)

Tags = Callable[[], Sequence[str]]
OnPeer = Callable[[Address], None]


class Lan:
    """LAN discovery for all networks of a process.

    addresses() gives where our UDP sockets are reached; on several ports, each gets a service of its own. `interfaces`
    (IPv4 addresses, and indexes for IPv6) replaces the choice of every interface that takes multicast.
    """

    def __init__(
        self,
        addresses: Callable[[], Sequence[Address]],
        entropy: Callable[[int], bytes],
        *,
        interfaces: Sequence[str | int] | None = None,
    ) -> None:
        self._addresses = addresses
        self._entropy = entropy
        self._interfaces = interfaces
        self._networks: list[_Network] = []
        self._tokens: dict[int, str] = {}
        self._responder: Responder | None = None
        self._where: object = None
        self._anew = False
        self._asks: list[float] = []
        self._poked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def active(self) -> bool:
        """Whether something is announced now."""
        return self._responder is not None and bool(self._responder.published)

    def add(self, tags: Tags, on_peer: OnPeer) -> None:
        """One more network, before or after `start`.

        tags() gives its one or two current tags, each `[a-z0-9]{1,46}` (else ValueError here). on_peer(address) is
        called for the addresses of each peer heard: at once if new or back again, else every 30 s at most while heard.
        """
        network = _Network(tags, on_peer)
        if len(self._networks) < MAX_NETWORKS:
            self._networks.append(network)
        self._poked.set()

    def start(self) -> None:
        """Begin; needs a running loop. Without a network it waits for one."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def network_changed(self) -> None:
        """Interfaces or addresses may be others now: announce and ask there, from new sockets."""
        self._anew = True
        self._poked.set()

    async def close(self) -> None:
        """Withdraw what was announced, within a second; idempotent. Nothing is heard afterwards."""
        self._networks.clear()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._leave()

    async def _run(self) -> None:
        # Not in step with all others when the power returns.
        await asyncio.sleep(JITTER_S * self._entropy(1)[0] / 255)
        while True:
            self._poked.clear()
            try:
                await self._turn()
            except Exception as error:
                # Whatever a network that comes and goes makes of sockets and of zeroconf, the next turn starts anew.
                _log.info("LAN discovery waits: %a", error)
                await self._leave()
            await self._pause(CHECK_S if self._responder is not None else RETRY_S)

    async def _turn(self) -> None:
        """Make what is announced what it should be: new sockets for new interfaces, new services for new tags."""
        for network in self._networks:
            network.refresh()
        addresses = tuple(address for address in self._addresses() if shareable(address))
        interfaces = tuple(multicast_interfaces() if self._interfaces is None else self._interfaces)
        services = self._services(addresses)
        if self._anew or self._where != (interfaces, addresses):
            self._anew = False
            await self._leave()
            self._where = (interfaces, addresses)
        if self._responder is not None:
            self._responder.announce()
        elif interfaces and services:
            await self._join(interfaces)
        if self._responder is not None:
            await _publish(self._responder, services)

    async def _join(self, interfaces: Sequence[str | int]) -> None:
        responder = await asyncio.to_thread(_responder_class)
        self._responder = await responder.open(interfaces, self._hear, self._forget)
        self._responder.ask()
        self._asks = list(ASK_AGAIN_S)
        _log.info("LAN discovery runs on %d interfaces", len(interfaces))

    async def _leave(self) -> None:
        if self._responder is None:
            return
        try:
            await self._responder.close()
        except Exception as error:
            # Nothing better can be done with sockets that won't close.
            _log.info("LAN discovery did not close: %a", error)
        self._responder = None

    async def _pause(self, pause_s: float) -> None:
        """Wait for the time or a poke; ask again meanwhile, for multicasts are easily lost."""
        until = time.monotonic() + pause_s
        while (left_s := until - time.monotonic()) > 0:
            ask_s = self._asks[0] if self._asks else left_s
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, ask_s)):
                    await self._poked.wait()
                return
            if self._asks and self._responder is not None:
                self._asks.pop(0)
                self._responder.ask()

    def _services(self, addresses: Sequence[Address]) -> list[Service]:
        by_port: dict[int, list[Address]] = {}
        for address in addresses:
            by_port.setdefault(address.port, []).append(address)
        ports = list(by_port)[:MAX_PORTS]
        self._tokens = {port: self._tokens.get(port) or self._entropy(TOKEN_BYTES).hex() for port in ports}
        tags = dict.fromkeys(tag for network in self._networks for tag in network.tags)
        return [
            Service(f"{tag}-{token}", token, chosen(by_port[port]))
            for tag in tags
            for port, token in self._tokens.items()
        ]

    def _hear(self, label: str, addresses: tuple[Address, ...]) -> bool:
        """Called by the Responder: a service's announcement; whether it is a peer's of a network of ours."""
        tag, _, token = label.rpartition("-")
        networks = [network for network in self._networks if tag in network.tags]
        if not networks or token in self._tokens.values():
            return False
        for network in networks:
            for address in network.instances.hear(token, addresses, time.monotonic()):
                network.on_peer(address)
        return True

    def _forget(self, label: str) -> None:
        """Called by the Responder: such a service is no more."""
        for network in self._networks:
            network.instances.forget(label.rpartition("-")[2])


class _Network:
    """One network: the tags it has now, and who was heard."""

    def __init__(self, tags: Tags, on_peer: OnPeer) -> None:
        self._current_tags = tags
        self.on_peer = on_peer
        self.instances = Instances()
        self.refresh()

    def refresh(self) -> None:
        tags = tuple(self._current_tags())[:MAX_TAGS]
        if not all(_TAG.fullmatch(tag) for tag in tags):
            raise ValueError("a LAN tag is made of 1 to 46 of a-z and 0-9")
        self.tags = tags


async def _publish(responder: Responder, services: Sequence[Service]) -> None:
    """New ones first: for a moment there are both, but never none."""
    published = responder.published
    async with asyncio.TaskGroup() as group:
        for service in services:
            if service not in published:
                group.create_task(responder.publish(service))
    async with asyncio.TaskGroup() as group:
        for service in published.difference(services):
            group.create_task(responder.withdraw(service))


def _responder_class() -> type[Responder]:
    """Imported late, and in a thread: only who discovers needs zeroconf, and it is 3 MB."""
    from proxy_vpn.net.mdns import Responder

    return Responder
