"""What `pvpn run` says while it runs: one line an event, remote text escaped."""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

from proxy_vpn.daemon.status import MAX_LINE_CHARS, printable

SAME_WARNING_PAUSE_S = 10.0
_WARNINGS_REMEMBERED = 256


class Console:
    """Prints lines for people; flushes each, so that a pipe sees them at once."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout

    def say(self, text: str) -> None:
        """One line; a reader that went away is no reason to stop."""
        try:
            print(printable(text, MAX_LINE_CHARS), file=self._stream, flush=True)
        except (BrokenPipeError, ValueError):
            return

    def peer_came(self, network: str, name: str, path: str, took_s: float) -> None:
        self.say(f"+ {name} ({network}): {path}, after {took_s:.1f} s")

    def peer_went(self, network: str, name: str, reason: str) -> None:
        self.say(f"- {name} ({network}): {reason}")

    def warn(self, text: str) -> None:
        self.say(f"! {text}")

    def take_logs(self, verbosity: int) -> None:
        """Warnings become lines of their own kind; `verbosity` 1 adds what happened, 2 everything, with times."""
        level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
        root = logging.getLogger()
        root.setLevel(level)
        root.addHandler(_ConsoleHandler(self, verbosity))
        # The engines call a peer's goodbye a warning.
        logging.getLogger("quic").setLevel(logging.ERROR if verbosity < 2 else logging.DEBUG)


class _ConsoleHandler(logging.Handler):
    """Prints log records; without -v only warnings, and the same one at most every 10 s."""

    def __init__(self, console: Console, verbosity: int) -> None:
        super().__init__()
        self._console = console
        self._verbose = verbosity > 0
        self._said: dict[str, float] = {}
        self.setFormatter(_OneLine("%(asctime)s %(name)s: %(message)s" if self._verbose else "%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        text, now = self.format(record), time.monotonic()
        if self._verbose:
            self._console.say(text)
            if record.exc_info:
                for line in logging.Formatter().formatException(record.exc_info).splitlines():
                    self._console.say(line)
        elif now - self._said.get(text, -SAME_WARNING_PAUSE_S) >= SAME_WARNING_PAUSE_S:
            if len(self._said) >= _WARNINGS_REMEMBERED:
                self._said.clear()
            self._said[text] = now
            self._console.warn(text)


class _OneLine(logging.Formatter):
    """Names an exception, without its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        if self.usesTime():
            record.asctime = self.formatTime(record, "%H:%M:%S")
        error = record.exc_info[1] if record.exc_info else None
        return self.formatMessage(record) + (f" ({error!r})" if error else "")
