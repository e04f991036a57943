"""A TUN device with its addresses and routes, and the listeners that its translated connections meet (Linux)."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Final, NamedTuple

from proxy_vpn.doors.tun_device import TunDevice
from proxy_vpn.errors import StateError
from proxy_vpn.net import proc
from proxy_vpn.ranges import Network

# IPv6's least: a datagram of this size crosses most paths as one, and TCP never meets it (it ends at the device).
MTU: Final = 1280
# Other routes to the same network, the host's own LAN above all, go first.
METRIC: Final = 5000
DEVICE_NAME: Final = "pvpn%d"
# The kernel's 500 are full when a thousand connections begin at once, and what finds no place is lost.
QUEUE_PACKETS: Final = 10_000
RECEIVE_BUFFER_BYTES: Final = 128 * 1024
_BACKLOG: Final = 1024
_NO_DETECTION: Final = 2  # IFA_F_NODAD: nobody else can have it, and until the kernel knows that it can't be bound
_NOT_GENERATED: Final = 1  # IN6_ADDR_GEN_MODE_NONE: no link-local address, and no solicitations from it


@dataclass(frozen=True)
class TunPlan:
    """An interface to be: `addresses` are this machine's own, whose networks are reached through it; `routes` too.

    Its name server is at `dns`, and answers what is asked of `other_dns` too. Where there are other interfaces, nothing
    comes from `guarded` through them, nor to the addresses; empty for no guard.
    """

    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    routes: tuple[IPv4Network | IPv6Network, ...] = ()
    dns: tuple[str, ...] = ()
    other_dns: tuple[str, ...] = ()
    guarded: tuple[IPv4Network | IPv6Network, ...] = ()
    name: str = DEVICE_NAME
    mtu: int = MTU


class Interface(NamedTuple):
    """One that is set up; `unguarded`: why it has no guard though it should."""

    device: TunDevice
    listeners: list[socket.socket]
    unguarded: str = ""

    def close(self) -> None:
        """Idempotent."""
        self.device.close()
        for listener in self.listeners:
            listener.close()


def set_up(plan: TunPlan) -> Interface:
    """Make the interface in this thread's network namespace, and a listener on each of its addresses.

    Blocking, and not for a thread whose event loop runs. All of it goes when the descriptors are closed, also by
    kill -9. Where IPv6 is switched off it is left out of the plan. Raises StateError.
    """
    made = Interface(TunDevice.create(plan.name), [])
    device = made.device
    try:
        if not _has_ipv6(device.name):
            plan = _without_ipv6(plan)
        if plan.guarded:
            made = made._replace(unguarded=_guard(device, plan))
        _configure(device.name, plan)
        for address in plan.addresses:
            made.listeners.append(_listener(str(address.ip)))
    except BaseException:
        made.close()
        raise
    return made


def change_routes(name: str, add: Iterable[Network], remove: Iterable[Network]) -> dict[Network, str]:
    """Other networks that are reached through an interface; those that can't be added, and why. Blocking.

    One that can't be removed is gone, or goes with the interface. Raises OSError.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    failed: dict[Network, str] = {}
    with IPRoute() as netlink:
        index = next(iter(netlink.link_lookup(ifname=name)), None)
        if index is None:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        for command, networks in (("del", remove), ("add", add)):
            for network in networks:
                try:
                    family = _family(network.version)
                    netlink.route(command, dst=str(network), oif=index, family=family, priority=METRIC)
                except NetlinkError as error:
                    if command == "add":
                        failed[network] = str(error)
    return failed


def _has_ipv6(name: str) -> bool:
    """Not on a host without it, nor where an interface starts without it (sysctl)."""
    try:
        return Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").read_text().strip() == "0"
    except OSError:
        return False


def _without_ipv6(plan: TunPlan) -> TunPlan:
    if any(route.version == 6 for route in plan.routes) and _others_have_ipv6():
        what = "IPv6 is switched off for new interfaces alone: the other ones' would go around pvpn"
        raise StateError(what, "as root run: sysctl -w net.ipv6.conf.default.disable_ipv6=0")
    addresses = tuple(address for address in plan.addresses if address.version == 4)
    routes, guarded = (
        tuple(network for network in networks if network.version == 4) for networks in (plan.routes, plan.guarded)
    )
    return replace(plan, addresses=addresses, routes=routes, guarded=guarded)


def _others_have_ipv6() -> bool:
    return any(line.split()[-1] != "lo" for line in proc.lines(Path("/proc/net/if_inet6")))


def _guard(device: TunDevice, plan: TunPlan) -> str:
    """Before the interface has addresses: nothing ever comes in unguarded. Why there is none, where there is none."""
    from proxy_vpn.doors.tun_guard import guard  # loads pyroute2

    try:
        device.guard = guard(device.name, (own.ip for own in plan.addresses), plan.guarded)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _configure(name: str, plan: TunPlan) -> None:
    from pyroute2 import IPRoute  # takes an eighth of a second to load
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as netlink:
            index = netlink.link_lookup(ifname=name)[0]
            ipv6 = {"IFLA_AF_SPEC": _no_link_local()} if any(own.version == 6 for own in plan.addresses) else {}
            netlink.link("set", index=index, mtu=plan.mtu, txqlen=QUEUE_PACKETS, **ipv6)
            netlink.link("set", index=index, state="up")
            for address in plan.addresses:
                flags = _NO_DETECTION if address.version == 6 else 0
                prefix = address.network.prefixlen
                netlink.addr("add", index=index, address=str(address.ip), prefixlen=prefix, flags=flags)
            for route in plan.routes:
                # Before the host's own to the same network, which stay: 0 is IPv4's least metric, 1 IPv6's.
                metric = {"priority": 1} if route.version == 6 else {}
                try:
                    netlink.route("add", dst=str(route), oif=index, family=_family(route.version), **metric)
                except NetlinkError as error:
                    if error.code == errno.EEXIST:
                        what = f"this host has a route to {route} that goes before pvpn's"
                        raise StateError(what, f"remove it: ip route del {route}") from None
                    raise
    except NetlinkError as error:
        raise StateError(f"the interface {name} can't be set up: {error}", "pvpn needs CAP_NET_ADMIN") from None
    except OSError as error:
        what = f"the interface {name} can't be set up: {error.strerror}"
        raise StateError(what, "pvpn needs CAP_NET_ADMIN") from None


def _no_link_local() -> dict[str, object]:
    attributes = [("IFLA_INET6_ADDR_GEN_MODE", _NOT_GENERATED)]
    return {"attrs": [("AF_INET6", {"attrs": attributes})]}


def _listener(ip: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # What programs send ahead of us waits in the device, in front of everybody else's packets.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.bind((ip, 0))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise StateError(f"can't listen on {ip}: {error.strerror}", "try again") from None
    return sock


def _family(version: int) -> int:
    return int(socket.AF_INET6 if version == 6 else socket.AF_INET)
