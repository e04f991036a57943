"""Turns of the event loop: how much a busy socket may take of one, so that small messages need not wait long.

Large reads are what bulk is fast with, and what everybody else waits for: eight full sockets make a turn of three
milliseconds, and a message that crosses two processes and comes back waits for three of them. While somebody sends
small messages, reads are smaller.
"""

from __future__ import annotations

from typing import Final

SMALL_BYTES: Final = 4096
HURRY_S: Final = 0.1


class Turns:
    """Whether anybody has sent a small message lately; times are the loop's."""

    def __init__(self) -> None:
        self._until = 0.0

    def hurry(self, now: float) -> None:
        """Somebody has sent a small message: keep turns short for a while."""
        self._until = now + HURRY_S

    def are_short(self, now: float) -> bool:
        """Whether turns are to be kept short."""
        return now < self._until <= now + HURRY_S


# One for the process, as its loop is one; sockets of all kinds share that loop's turns.
TURNS: Final = Turns()
