"""How many datagrams this host's UDP sockets had no room for, as Linux counts them (RFC 4113 has the rest).

No library: it would be one more dependency for two lines of text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from proxy_vpn.net import proc

_COUNT = re.compile("[0-9]{1,20}")
_COUNTERS4, _COUNTERS6 = Path("/proc/net/snmp"), Path("/proc/net/snmp6")


def overflows() -> int:
    """Since the system started, in all its sockets; 0 where nobody counts."""
    return counted(proc.lines(_COUNTERS4), proc.lines(_COUNTERS6))


def counted(snmp: Iterable[str], snmp6: Iterable[str]) -> int:
    """The same from the lines of /proc/net/snmp and /proc/net/snmp6."""
    rows = [line.split() for line in snmp if line.startswith("Udp:")]
    found = [value for name, value in zip(*rows[:2], strict=False) if name == "RcvbufErrors"] if len(rows) > 1 else []
    found += [words[1] for words in map(str.split, snmp6) if words[:1] == ["Udp6RcvbufErrors"] and len(words) > 1]
    return sum(int(each) for each in found if _COUNT.fullmatch(each))
