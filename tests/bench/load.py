"""The load the bench measures with: plain blocking sockets, in processes of their own.

`python -m tests.bench.load serve PORT` is the far end. `up`, `down`, `connect` and `pingpong` measure through a way
(--host, --socks) and print one JSON object; `first` tries until a byte comes back. A client begins with one byte: `d`
is answered with zeros until it hangs up or its time is over, `u` reads zeros until another byte comes and answers with
the number of bytes (8), `e` echoes. So nothing needs half-closed connections, which not all proxies have. `stall`
sends to a `deaf` service on the same port + 1, which never reads.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import select
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
END = b"\1"
# Kernels differ in their default, and this one is what most have.
CUBIC = "cubic"
# A proxy may wait until its tunnel is up; a SYN that nobody answered is better sent anew than waited for.
FIRST_SOCKS_S = 2.0
FIRST_STRAIGHT_S = 0.1
RETRY_S = 0.01
STUCK_S = 0.3
READY_S = 30.0  # for all processes of a load to be there
FORK = multiprocessing.get_context("fork")


def serve(port: int) -> None:
    """Serve on every address until killed, in a fixed crew of processes that end with this one."""
    if socket.has_dualstack_ipv6():
        listener = socket.create_server(("", port), family=socket.AF_INET6, backlog=512, dualstack_ipv6=True)
    else:
        listener = socket.create_server(("", port), backlog=512)
    _use_cubic(listener)
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


def _use_cubic(sock: socket.socket) -> None:
    """Accepted connections inherit it; what was connected before has sent nothing yet."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CUBIC.encode())


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
            if buffer[size - 1]:
                break
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
    sock.sendall(END)
    return int.from_bytes(receive_exactly(sock, 8), "big")


def stream(
    way: Way, port: int, run: Callable[[socket.socket, float], int], streams: int, seconds: float
) -> dict[str, float]:
    """Bytes of all streams together and Mbit/s, from their start until the last byte has arrived.

    Each has a process; what it takes to make and to end those is not measured.
    """
    socks = [way.dial(port) for _ in range(streams)]
    for sock in socks:
        _use_cubic(sock)
    totals, starts, ends = FORK.Array("q", streams), FORK.Array("d", streams), FORK.Array("d", streams)
    ready = FORK.Barrier(streams)

    def one(index: int) -> None:
        ready.wait(READY_S)
        starts[index] = time.monotonic()
        totals[index] = run(socks[index], seconds)
        ends[index] = time.monotonic()

    others = [FORK.Process(target=one, args=(index,)) for index in range(1, streams)]
    for other in others:
        other.start()
    print("connected", flush=True)
    one(0)
    for other in others:
        other.join()
    elapsed = max(ends) - min(starts)
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


def pingpong(way: Way, port: int, count: int, seconds: float) -> list[float]:
    """Milliseconds for one byte there and back on an open connection, `count` times in turn or till time is up."""
    took: list[float] = []
    deadline = time.monotonic() + seconds
    with way.dial(port) as sock:
        sock.sendall(b"e")
        for number in range(count + WARM_UP):
            if took and time.monotonic() > deadline:
                break
            began = time.perf_counter()
            sock.sendall(b"!")
            receive_exactly(sock, 1)
            if number >= WARM_UP:
                took.append((time.perf_counter() - began) * 1e3)
    return took


def deaf(port: int) -> None:
    """Let connections wait in the kernel, where nobody reads what they bring, until killed."""
    with socket.create_server(("", port + 1), family=socket.AF_INET, backlog=512):
        print("deaf", flush=True)
        signal.pause()


def stall(way: Way, port: int, streams: int, seconds: float) -> int:
    """Bytes that `streams` connections took while nobody read, each sent to as fast as it takes.

    Says when none takes any more, and goes on for so many seconds.
    """
    socks = [way.dial(port + 1) for _ in range(streams)]
    for sock in socks:
        sock.setblocking(False)
    print("connected", flush=True)
    chunk, total = bytes(CHUNK_BYTES), 0
    while ready := select.select([], socks, [], STUCK_S)[1]:
        for sock in ready:
            total += sock.send(chunk)
    print("stuck", flush=True)
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        for sock in select.select([], socks, [], left)[1]:
            total += sock.send(chunk)
    for sock in socks:
        sock.close()
    return total


def first(way: Way, port: int, seconds: float) -> float:
    """The time (of the monotonic clock) when a connection brought its first echoed byte; TimeoutError."""
    patience_s = FIRST_SOCKS_S if way.socks else FIRST_STRAIGHT_S
    signal.signal(signal.SIGALRM, _out_of_time)
    deadline = time.monotonic() + seconds
    print("trying", flush=True)
    while time.monotonic() < deadline:
        try:
            signal.setitimer(signal.ITIMER_REAL, patience_s)
            with way.dial(port) as sock:
                sock.sendall(b"e!")
                receive_exactly(sock, 1)
                return time.monotonic()
        except OSError:
            continue
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            time.sleep(RETRY_S)
    raise TimeoutError(f"no way within {seconds:g} s")


def _out_of_time(*_: object) -> None:
    raise TimeoutError


def main() -> None:
    """Play the role the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["serve", "deaf", "up", "down", "connect", "pingpong", "first", "stall"])
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--socks", type=int, default=0)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--count", type=int, default=500)
    options = parser.parse_args()
    if options.role == "serve":
        serve(options.port)
    elif options.role == "deaf":
        deaf(options.port)
    else:
        print(json.dumps(_answer_of(options)))


def _answer_of(options: argparse.Namespace) -> dict[str, float] | dict[str, list[float]]:
    way, port, seconds = Way(options.host, options.socks), options.port, options.seconds
    match options.role:
        case "up":
            return stream(way, port, up, options.streams, seconds)
        case "down":
            return stream(way, port, down, options.streams, seconds)
        case "connect":
            return {"ms": sorted(connect(way, port, options.count))}
        case "pingpong":
            return {"ms": sorted(pingpong(way, port, options.count, seconds))}
        case "first":
            return {"at": first(way, port, seconds)}
        case _:
            return {"bytes": 0.0 + stall(way, port, options.streams, seconds)}


if __name__ == "__main__":
    main()
