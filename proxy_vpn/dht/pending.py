"""Questions that wait for an answer: accepted only from the exact address asked, with the exact transaction id."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass

from proxy_vpn.addresses import Address
from proxy_vpn.dht.ids import Entropy
from proxy_vpn.dht.lookup import Lookup
from proxy_vpn.wire.krpc import TID_BYTES, Call

MAX_PENDING = 1024
ANSWER_S = 3.0


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked of whom, when, and the lookup or the announce (by number) it belongs to."""

    tid: bytes
    address: Address
    call: Call
    asked_at: float
    lookup: Lookup | None = None
    announce: int | None = None


class Pending:
    """At most MAX_PENDING questions; each ends by `take` or, ANSWER_S after it was asked, by `expired`."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self._questions: dict[bytes, Question] = {}
        self._addresses: Counter[Address] = Counter()
        self._by_age: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._questions)

    @property
    def full(self) -> bool:
        return len(self._questions) >= MAX_PENDING

    def expects(self, address: Address) -> bool:
        """Whether anything was asked of this address; the cheap test before decoding."""
        return address in self._addresses

    def add(
        self,
        address: Address,
        call: Call,
        now: float,
        *,
        lookup: Lookup | None = None,
        announce: int | None = None,
    ) -> Question:
        """A new question with a fresh random transaction id."""
        tid = self._entropy(TID_BYTES)
        while tid in self._questions:
            tid = self._entropy(TID_BYTES)
        question = Question(tid, address, call, now, lookup, announce)
        self._questions[tid] = question
        self._addresses[address] += 1
        heapq.heappush(self._by_age, (now, tid))
        return question

    def take(self, tid: bytes, address: Address) -> Question | None:
        """The question this answers, removed; None if nothing like it was asked of that address."""
        question = self._questions.get(tid)
        if question is None or question.address != address:
            return None
        self._remove(question)
        return question

    def expired(self, now: float) -> list[Question]:
        """The questions whose time is over, removed."""
        gone = []
        while self._by_age and self._by_age[0][0] + ANSWER_S <= now:
            asked_at, tid = heapq.heappop(self._by_age)
            question = self._questions.get(tid)
            if question is not None and question.asked_at == asked_at:
                self._remove(question)
                gone.append(question)
        return gone

    def next_timer(self) -> float | None:
        """When the next question may expire."""
        return self._by_age[0][0] + ANSWER_S if self._by_age else None

    def _remove(self, question: Question) -> None:
        del self._questions[question.tid]
        self._addresses[question.address] -= 1
        if not self._addresses[question.address]:
            del self._addresses[question.address]
