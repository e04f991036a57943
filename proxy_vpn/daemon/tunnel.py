"""The TUN device of `pvpn run --tun`: made while this process may still do everything; after that it may not."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Final, NamedTuple

from proxy_vpn.daemon import resolved
from proxy_vpn.doors import capabilities
from proxy_vpn.doors.dns_elsewhere import RESOLV_CONF, ExitResolver, HostResolver, name_servers
from proxy_vpn.doors.serve import ServeDoor
from proxy_vpn.doors.tun import TunDoor
from proxy_vpn.doors.tun_setup import Interface, TunPlan, change_routes, set_up
from proxy_vpn.errors import FlowError, StateError, Status
from proxy_vpn.mesh.mesh import Mesh
from proxy_vpn.mesh.names import Router
from proxy_vpn.mesh.routes import Ways
from proxy_vpn.ranges import Network, parse_ip

ROUTES_EVERY_S: Final = 1.0
_log = logging.getLogger(__name__)


# Halves of everything: the host's own default routes are neither touched nor chosen.
_INTERNET: Final = tuple(ip_network(half) for half in ("0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"))


def plan(meshes: Sequence[Mesh], to_exit: bool = False) -> TunPlan:
    """An interface with this machine's addresses in all networks; `to_exit`: the internet goes through it too."""
    addresses: list[IPv4Interface | IPv6Interface] = []
    guarded: list[IPv4Network | IPv6Network] = []
    dns: list[str] = []
    for virtual in (mesh.virtual for mesh in meshes):
        addresses.append(IPv4Interface((virtual.own.v4, virtual.v4.prefixlen)))
        addresses.append(IPv6Interface((virtual.own.v6, virtual.v6.prefixlen)))
        # A range that others have too: what comes from their machines must come in.
        guarded += [IPv4Network(virtual.own.v4) if virtual.is_crowded else virtual.v4, virtual.v6]
        dns += [str(virtual.dns.v4), str(virtual.dns.v6)]
    made = TunPlan(tuple(addresses), dns=tuple(dns), guarded=tuple(guarded))
    if not to_exit:
        return made
    # A name server on the host's own LAN would see every name: it is asked no more, and the exit's are.
    servers = tuple(ip for ip in name_servers() if not ip_address(ip).is_loopback)
    hosts = tuple(ip_network(ip) for ip in servers)
    return replace(made, routes=(*_INTERNET, *hosts), other_dns=servers)


def enclosed_plan(meshes: Sequence[Mesh], only_peers: bool) -> TunPlan:
    """The same for a command of `pvpn exec`, which has no other way out than this process."""
    everything: list[IPv4Network | IPv6Network] = [IPv4Network("0.0.0.0/0"), IPv6Network("::/0")]
    routes = () if only_peers else tuple(everything)
    return replace(plan(meshes), name="pvpn0", routes=routes, guarded=())  # it is alone there


class Made(NamedTuple):
    """An interface; whether systemd-resolved asks it for names; what the user should know that it does not do."""

    interface: Interface
    resolved_asks: bool
    shortcomings: list[str]


async def make(plan: TunPlan) -> Made:
    """Raises StateError.

    In a thread that has ended when it is done: no thread may keep what `drop_privileges` gives up.
    """
    everything = bool(plan.routes)

    def work() -> Made:
        made = set_up(plan)
        name = made.device.name
        asks = resolved.tell(name, plan.dns, everything=everything)
        try:
            if everything:
                check_resolver(plan.dns[0], resolved_asks=asks)
        except StateError:
            made.close()
            raise
        shortcomings = [*_shortcomings(made, plan), *(_around(name) if everything and asks else ())]
        return Made(made, asks, shortcomings)

    with ThreadPoolExecutor(1) as thread:
        return await asyncio.get_running_loop().run_in_executor(thread, work)


def _shortcomings(made: Interface, plan: TunPlan) -> Iterator[str]:
    name = made.device.name
    if not any(listener.family == socket.AF_INET6 for listener in made.listeners):
        yield f"IPv6 is switched off on this host: {name} leads to peers by IPv4 alone"
    if made.unguarded:
        what = "who shares a network with this host can send to its virtual addresses, and over UDP as a peer"
        ranges = " and ".join(map(str, plan.guarded))
        hint = f"use Linux 5.12 or newer with nf_tables, or a firewall that takes {ranges} from {name} alone"
        yield f"{name} has no guard ({made.unguarded}): {what} - {hint}"


