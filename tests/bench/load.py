"""The load the bench measures with: plain blocking sockets, in processes of their own.

`python -m tests.bench.load serve PORT` is the far end. `up`, `down`, `connect` and `pingpong` measure through a way
(--host, --socks) and print one JSON object. A client begins with one byte: `d` is answered with zeros until it hangs
up or its time is over, `u` reads to the end of the stream and answers with the number of bytes (8), `e` echoes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable

from tests.support.dialing import Way, receive_exactly

CHUNK_BYTES = 256 * 1024
# Enough for the streams of one measurement; processes that wait cost nothing, and starting one would be measured.
WORKERS = 16
PR_SET_PDEATHSIG = 1
WARM_UP = 20
FORK = multiprocessing.get_context("fork")


def serve(port: int) -> None:
    """Serve on every address until killed, in a fixed crew of processes that end with this one."""
    listener = socket.create_server(("", port), backlog=512)
    crew = [FORK.Process(target=_work, args=(listener,)) for _ in range(WORKERS)]
    for worker in crew:
        worker.start()
    print(f"serving on {port}", flush=True)
    for worker in crew:
        worker.join()


def _work(listener: socket.socket) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    buffer = bytearray(CHUNK_BYTES)
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with sock:
            try:
                _answer(sock, buffer)
            except OSError:  # a client that ended in the middle, as all downloads do
                continue


def _answer(sock: socket.socket, buffer: bytearray) -> None:
    order = receive_exactly(sock, 1)
    if order == b"d":
        deadline = time.monotonic() + receive_exactly(sock, 1)[0] / 10
        while time.monotonic() < deadline:
            sock.sendall(buffer)
    elif order == b"u":
        total = 0
        while size := sock.recv_into(buffer):
            total += size
        sock.sendall(total.to_bytes(8, "big"))
    elif order == b"e":
        while size := sock.recv_into(buffer):
            sock.sendall(memoryview(buffer)[:size])


def down(sock: socket.socket, seconds: float) -> int:
    """Bytes received until the server's end of stream."""
    sock.sendall(b"d" + bytes([round(seconds * 10)]))
    buffer, total = bytearray(CHUNK_BYTES), 0
    while size := sock.recv_into(buffer):
        total += size
    return total


def up(sock: socket.socket, seconds: float) -> int:
    """Bytes the server says it received, when it had them all."""
    sock.sendall(b"u")
    chunk, deadline = bytes(CHUNK_BYTES), time.monotonic() + seconds
    while time.monotonic() < deadline:
        sock.sendall(chunk)
    sock.shutdown(socket.SHUT_WR)
    return int.from_bytes(receive_exactly(sock, 8), "big")


def stream(
    way: Way, port: int, run: Callable[[socket.socket, float], int], streams: int, seconds: float
) -> dict[str, float]:
    """Bytes of all streams together and Mbit/s, from their start until the last byte has arrived."""
    socks = [way.dial(port) for _ in range(streams)]
    totals = FORK.Array("q", streams)

    def one(index: int) -> None:
        totals[index] = run(socks[index], seconds)

    others = [FORK.Process(target=one, args=(index,)) for index in range(1, streams)]
    began = time.monotonic()
    for other in others:
        other.start()
    one(0)
    for other in others:
        other.join()
    elapsed = time.monotonic() - began
    for sock in socks:
        sock.close()
    carried = [int(totals[index]) for index in range(streams)]
    if not all(carried):
        raise RuntimeError(f"a stream carried nothing: {carried}")
    return {"bytes": sum(carried), "mbit_s": sum(carried) * 8 / elapsed / 1e6}


def connect(way: Way, port: int, count: int) -> list[float]:
    """Milliseconds for a new connection and one echoed byte, `count` times in turn."""
    took = []
    for number in range(count + WARM_UP):
        began = time.perf_counter()
        with way.dial(port) as sock:
            sock.sendall(b"e!")
            receive_exactly(sock, 1)
            if number >= WARM_UP:
                took.append((time.perf_counter() - began) * 1e3)
    return took


def pingpong(way: Way, port: int, count: int) -> list[float]:
    """Milliseconds for one byte there and back on an open connection, `count` times in turn."""
    took = []
    with way.dial(port) as sock:
        sock.sendall(b"e")
        for number in range(count + WARM_UP):
            began = time.perf_counter()
            sock.sendall(b"!")
            receive_exactly(sock, 1)
            if number >= WARM_UP:
                took.append((time.perf_counter() - began) * 1e3)
    return took


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["serve", "up", "down", "connect", "pingpong"])
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--socks", type=int, default=0)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--count", type=int, default=500)
    options = parser.parse_args()
    way = Way(options.host, options.socks)
    if options.role == "serve":
        serve(options.port)
    elif options.role in ("up", "down"):
        run = up if options.role == "up" else down
        print(json.dumps(stream(way, options.port, run, options.streams, options.seconds)))
    else:
        measure = connect if options.role == "connect" else pingpong
        print(json.dumps({"ms": sorted(measure(way, options.port, options.count))}))


if __name__ == "__main__":
    main()
