"""What processes and their descendants cost: CPU seconds and resident memory, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

TICKS_S = 1 / os.sysconf("SC_CLK_TCK")
KIB_MB = 1024 / 1e6


def family(pid: int) -> list[int]:
    """The process and all its descendants that run now."""
    found, waiting = [], [pid]
    while waiting:
        member = waiting.pop()
        found.append(member)
        for listing in Path(f"/proc/{member}/task").glob("*/children"):
            waiting += [int(child) for child in _read(listing).split()]
    return found


def cpu_s(roots: Iterable[int]) -> float:
    """CPU time used so far, user and kernel, with children that have ended and were waited for."""
    total = 0.0
    for pid in [member for root in roots for member in family(root)]:
        fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
        total += sum(int(ticks) for ticks in fields[11:15]) * TICKS_S
    return total


def ran_s(roots: Iterable[int]) -> float:
    """The same in nanoseconds' steps, of what runs now: for what is too little to count in ticks."""
    total = 0
    for pid in [member for root in roots for member in family(root)]:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            total += int(_read(task).partition(" ")[0] or 0)
    return total / 1e9


def memory_mb(roots: Iterable[int], field: str) -> float:
    """The largest family's sum of `VmRSS` (now) or `VmHWM` (each member's peak)."""
    return max((sum(_status_mb(pid, field) for pid in family(root)) for root in roots), default=0.0)


def _status_mb(pid: int, field: str) -> float:
    for line in _read(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * KIB_MB
    return 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # ended meanwhile
        return ""
