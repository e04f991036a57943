"""The program that carries the frames of a tests.lab.wire: delay, loss, reordering, rate, queue, black hole, cuts.

`python -m tests.lab.carrier SEED` makes two TAP devices, `near` and `far`, says `ready`, and carries between them until
standard input ends. It obeys the lines that come there, and answers each with one line:

    set WAY NAME=VALUE ...     WAY is out (from near), in (to near) or both; NAME a field of Line    -> ok
    count                      -> ok {"out": {...}, "in": {...}}, the fields of Counts
"""

from __future__ import annotations

import fcntl
import gc
import heapq
import json
import os
import random
import select
import struct
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace

TUN_DEVICE = "/dev/net/tun"
TUNSETIFF = 0x400454CA  # linux/if_tun.h, as are the two flags
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
ETHERNET_BYTES = 14
IP_TYPES = (b"\x08\x00", b"\x86\xdd")
FRAME_BYTES = 2048
BURST_FRAMES = 64
IN_FLIGHT_FRAMES = 100_000
URGENCY = -10


@dataclass(frozen=True, slots=True)
class Line:
    """What one direction of a wire does to frames; the default is nothing.

    A frame waits in the queue, is sent at the line's rate, may then be lost, doubled or held back, and arrives after
    the delay. Sizes and rates count Ethernet frames (IP packet + 14 bytes), as the kernel's queues do.
    """

    delay_ms: float = 0.0
    loss: float = 0.0
    """Probability."""
    reorder: float = 0.0
    """Probability of being held back `extra_ms` beyond the delay while later frames pass."""
    extra_ms: float = 0.0
    duplicate: float = 0.0
    """Probability."""
    rate_mbit: float = 0.0
    """10**6 bits per second; 0 is without limit, and then nothing queues."""
    queue_bytes: float = 262_144.0
    """What finds no room is dropped (tail drop)."""
    largest_bytes: float = 0.0
    """Silently drops IP packets that are larger; 0 drops none."""
    up: float = 1.0
    """0 silently drops all, also what is on its way; the devices of the hosts notice nothing."""


@dataclass(slots=True)
class Counts:
    """What became of the frames of one direction."""

    frames: int = 0
    """Came in."""
    carried: int = 0
    """Went out, doubles included."""
    carried_bytes: int = 0
    lost: int = 0
    overflowed: int = 0
    """Found no room in the queue."""
    oversized: int = 0
    """Fell into the black hole."""
    cut: int = 0
    """Met a line that was down."""
    held_back: int = 0
    doubled: int = 0
    refused: int = 0
    """Not taken by the device at the far end, which is down."""
    largest_backlog_bytes: int = 0


class Lane:
    """One direction in the carrying program: frames in by `take`, out by `deliver` when their time has come.

    Times are seconds of one monotonic clock.
    """

    def __init__(self, sink: int, seed: int) -> None:
        self.counts = Counts()
        self._sink = sink
        self._chance = random.Random(seed).random
        self._on_the_way: list[tuple[float, int, bytes]] = []  # a heap
        self._free_at = 0.0
        self.line = Line()
        self._plain = True

    def change(self, line: Line) -> None:
        """Treat frames like this from now on."""
        self.line = line
        self._plain = line == Line()
        if not line.up:
            self.counts.cut += len(self._on_the_way)
            self._on_the_way.clear()
            self._free_at = 0.0

    @property
    def due(self) -> float | None:
        """When the next frame arrives, or None when none is on its way."""
        return self._on_the_way[0][0] if self._on_the_way else None

    def take(self, frame: bytes, now: float) -> None:
        """A frame enters."""
        self.counts.frames += 1
        if self._plain and not self._on_the_way:
            self._write(frame)
        elif self._lets_in(frame):
            sent_at = self._send(len(frame), now)
            if sent_at is not None:
                self._carry(frame, sent_at)

    def deliver(self, now: float) -> None:
        """Let out what has arrived by now."""
        while self._on_the_way and self._on_the_way[0][0] <= now:
            self._write(heapq.heappop(self._on_the_way)[2])

    def _lets_in(self, frame: bytes) -> bool:
        line, counts = self.line, self.counts
        if not line.up:
            counts.cut += 1
        elif line.largest_bytes and len(frame) - ETHERNET_BYTES > line.largest_bytes and frame[12:14] in IP_TYPES:
            counts.oversized += 1
        elif len(self._on_the_way) >= IN_FLIGHT_FRAMES:
            counts.overflowed += 1
        else:
            return True
        return False

    def _send(self, size: int, now: float) -> float | None:
        """When the last bit of a frame will have been sent, or None when the queue has no room."""
        line = self.line
        if not line.rate_mbit:
            return now
        bytes_per_s = line.rate_mbit * 125_000
        backlog = max(0.0, (self._free_at - now) * bytes_per_s) + size
        if backlog > line.queue_bytes:
            self.counts.overflowed += 1
            return None
        self.counts.largest_backlog_bytes = max(self.counts.largest_backlog_bytes, int(backlog))
        self._free_at = max(self._free_at, now) + size / bytes_per_s
        return self._free_at

    def _carry(self, frame: bytes, sent_at: float) -> None:
        line, counts = self.line, self.counts
        if line.loss and self._chance() < line.loss:
            counts.lost += 1
            return
        arrives = sent_at + line.delay_ms / 1000
        if line.reorder and self._chance() < line.reorder:
            counts.held_back += 1
            arrives += line.extra_ms / 1000
        heapq.heappush(self._on_the_way, (arrives, counts.frames * 2, frame))
        if line.duplicate and self._chance() < line.duplicate:
            counts.doubled += 1
            heapq.heappush(self._on_the_way, (arrives, counts.frames * 2 + 1, frame))

    def _write(self, frame: bytes) -> None:
        try:
            os.write(self._sink, frame)
        except OSError:
            self.counts.refused += 1
        else:
            self.counts.carried += 1
            self.counts.carried_bytes += len(frame)


