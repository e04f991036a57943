"""How many datagrams this host's UDP sockets had no room for, as Linux counts them (RFC 4113 has the rest).

No library: it would be one more dependency for two lines of text.
"""

from __future__ import annotations

import re
from pathlib import Path

_COUNT = re.compile("[0-9]{1,20}")
_COUNTERS4, _COUNTERS6 = Path("/proc/net/snmp"), Path("/proc/net/snmp6")


def overflows() -> int:
    """Since the system started, in all its sockets; 0 where nobody counts."""
    return counted(_text(_COUNTERS4), _text(_COUNTERS6))


def counted(snmp: str, snmp6: str) -> int:
    """The same from the texts of /proc/net/snmp and /proc/net/snmp6."""
    rows = [line.split() for line in snmp.splitlines() if line.startswith("Udp:")]
    found = dict(zip(rows[0], rows[1], strict=False)).get("RcvbufErrors", "0") if len(rows) > 1 else "0"
    found6 = re.findall(r"^Udp6RcvbufErrors\s+(\S+)", snmp6, re.MULTILINE)
    return sum(int(each) for each in (found, *found6) if _COUNT.fullmatch(each))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
