"""The ports of this host that listen on every address: what peers reach unless a policy closes it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from proxy_vpn.addresses import Address
from proxy_vpn.doors.own import OwnListeners

# /proc/net/tcp: TCP_LISTEN. /proc/net/udp: TCP_CLOSE, an unconnected socket.
_LISTENING = {"tcp": "0A", "udp": "07"}


class OpenPort(NamedTuple):
    """A TCP or UDP port that listens on 0.0.0.0 or [::]."""

    port: int
    udp: bool

    def __str__(self) -> str:
        return f"{self.port}/{'udp' if self.udp else 'tcp'}"


def open_ports(own: OwnListeners) -> list[OpenPort]:
    """Those of this host, in order, without this process's own; empty where there is no /proc/net."""
    found: set[OpenPort] = set()
    for protocol in _LISTENING:
        for suffix in ("", "6"):
            with suppress(OSError):
                text = Path(f"/proc/net/{protocol}{suffix}").read_text(encoding="ascii", errors="replace")
                found.update(OpenPort(port, protocol == "udp") for port in wildcard_ports(text.splitlines(), protocol))
    return sorted(each for each in found if not own.forbids(Address("0.0.0.0", each.port), each.udp))


def wildcard_ports(lines: Iterable[str], protocol: str) -> set[int]:
    """Ports bound to every address in the lines of /proc/net/{tcp,udp}{,6}; `protocol` is "tcp" or "udp"."""
    ports = set()
    for line in lines:
        field = line.split()
        if len(field) >= 4 and field[3] == _LISTENING[protocol]:
            ip, _colon, port = field[1].partition(":")
            if not ip.strip("0"):
                ports.add(int(port, 16))
    return ports - {0}
