"""What a node tells its driver."""

from __future__ import annotations

from dataclasses import dataclass

from proxy_vpn.addresses import Address


@dataclass(frozen=True, slots=True)
class PeersFound:
    """The node at `source` says these addresses announced `info_hash`: hints, each at most once per lookup."""

    info_hash: bytes
    addresses: tuple[Address, ...]
    source: Address


@dataclass(frozen=True, slots=True)
class LookupDone:
    """A search for peers ended after asking `asked` nodes of this family (4 or 6), of which `answered` did."""

    info_hash: bytes
    family: int
    asked: int
    answered: int


@dataclass(frozen=True, slots=True)
class Announced:
    """An announce ended: `stored` of the `asked` nodes of this family accepted it."""

    info_hash: bytes
    family: int
    asked: int
    stored: int


@dataclass(frozen=True, slots=True)
class ExternalAddress:
    """Nodes in three networks agree that this is where our socket is seen."""

    address: Address


Event = PeersFound | LookupDone | Announced | ExternalAddress
