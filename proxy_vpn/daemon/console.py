"""What `pvpn run` says while it runs: one line an event, remote text escaped."""

from __future__ import annotations

import sys
from typing import TextIO

from proxy_vpn.daemon.status import printable


class Console:
    """Prints lines for people; flushes each, so that a pipe sees them at once."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout

    def say(self, text: str) -> None:
        """One line; a reader that went away is no reason to stop."""
        try:
            print(printable(text), file=self._stream, flush=True)
        except (BrokenPipeError, ValueError):
            return

    def peer_came(self, network: str, name: str, path: str, took_s: float) -> None:
        self.say(f"+ {name} ({network}): {path}, after {took_s:.1f} s")

    def peer_went(self, network: str, name: str, reason: str) -> None:
        self.say(f"- {name} ({network}): {reason}")

    def warn(self, text: str) -> None:
        self.say(f"! {text}")
