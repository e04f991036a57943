"""A child process whose output lines can be waited for, and which never outlives its owner."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

WAIT_S = 20.0
STOP_S = 10.0
DRAIN_S = 2.0
TAIL_LINES = 40


class Process:
    """Runs `argv`; keeps what it prints (both outputs, merged) and wakes whoever waits for a line of it."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        stdin: int | IO[bytes] | None = None,
    ) -> None:
        self.argv = list(argv)
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._child = subprocess.Popen(
            self.argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.PIPE if stdin is None else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._reader = threading.Thread(target=self._read, name=f"output of {self.argv[0]}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    @property
    def output(self) -> str:
        """All lines so far."""
        return "\n".join(self._lines)

    def mark(self) -> int:
        """The number of lines so far, to wait only for later ones."""
        return len(self._lines)

    def wait_for(self, pattern: str, timeout_s: float = WAIT_S, since: int = 0) -> re.Match[str]:
        """The first line from `since` on that holds `pattern`; AssertionError when it ends or time is up without."""
        wanted, seen, deadline = re.compile(pattern), since, time.monotonic() + timeout_s
        with self._changed:
            while True:
                for line in self._lines[seen:]:
                    seen += 1
                    if match := wanted.search(line):
                        return match
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    break
                self._changed.wait(left)
        if self._ended:
            with suppress(subprocess.TimeoutExpired):  # its output closes a moment before it is gone
                self._child.wait(DRAIN_S)
        raise AssertionError(self._complaint(pattern, timeout_s))

    def tell(self, line: str) -> None:
        """Write one line to its standard input."""
        assert self._child.stdin is not None
        self._child.stdin.write(line.encode() + b"\n")
        self._child.stdin.flush()

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """Its exit code, once all it printed was read; AssertionError when it does not end."""
        try:
            code = self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(self._complaint("(its end)", timeout_s)) from None
        self._reader.join(DRAIN_S)
        return code

    def result(self, timeout_s: float = WAIT_S) -> dict[str, Any]:
        """The JSON object on the last line of a process that ends well."""
        code = self.wait(timeout_s)
        assert code == 0 and self._lines, self._complaint(f"(exit code {code})", timeout_s)
        answer = json.loads(self._lines[-1])
        assert isinstance(answer, dict)
        return answer

    def finish(self, timeout_s: float = WAIT_S) -> dict[str, Any]:
        """End its standard input, then its `result`."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        return self.result(timeout_s)

    def interrupt(self) -> int:
        """End it as Ctrl-C does; its exit code."""
        self._finish(signal.SIGINT)
        return self._child.returncode

    def kill(self) -> None:
        """End it with SIGKILL and wait."""
        self._finish(signal.SIGKILL)

    def stop(self) -> int:
        """End it with SIGTERM, after STOP_S with SIGKILL; its exit code."""
        self._finish(signal.SIGTERM)
        return self._child.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _finish(self, number: signal.Signals) -> None:
        if self.running:
            self._child.send_signal(number)
        if self._child.stdin is not None:
            with suppress(BrokenPipeError):
                self._child.stdin.close()
        try:
            self._child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait(STOP_S)
        self._reader.join(DRAIN_S)

    def _read(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as stream:
            for raw in stream:
                with self._changed:
                    self._lines.append(raw.decode(errors="replace").rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _complaint(self, pattern: str, timeout_s: float) -> str:
        state = "still running" if self.running else f"ended with {self._child.returncode}"
        tail = "\n".join(self._lines[-TAIL_LINES:]) or "(nothing)"
        return f"no {pattern!r} within {timeout_s:g} s from {' '.join(self.argv)} ({state}); it printed:\n{tail}"
