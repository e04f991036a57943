"""How much KRPC leaves this host: one bucket for everything, and caps per destination IP.

Real nodes go silent for minutes towards an IP that sent them about 50 packets within 10 s, and members behind
one NAT share that budget.
"""

from __future__ import annotations

from collections import OrderedDict, deque

RATE_PER_S = 40.0
BURST = 200.0
REPLY_RESERVE = BURST / 4
WINDOW_S = 10.0
QUESTIONS_PER_IP = 20
REPLIES_PER_IP = 50
MAX_IPS = 1024


class Pacer:
    """A token bucket for all datagrams; windows of questions to and replies to each IP."""

    def __init__(self, now: float) -> None:
        self._tokens = BURST
        self._at = now
        self._questions = _Windows(QUESTIONS_PER_IP)
        self._replies = _Windows(REPLIES_PER_IP)

    def may_ask(self, now: float) -> bool:
        """Whether one more question may leave now, to anyone."""
        self._refill(now)
        return self._tokens >= 1.0

    def ask(self, ip: str, now: float) -> bool:
        """Count a question to this destination; False if it had enough from us lately."""
        return self._questions.count(ip, now) and self._spend(now)

    def answer(self, ip: str, now: float) -> bool:
        """Count a reply; False if it must not be sent. Replies never use up what our own questions need."""
        self._refill(now)
        return self._tokens >= REPLY_RESERVE and self._replies.count(ip, now) and self._spend(now)

    def next_token_at(self, now: float) -> float:
        """When `may_ask` is true (again)."""
        self._refill(now)
        return now if self._tokens >= 1.0 else now + (1.0 - self._tokens) / RATE_PER_S

    def _spend(self, now: float) -> bool:
        self._refill(now)
        self._tokens -= 1.0
        return True

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(BURST, self._tokens + (now - self._at) * RATE_PER_S)
            self._at = now


class _Windows:
    """At most `limit` events within WINDOW_S for each of the MAX_IPS latest IPs."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def count(self, ip: str, now: float) -> bool:
        times = self._times.setdefault(ip, deque())
        self._times.move_to_end(ip)
        if len(self._times) > MAX_IPS:
            self._times.popitem(last=False)
        while times and now - times[0] >= WINDOW_S:
            times.popleft()
        if len(times) >= self._limit:
            return False
        times.append(now)
        return True