class Controls:
    """The commands on standard input, as they come."""

    def __init__(self, lanes: dict[str, Lane]) -> None:
        self._lanes = lanes
        self._rest = b""

    def receive(self, data: bytes) -> None:
        """Obey each whole line, and answer it."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                answer = self._obey(line.decode().split())
            except (ValueError, KeyError, TypeError) as error:
                print("error", repr(error), flush=True)
            else:
                print("ok", answer, flush=True)

    def _obey(self, words: list[str]) -> str:
        verb, *rest = words
        if verb == "count" and not rest:
            return json.dumps({way: asdict(lane.counts) for way, lane in self._lanes.items()})
        if verb != "set":
            raise ValueError(verb)
        way, *settings = rest
        lanes = list(self._lanes.values()) if way == "both" else [self._lanes[way]]
        known = {field.name for field in fields(Line)}
        changes: dict[str, float] = {}
        for name, value in (setting.split("=") for setting in settings):
            if name not in known:
                raise ValueError(name)
            changes[name] = float(value)
        for lane in lanes:
            lane.change(replace(lane.line, **changes))
        return ""


def open_tap(name: str) -> int:
    """A new TAP device in this process's network namespace, which lives as long as the descriptor, wherever it goes."""
    descriptor = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return descriptor


def carry(near: int, far: int, seed: int) -> None:
    """Carry frames between two TAP devices until standard input ends."""
    lanes = {"out": Lane(far, seed), "in": Lane(near, seed + 1)}
    lane_from = {near: lanes["out"], far: lanes["in"]}
    controls, commands = Controls(lanes), sys.stdin.fileno()
    waited_for = [near, far, commands]
    while True:
        # select, because its timeouts are exact to the microsecond where those of poll count milliseconds
        dues = [lane.due for lane in lanes.values() if lane.due is not None]
        timeout = max(0.0, min(dues) - time.monotonic()) if dues else None
        ready, _, _ = select.select(waited_for, [], [], timeout)
        for lane in lanes.values():
            lane.deliver(time.monotonic())
        for source in ready:
            if source != commands:
                _drain(source, lane_from[source])
            elif data := os.read(commands, 4096):
                controls.receive(data)
            else:
                return


def _drain(source: int, lane: Lane) -> None:
    with suppress(BlockingIOError):
        for _ in range(BURST_FRAMES):
            frame = os.read(source, FRAME_BYTES)
            lane.take(frame, time.monotonic())


def main() -> None:
    gc.disable()  # nothing here makes cycles, and a collection would delay frames
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, URGENCY)
    near, far = open_tap("near"), open_tap("far")
    print("ready", flush=True)
    carry(near, far, int(sys.argv[1]))


if __name__ == "__main__":
    main()
