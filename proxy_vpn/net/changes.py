"""What changes under a running process: addresses, links and routes of the host, and time that it slept through.

On Linux the kernel tells (rtnetlink(7)); elsewhere, and for sleep everywhere, a look now and then does.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from proxy_vpn.addresses import Address
from proxy_vpn.net.interfaces import reachable_addresses

SETTLE_S = 0.1
CLOCK_EVERY_S = 1.0
ADDRESSES_EVERY_S = 5.0
SLEPT_S = 3.0
RECEIVE_BYTES = 65536
_ANYWHERE = (Address("0.0.0.0", 1), Address("::", 1))
_LINK, _IPV4_ADDRESS, _IPV4_ROUTE, _IPV6_ADDRESS = 0x1, 0x10, 0x40, 0x100
_GROUPS = _LINK | _IPV4_ADDRESS | _IPV4_ROUTE | _IPV6_ADDRESS


class NetworkWatch:
    """Calls `on_change` shortly after the host's network changed or the host woke up, until closed."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._settling: asyncio.TimerHandle | None = None
        self._lag_s = self._lag()
        self._addresses = None if sys.platform == "linux" else set(reachable_addresses(_ANYWHERE))
        self._looked_at = self._loop.time()
        self._socket = self._listen()
        self._timer = self._loop.call_later(CLOCK_EVERY_S, self._look)

    def close(self) -> None:
        """Watch no more; idempotent."""
        self._timer.cancel()
        if self._settling is not None:
            self._settling.cancel()
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _listen(self) -> socket.socket | None:
        if sys.platform != "linux":
            return None
        flags = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            listener = socket.socket(socket.AF_NETLINK, flags, socket.NETLINK_ROUTE)
        except OSError:  # a sandbox that forbids it
            self._addresses = set(reachable_addresses(_ANYWHERE))
            return None
        listener.bind((0, _GROUPS))
        self._loop.add_reader(listener.fileno(), self._heard)
        return listener

    def _heard(self) -> None:
        """Something changed; what the messages say does not matter, nor that some may be lost."""
        assert self._socket is not None
        with suppress(OSError):
            while self._socket.recv(RECEIVE_BYTES):
                pass
        self._changed()

    def _changed(self) -> None:
        if self._settling is None:
            self._settling = self._loop.call_later(SETTLE_S, self._settled)

    def _settled(self) -> None:
        self._settling = None
        self._on_change()

    @staticmethod
    def _lag() -> float:
        """How much longer the host has been up than awake."""
        clock = getattr(time, "CLOCK_BOOTTIME", None)
        return 0.0 if clock is None else time.clock_gettime(clock) - time.monotonic()

    def _look(self) -> None:
        self._timer = self._loop.call_later(CLOCK_EVERY_S, self._look)
        lag_s, now = self._lag(), self._loop.time()
        slept = lag_s - self._lag_s > SLEPT_S
        self._lag_s = lag_s
        moved = False
        if self._addresses is not None and now - self._looked_at >= ADDRESSES_EVERY_S:
            self._looked_at = now
            addresses = set(reachable_addresses(_ANYWHERE))
            moved, self._addresses = addresses != self._addresses, addresses
        if slept or moved:
            self._changed()
