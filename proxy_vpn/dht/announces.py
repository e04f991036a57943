"""Announces on their way: how many nodes were told, and how many of them stored it."""

from __future__ import annotations

from dataclasses import dataclass

from proxy_vpn.dht.events import Announced


@dataclass(slots=True)
class _Round:
    info_hash: bytes
    family: int
    asked: int
    left: int
    stored: int = 0


class Rounds:
    """Each announce is a numbered round, over when all nodes told have answered or failed."""

    def __init__(self) -> None:
        self._rounds: dict[int, _Round] = {}
        self._number = 0

    def begin(self, info_hash: bytes, family: int, asked: int) -> int:
        """The number of a new round that waits for `asked` (at least 1) outcomes."""
        self._number += 1
        self._rounds[self._number] = _Round(info_hash, family, asked, asked)
        return self._number

    def finish_one(self, number: int, *, stored: bool) -> Announced | None:
        """One node's outcome; the event if it was the last."""
        current = self._rounds[number]
        current.left -= 1
        current.stored += stored
        if current.left:
            return None
        del self._rounds[number]
        return Announced(current.info_hash, current.family, current.asked, current.stored)
