"""Warnings: what the user should know now; each stands in `pvpn status` until it is settled."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

MAX_WARNINGS: Final = 8


class Warnings:
    """The warnings that stand, at most 8, the newest kept; `say` tells the user when one comes up."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._standing: dict[str, Callable[[], bool]] = {}

    def add(self, text: str, settled: Callable[[], bool] = lambda: False) -> None:
        """Say it, unless it stands already; it stands until `settled()`, which is asked at every look."""
        if text in self.standing():
            return
        while len(self._standing) >= MAX_WARNINGS:
            del self._standing[next(iter(self._standing))]
        self._standing[text] = settled
        self.say(text)

    def settle(self, name: str) -> None:
        """The user has dealt with the machine of this name: drop what was said of it."""
        word = re.compile(rf"(?<![a-z0-9-]){re.escape(name)}(?![a-z0-9-])")
        self._standing = {text: settled for text, settled in self._standing.items() if not word.search(text)}

    def standing(self) -> tuple[str, ...]:
        """The texts, oldest first."""
        self._standing = {text: settled for text, settled in self._standing.items() if not settled()}
        return tuple(self._standing)
