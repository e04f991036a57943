"""What LAN discovery says and hears: a Service is an announcement of ours, Instances are the peers of one network."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from proxy_vpn.addresses import Address, Scope

MAX_ADDRESSES = 8
MAX_INSTANCES = 64
LOWEST_PORT = 1024
REPEAT_S = 30.0
HINTS_PER_REPEAT = 512


@dataclass(frozen=True, slots=True)
class Service:
    """One instance: its label, its target's label, and where it is; all addresses have the one port."""

    label: str
    server: str
    addresses: tuple[Address, ...]


class Instances:
    """Who was heard of one network; of more than 64 the one that was silent longest is forgotten.

    What comes out is bounded too: 512 addresses in 30 s.
    """

    def __init__(self) -> None:
        self._told: OrderedDict[str, dict[Address, float]] = OrderedDict()
        self._hints = 0
        self._hints_since = -math.inf

    def __len__(self) -> int:
        return len(self._told)

    def hear(self, token: str, addresses: Sequence[Address], now: float) -> list[Address]:
        """An instance's announcement; which of its addresses to try: those that are new, the others twice a minute."""
        told = self._told.pop(token, {})
        places = [address for address in addresses if shareable(address) and address.port >= LOWEST_PORT]
        if now - self._hints_since >= REPEAT_S:
            self._hints, self._hints_since = 0, now
        due = [address for address in places[:MAX_ADDRESSES] if now - told.get(address, -math.inf) >= REPEAT_S]
        due = due[: HINTS_PER_REPEAT - self._hints]
        self._hints += len(due)
        kept = {address: told[address] for address in places[:MAX_ADDRESSES] if address in told}
        self._told[token] = kept | dict.fromkeys(due, now)
        if len(self._told) > MAX_INSTANCES:
            self._told.popitem(last=False)
        return due

    def forget(self, token: str) -> None:
        """It said goodbye, so it is new when it returns."""
        self._told.pop(token, None)


def shareable(address: Address) -> bool:
    """Whether it means the same to others on the LAN: IPv6 link-local needs a zone, loopback is the hearer itself."""
    if not address.is_unicast or address.scope is Scope.LOOPBACK:
        return False
    return address.scope is not Scope.LINK or ":" not in address.ip


def chosen(addresses: Sequence[Address]) -> tuple[Address, ...]:
    """The first 8, both families in turn."""
    ipv4 = [address for address in addresses if ":" not in address.ip]
    ipv6 = [address for address in addresses if ":" in address.ip]
    in_turn = [address for pair in zip_longest(ipv4, ipv6) for address in pair if address is not None]
    return tuple(in_turn[:MAX_ADDRESSES])
