"""How many flows of peers are served at once: what the process's file descriptors allow, and no peer all of them."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Awaitable

DESCRIPTORS_WANTED = 65536
DESCRIPTORS_RESERVED = 256
FLOWS_LIMIT = 4096
PEER_SHARE = 2


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files as far as it may go, 65,536 at most; the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return DESCRIPTORS_WANTED if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return soft
    return wanted


class ServedFlows:
    """Counts the flows being served, in all and for each peer (by identity)."""

    def __init__(self, descriptors: int) -> None:
        self.limit = max(1, min(FLOWS_LIMIT, descriptors - DESCRIPTORS_RESERVED))
        self._flows: Counter[bytes] = Counter()

    def admits(self, peer: bytes) -> bool:
        """Whether one more flow of this peer may be served."""
        return self._flows.total() < self.limit and self._flows[peer] < max(1, self.limit // PEER_SHARE)

    async def counting(self, peer: bytes, work: Awaitable[None]) -> None:
        """Serve one flow, counted while it lasts."""
        self._flows[peer] += 1
        try:
            await work
        finally:
            self._flows[peer] -= 1
            if not self._flows[peer]:
                del self._flows[peer]
