"""Where peers may be: addresses from the user, memory, the DHT, peer exchange and probes, and when to try them.

Values are hints, often wrong and sometimes hostile: at most 64 addresses a peer, 256 of unknown peers, 4 per /24
(or /48) of those, each probed with growing pauses. What the user names and where a known peer was are tried on for
good; others for as long as somebody goes on naming them, because a NAT lets a peer's probe in only while one of ours
has just gone out: two that came at different times meet once the first has learnt of the second.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import ip_address

from proxy_vpn.addresses import Address, Scope

PER_PEER_LIMIT = 64
UNKNOWN_LIMIT = 256
PER_PREFIX_LIMIT = 4
PER_IP_LIMIT = 16
TOTAL_LIMIT = 2048
PROBES_PER_TURN = 64
PROBES_PER_IP_AND_TURN = 4
QUICK_PROBES = 5
FIRST_PAUSE_S = 0.5
RETURN_PAUSE_S = 1.5
SLOW_PAUSE_S = 10.0
PERSISTENT_PAUSE_S = 30.0
NAMED_FOR_S = 120.0
RETURN_FOR_S = 600.0
OWN_ADDRESS_S = 600.0


class Source(IntEnum):
    """Who named an address."""

    USER = 0
    MEMORY = 1
    LAN = 2
    PROBE = 3
    EXCHANGE = 4
    DHT = 5
    RELAY = 6


@dataclass(slots=True)
class Candidate:
    """An address where a peer may be; `identity` is empty while nobody knows whose it is."""

    address: Address
    identity: bytes
    source: Source
    probes: int = 0
    due: float = 0.0
    named: float = 0.0

    @property
    def persistent(self) -> bool:
        """Whether it is tried for good."""
        return self.source in (Source.USER, Source.MEMORY)


class CandidateBook:
    """The candidates of one network and their schedule; `now` is in seconds of the loop's clock."""

    def __init__(self) -> None:
        self._book: dict[tuple[Address, bytes], Candidate] = {}
        self._own: dict[Address, float] = {}
        self._per_ip: Counter[str] = Counter()
        self._per_identity: Counter[bytes] = Counter()

    def add(
        self, address: Address, now: float, *, identity: bytes = b"", source: Source, scope: Scope = Scope.LOOPBACK
    ) -> bool:
        """Note an address; `scope` is its source's: nothing narrower is believed. True if it is new or due again."""
        if not address.is_unicast or self._own.get(address, 0.0) > now or address.scope < scope:
            return False
        if (source is Source.DHT and address.port < 1024) or address.relayed is not (source is Source.RELAY):
            return False
        known = self._book.get((address, identity))
        if known is not None:
            known.source = min(known.source, source)
            revived = not known.persistent and now - known.named > NAMED_FOR_S
            known.named = now
            if revived:
                known.probes, known.due = 0, now
            return revived
        if not self._has_room(address, identity, source, now):
            return False
        self._book[address, identity] = Candidate(address, identity, source, due=now, named=now)
        self._per_ip[address.ip] += 1
        self._per_identity[identity] += 1
        return True

    def _remove(self, candidate: Candidate) -> None:
        del self._book[candidate.address, candidate.identity]
        self._per_ip[candidate.address.ip] -= 1
        self._per_identity[candidate.identity] -= 1
        if not self._per_ip[candidate.address.ip]:
            del self._per_ip[candidate.address.ip]
        if not self._per_identity[candidate.identity]:
            del self._per_identity[candidate.identity]

    def _has_room(self, address: Address, identity: bytes, source: Source, now: float) -> bool:
        if source <= Source.MEMORY:
            return len(self._book) < 2 * TOTAL_LIMIT
        if self._per_ip[address.ip] >= PER_IP_LIMIT:
            return False
        if self._per_identity[identity] >= (PER_PEER_LIMIT if identity else UNKNOWN_LIMIT):
            spent = next((c for c in self._of(identity) if c.probes >= QUICK_PROBES and not c.persistent), None)
            if spent is None:
                return False
            self._remove(spent)
        if len(self._book) >= TOTAL_LIMIT and not self._forget_stale(now):
            return False
        if address.scope is not Scope.GLOBAL:
            return True
        prefix = _prefix(address)
        return sum(_prefix(c.address) == prefix for c in self._of(identity)) < PER_PREFIX_LIMIT

    def _of(self, identity: bytes) -> list[Candidate]:
        if not self._per_identity[identity]:
            return []
        return [candidate for candidate in self._book.values() if candidate.identity == identity]

    def _forget_stale(self, now: float) -> bool:
        """Drop those that nobody names any more; whether that made room."""
        for candidate in [c for c in self._book.values() if not c.persistent and now - c.named > NAMED_FOR_S]:
            self._remove(candidate)
        return len(self._book) < TOTAL_LIMIT

    def own_address(self, address: Address, now: float) -> None:
        """This address seems to be ourselves: leave it alone for 10 minutes (somebody may have fooled us)."""
        if len(self._own) >= UNKNOWN_LIMIT:
            self._own.clear()
        self._own[address] = now + OWN_ADDRESS_S
        candidate = self._book.get((address, b""))
        if candidate is not None:
            self._remove(candidate)

    def retry(self, identity: bytes, now: float) -> None:
        """Somebody wants this peer, or it was just lost: all its addresses are due at once."""
        for candidate in self._book.values():
            if candidate.identity == identity or (not candidate.identity and candidate.source is Source.USER):
                candidate.probes, candidate.due, candidate.named = 0, now, now

    def ownerless(self, now: float) -> set[Address]:
        """The addresses still tried of which nobody knows whose they are."""
        owned = {c.address for c in self._book.values() if c.identity}
        tried = (c for c in self._book.values() if c.persistent or now - c.named <= NAMED_FOR_S)
        return {c.address for c in tried if not c.identity} - owned

    def due(self, now: float) -> list[Candidate]:
        """The candidates to probe now, 64 at most and 4 an IP; each is counted and scheduled again."""
        chosen: list[Candidate] = []
        targets: Counter[str] = Counter()
        for candidate in self._book.values():
            if candidate.due > now or (now - candidate.named > NAMED_FOR_S and not candidate.persistent):
                continue
            if len(chosen) >= PROBES_PER_TURN or targets[candidate.address.ip] >= PROBES_PER_IP_AND_TURN:
                continue
            targets[candidate.address.ip] += 1
            pause = min(_slowest_s(candidate, now), FIRST_PAUSE_S * 2 ** min(candidate.probes, 10))
            candidate.probes += 1
            candidate.due = now + pause
            chosen.append(candidate)
        return chosen


def _slowest_s(candidate: Candidate, now: float) -> float:
    """The longest pause between probes: short where a peer was lately, which is back when its line is."""
    if candidate.persistent and candidate.identity and now - candidate.named <= RETURN_FOR_S:
        return RETURN_PAUSE_S
    return PERSISTENT_PAUSE_S if now - candidate.named > NAMED_FOR_S else SLOW_PAUSE_S


def _prefix(address: Address) -> bytes:
    packed = ip_address(address.ip).packed
    return packed[:3] if len(packed) == 4 else packed[:6]