def _around(name: str) -> Iterator[str]:
    """Names that systemd-resolved takes around an exit: nothing that is set for our interface keeps it from that."""
    for link, domains in resolved.asked_elsewhere(name).items():
        asked = f"{link}'s name servers" if link else "the servers in resolved.conf"
        hint = f"run: resolvectl domain {link} ''" if link else "remove Domains= there"
        yield f"systemd-resolved asks {asked} for names under {' '.join(domains)}, around the exit - {hint}"


async def keep_routes(name: str, ways: Ways) -> None:
    """The routes that peers offer and we accept, as routes of the interface; for as long as the task lives.

    What fails is told once and tried again.
    """
    there: set[Network] = set()
    told: set[Network] = set()
    while True:
        wanted = {network for network, _, _ in ways.accepted()}
        add = wanted - there
        if wanted != there:
            try:
                failed = await asyncio.to_thread(change_routes, name, add, there - wanted)
                there = wanted - failed.keys()
            except OSError as error:
                failed = dict.fromkeys(add, error.strerror or str(error))
            for network in failed.keys() - told:
                _log.warning("the route to %s through %s: %s", network, name, failed[network])
            told = set(failed)
        await asyncio.sleep(ROUTES_EVERY_S)


def drop_privileges(state: Path, *, routes_change: bool) -> None:
    """Keep low ports, a state directory that is another user's (sudo), and routes if they change; before threads."""
    keep = capabilities.NET_BIND_SERVICE | (capabilities.NET_ADMIN if routes_change else 0)
    if state.stat().st_uid != os.geteuid():
        keep |= capabilities.DAC_OVERRIDE
    try:
        capabilities.keep_only(keep)
    except OSError as error:
        _log.warning("privileges can't be given up: %s", error.strerror)


def check_resolver(dns: str, *, resolved_asks: bool, path: Path = RESOLV_CONF) -> None:
    """Raise StateError if programs ask a name server that no route to the exit leads to, on this host or its link.

    `dns` is ours. A resolv.conf that names nobody means this host (resolv.conf(5)).
    """
    asked = name_servers(path) or ([] if resolved_asks else ["127.0.0.1"])
    told = resolved.STUBS if resolved_asks else frozenset()
    for ip in map(ip_address, asked):
        if (ip.is_loopback or ip.is_link_local) and str(ip) not in told:
            what = f"programs here ask {ip} for names, which would go around the exit"
            raise StateError(what, f"put 'nameserver {dns}', and no other, into {path}, or run systemd-resolved")


class ServingDoor:
    """A TunDoor in whose network `serve` finds services while it is open."""

    def __init__(self, door: TunDoor, serve: ServeDoor) -> None:
        self._door = door
        self._serve = serve

    async def start(self) -> None:
        await self._door.start()
        self._serve.insides.append(self._door)

    async def finish(self) -> None:
        await self._door.finish()

    async def close(self) -> None:
        """Idempotent."""
        self._serve.leave(self._door)
        await self._door.close()


class PeerZone:
    """The names that a TUN's name server knows (doors.dns_server.Zone): those of the Router."""

    def __init__(self, router: Router, meshes: Sequence[Mesh], only_peers: bool = False, to_exit: bool = False) -> None:
        self._router = router
        self._meshes = meshes
        self._resolver: HostResolver | ExitResolver | None = None
        if not only_peers:
            self._resolver = ExitResolver(router) if to_exit else HostResolver(self.covers)

    @property
    def networks(self) -> list[str]:
        return [mesh.key.name for mesh in self._meshes]

    def addresses(self, name: str) -> tuple[str, ...] | None:
        found = self._router.addresses(name)
        return None if found is None else (str(found.v4), str(found.v6))

    def name_at(self, ip: str) -> str | None:
        parsed = parse_ip(ip)
        return None if parsed is None else self._router.name_at(parsed)

    def covers(self, ip: str) -> bool:
        parsed = parse_ip(ip)
        return parsed is not None and any(parsed in mesh.virtual for mesh in self._meshes)

    async def elsewhere(self, query: bytes, over_tcp: bool) -> bytes | None:
        return None if self._resolver is None else await self._resolver.ask(query, over_tcp)


async def echo(router: Router, ip: str) -> float:
    """A peer's round trip in seconds, by its virtual address; raises FlowError."""
    found = router.find(ip)
    if found is None:
        raise FlowError(Status.POLICY, f"{ip} is no peer, and only peers are pinged", "see 'pvpn peers'")
    rtt_s, _ = await found[0].ping(found[1])
    return rtt_s
