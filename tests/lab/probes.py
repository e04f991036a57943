"""Numbered datagrams to an echo and back: what a line loses, doubles, lets overtake, and how long it takes.

Run as `python -m tests.lab.probes echo PORT`, or `send HOST PORT COUNT SIZE INTERVAL_MS`, which prints one JSON line.
"""

from __future__ import annotations

import json
import select
import socket
import statistics
import sys
import time

PATIENCE_S = 0.5
LONGEST_RTT_S = 2.0
RECEIVE_BUFFER_BYTES = 4 << 20


def echo(port: int) -> None:
    """Send back each datagram, until killed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.bind(("", port))
        print("echoing", flush=True)
        while True:
            data, sender = sock.recvfrom(65535)
            sock.sendto(data, sender)


class Prober:
    """Sends datagrams that hold their number, and keeps when each went and came back."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sent_at: list[float] = []
        self._order: list[int] = []
        self._rtts_ms: dict[int, float] = {}

    def run(self, count: int, size: int, interval_s: float) -> dict[str, float]:
        """Send all of them, wait for what still comes, and count."""
        began = time.monotonic()
        for number in range(count):
            self._receive_until(began + number * interval_s)
            self._sent_at.append(time.monotonic())
            self._sock.send(number.to_bytes(8, "big").ljust(size, b"."))
        last = time.monotonic()
        while len(self._rtts_ms) < count and time.monotonic() < last + LONGEST_RTT_S:
            self._receive_until(last + LONGEST_RTT_S, stop_at=count)
        self._receive_until(time.monotonic() + PATIENCE_S)  # doubles of the last ones
        rtts = sorted(self._rtts_ms.values())
        return {
            "sent": count,
            "came": len(rtts),
            "doubled": len(self._order) - len(rtts),
            "overtaken": self._overtaken(),
            "min_ms": rtts[0] if rtts else 0.0,
            "median_ms": statistics.median(rtts) if rtts else 0.0,
            "max_ms": rtts[-1] if rtts else 0.0,
        }

    def _overtaken(self) -> int:
        """How many came after one that was sent later."""
        highest, overtaken = -1, 0
        for number in self._order:
            overtaken += number < highest
            highest = max(highest, number)
        return overtaken

    def _receive_until(self, deadline: float, stop_at: int | None = None) -> None:
        while len(self._rtts_ms) != stop_at and (left := deadline - time.monotonic()) > 0:
            if not select.select([self._sock], [], [], left)[0]:
                return
            number = int.from_bytes(self._sock.recv(65535)[:8], "big")
            self._order.append(number)
            self._rtts_ms.setdefault(number, (time.monotonic() - self._sent_at[number]) * 1000)


def main() -> None:
    role, *arguments = sys.argv[1:]
    if role == "echo":
        echo(int(arguments[0]))
        return
    host, port, count, size, interval_ms = arguments
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.connect((host, int(port)))
        print(json.dumps(Prober(sock).run(int(count), int(size), float(interval_ms) / 1000)), flush=True)


if __name__ == "__main__":
    main()
