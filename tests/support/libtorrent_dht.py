"""A private DHT of real libtorrent sessions, meshed all to all; also a program for use inside a network namespace.

python libtorrent_dht.py 10.0.1.1:6881 10.0.2.1:6881 ...   prints "ready N" and ends on SIGTERM or the end of stdin.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

SETTINGS: dict[str, Any] = {
    "enable_dht": True,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "alert_mask": 0,
    "dht_bootstrap_nodes": "",
    "dht_block_ratelimit": 500,
    "dht_upload_rate_limit": 1_000_000,
    "dht_restrict_routing_ips": False,
    "dht_restrict_search_ips": False,
    # Tests run thousands of nodes from one address range: their ids can't fit it.
    "dht_enforce_node_id": False,
}
READY_S = 20.0
POLL_S = 0.05


@contextlib.contextmanager
def libtorrent_dht(listen: Sequence[tuple[str, int]]) -> Iterator[list[Any]]:
    """Sessions listening on these IPs and ports, every one of which has another in its table."""
    import libtorrent

    warnings.simplefilter("ignore", DeprecationWarning)
    sessions = [libtorrent.session({**SETTINGS, "listen_interfaces": f"{_bracket(ip)}:{port}"}) for ip, port in listen]
    try:
        _mesh(sessions, listen)
        yield sessions
    finally:
        for session in sessions:
            session.pause()
        sessions.clear()


def _mesh(sessions: Sequence[Any], listen: Sequence[tuple[str, int]]) -> None:
    deadline = time.monotonic() + READY_S
    added_at = 0.0
    while min(session.status().dht_nodes for session in sessions) < min(3, len(sessions) - 1):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the DHT is not ready: {[session.status().dht_nodes for session in sessions]}")
        if time.monotonic() - added_at > 1.0:
            added_at = time.monotonic()
            for session, own in zip(sessions, listen, strict=True):
                for other in listen:
                    if other != own:
                        session.add_dht_node(other)
        time.sleep(POLL_S)


def _bracket(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip


def _main(arguments: Sequence[str]) -> None:
    listen = []
    for argument in arguments:
        ip, port = argument.rsplit(":", 1)
        listen.append((ip.strip("[]"), int(port)))
    # An exception, so that the sessions are closed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with libtorrent_dht(listen):
        print("ready", len(listen), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    _main(sys.argv[1:])
