"""One more peer: what it takes of a process that does nothing, which had 3 peers and then has more."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.bench import usage
from tests.bench.measures.samples import Samples, add
from tests.bench.row import sent_bytes
from tests.bench.tools.pvpn import Pvpn
from tests.lab.daemon import Daemon, make_key
from tests.lab.hosts import Lab

# A process that has only dialled loads some megabytes when it is dialled for the first time. Of four, one at most has
# not been dialled yet and is later: an outlier, which a median leaves out.
FEW = 4
# The kernel keeps 1024 neighbours for all namespaces together: 33 hosts that all know each other have more.
MANY, MOST = 20, 30
# Until what follows a first meeting is over: sizes are tried after 5 s, other paths after 10.
SETTLE_S = 12.0
HOUR_S = 3600
KB_MB = 1e3


class Taken(NamedTuple):
    """What one process takes: resident memory, % of a core, and what its host sends in an hour."""

    memory_kb: float
    cpu: float
    traffic_mb: float


def measure(tool: Pvpn, lab: Lab, directory: Path, samples: Samples, seconds: float, count: int = MANY) -> None:
    """As peer_memory (KB), peer_cpu (% of a core) and peer_traffic (MB an hour): each further peer's, one process.

    There are `count` members in the end, every one connected to every other. They start one after the other, and the
    first few are watched.
    """
    directory.mkdir()
    key, members = make_key(directory), list[Daemon]()
    _grow(tool, lab, key, members, FEW)
    watched = tuple(members)
    few = _taken(watched, seconds)
    _grow(tool, lab, key, members, count)
    many = _taken(watched, seconds)
    for member in members:
        member.stop()
    for field in Taken._fields:
        grown = [getattr(after, field) - getattr(before, field) for before, after in zip(few, many, strict=True)]
        add(samples, f"peer_{field.partition('_')[0]}", statistics.median(grown) / (count - FEW))


def _grow(tool: Pvpn, lab: Lab, key: Path, members: list[Daemon], count: int) -> None:
    """Let the network have `count` members, all connected."""
    while len(members) < count:
        number = len(members) + 1
        told = ("--peer", members[0].endpoint) if members else ()
        newcomer = tool.daemon(lab.host(f"member{number}"), key, f"peer-{number:02}", *told).start()
        newcomer.meet(*members)
        for member in members:
            member.meet(newcomer)
        members.append(newcomer)


def _taken(members: Sequence[Daemon], seconds: float) -> list[Taken]:
    time.sleep(min(SETTLE_S, seconds))
    before, began = [_used(member) for member in members], time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - began
    return [
        Taken(memory_kb, 100 * (ran_s - ran_before) / elapsed, (sent - sent_before) / 1e6 * HOUR_S / elapsed)
        for (memory_kb, ran_s, sent), (_, ran_before, sent_before) in zip(map(_used, members), before, strict=True)
    ]


def _used(member: Daemon) -> tuple[float, float, int]:
    """Resident memory in KB, and so far: CPU seconds, bytes sent."""
    assert member.process is not None
    root = member.process.pid
    return usage.memory_mb([root], "VmRSS") * KB_MB, usage.ran_s([root]), sent_bytes(member.host)
