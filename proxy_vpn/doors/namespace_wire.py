"""What `pvpn exec` and the running process say to each other on exec.sock: one JSON object a line, in this order.

command                                    process
Wish      which network, peers only?       Offer     the addresses, routes and name servers to set up
Handover  with the descriptors (SCM_RIGHTS): a lifeline that becomes readable when the command has ended
          (its pidfd), the TUN device, who makes sockets inside (namespace_sockets), the TCP listeners
                                           Ready     and the command may start
                                           Refusal   instead of either answer
"""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import TypeVar

import msgspec

from proxy_vpn.config import MAX_NETWORKS
from proxy_vpn.doors.tun_setup import TunPlan
from proxy_vpn.errors import ControlError, UsageError, WireError

MAX_LINE_BYTES = 64 * 1024
MAX_LISTENERS = 2 * MAX_NETWORKS
MAX_DESCRIPTORS = 3 + MAX_LISTENERS


class Wish(msgspec.Struct, frozen=True, tag=True):
    """`net` empty: all networks of the process; `only_peers`: no way to the internet."""

    net: str = ""
    only_peers: bool = False


class Offer(msgspec.Struct, frozen=True, tag=True):
    """A TunPlan in words."""

    name: str
    mtu: int
    addresses: tuple[str, ...]
    routes: tuple[str, ...]
    dns: tuple[str, ...]

    @classmethod
    def of(cls, plan: TunPlan) -> Offer:
        addresses, routes = tuple(map(str, plan.addresses)), tuple(map(str, plan.routes))
        return cls(plan.name, plan.mtu, addresses, routes, plan.dns)

    def plan(self) -> TunPlan:
        """Raises WireError."""
        try:
            return TunPlan(
                name=self.name,
                mtu=self.mtu,
                addresses=tuple(ip_interface(text) for text in self.addresses),
                routes=tuple(ip_network(text) for text in self.routes),
                dns=tuple(str(ip_address(text)) for text in self.dns),
            )
        except ValueError as error:
            raise WireError(f"not a plan: {error}") from None


class Handover(msgspec.Struct, frozen=True, tag=True):
    """The device's `name`; the descriptors that come along are MAX_DESCRIPTORS at most."""

    name: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The door is open."""


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """A PvpnError in words; `usage`: it is about what the user typed."""

    error: str
    hint: str = ""
    usage: bool = False

    def as_error(self) -> UsageError | ControlError:
        return (UsageError if self.usage else ControlError)(self.error, self.hint)


_T = TypeVar("_T")


def encode(message: msgspec.Struct) -> bytes:
    """A message as its line."""
    return msgspec.json.encode(message) + b"\n"


def decode(line: bytes, kinds: type[_T]) -> _T:
    """A message of one of `kinds` (a class or a union) from its line; raises WireError."""
    try:
        return msgspec.json.decode(line, type=kinds)
    except (ValueError, RecursionError) as error:
        raise WireError(f"not the message that is due: {error}") from None
