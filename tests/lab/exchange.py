"""The program the lab sends through peers: a server of streams that can be checked, and its clients.

Run as `python -m tests.lab.exchange serve PORT`, or `get`, `put`, `follow` or `hold` with a way to reach it. A client
begins with one line: `get SIZE` (SIZE 0: endless) is answered with that many bytes, `put` reads to the end of the
stream and answers with a line of JSON, `echo` returns what comes. Both ends print how each stream ended: `clean` for
an end of stream, `reset` for ECONNRESET or EPIPE; and the SHA-256 of what they sent or got (not of endless streams);
whichever end receives says `flowing` when the first MiB is there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from tests.support.dialing import Way, receive_exactly, receive_line

BLOCK_BYTES = 256 * 1024
FLOWING_BYTES = 1 << 20
FOLLOW_S = 0.1
HOLD_S = 30.0


class Tally:
    """What went through one stream in one direction."""

    def __init__(self, hashed: bool = True) -> None:
        self.bytes = 0
        self.end = "open"
        self._hashed = hashed
        self._hash = hashlib.sha256()
        self._began = time.monotonic()

    def add(self, data: bytes | memoryview) -> None:
        if self._hashed:
            self._hash.update(data)
        self.bytes += len(data)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def as_json(self, role: str) -> str:
        seconds = round(time.monotonic() - self._began, 3)
        return json.dumps(
            {"role": role, "bytes": self.bytes, "sha256": self.sha256, "end": self.end, "seconds": seconds}
        )


def blocks(size: int, seed: int) -> Iterator[bytes]:
    """`size` bytes (endless when 0) in blocks that all differ, the same ones for the same seed."""
    filler = random.Random(seed).randbytes(BLOCK_BYTES - 8)
    number, left = 0, size
    while left or not size:
        block = number.to_bytes(8, "big") + filler
        if size:
            block = block[:left]
            left -= len(block)
        yield block
        number += 1


def send_all(sock: socket.socket, size: int, seed: int, tally: Tally) -> None:
    """Send `size` bytes; leaves `end` as it was, or `reset`."""
    try:
        for block in blocks(size, seed):
            sock.sendall(block)
            tally.add(block)
    except (ConnectionResetError, BrokenPipeError):
        tally.end = "reset"


def receive_all(sock: socket.socket, tally: Tally, progress: Callable[[], None] | None = None) -> None:
    """Receive to the end of the stream, which `end` then names."""
    buffer = bytearray(BLOCK_BYTES)
    view = memoryview(buffer)
    try:
        while size := sock.recv_into(buffer):
            tally.add(view[:size])
            if progress:
                progress()
        tally.end = "clean"
    except ConnectionResetError:
        tally.end = "reset"


def _announcer(tally: Tally) -> Callable[[], None]:
    """Prints `flowing` once when FLOWING_BYTES have come."""
    announced = False

    def announce() -> None:
        nonlocal announced
        if not announced and tally.bytes >= FLOWING_BYTES:
            announced = True
            print("flowing", flush=True)

    return announce


def serve(port: int) -> None:
    """Serve on every address of this host until killed; one printed line of JSON a stream."""
    listener = socket.create_server(("", port), backlog=128)
    print(f"serving on {port}", flush=True)
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_serve_one, args=(sock,), daemon=True).start()


def _serve_one(sock: socket.socket) -> None:
    tally = Tally()
    role = "refused"
    with sock:
        try:
            role, *arguments = receive_line(sock).decode().split()
            if role == "get":
                tally = Tally(hashed=arguments != ["0"])
                send_all(sock, int(arguments[0]), _seed(sock), tally)
                if tally.end == "open":
                    sock.shutdown(socket.SHUT_WR)
                    tally.end = "clean" if sock.recv(1) == b"" else "noise"
            elif role == "put":
                receive_all(sock, tally, _announcer(tally))
                if tally.end == "clean":
                    sock.sendall(tally.as_json(role).encode() + b"\n")
            elif role == "echo":
                while data := sock.recv(BLOCK_BYTES):
                    sock.sendall(data)
                    tally.add(data)
                tally.end = "clean"
        except OSError:
            tally.end = "reset"
    print(tally.as_json(role), flush=True)


def _seed(sock: socket.socket) -> int:
    """A seed that differs between the streams of one server."""
    peer: tuple[str, int] = sock.getpeername()
    return peer[1]


def get(sock: socket.socket, size: int) -> str:
    """Download; the report of what came."""
    tally = Tally(hashed=size > 0)
    sock.sendall(b"get %d\n" % size)
    receive_all(sock, tally, _announcer(tally))
    return tally.as_json("get")


def put(sock: socket.socket, size: int) -> str:
    """Upload, half-close, then wait for the server's report, which must agree; the report of what went."""
    tally = Tally(hashed=size > 0)
    sock.sendall(b"put\n")
    send_all(sock, size, 7, tally)
    if tally.end == "open":
        sock.shutdown(socket.SHUT_WR)
        try:
            answer = json.loads(receive_line(sock))
            same = answer["sha256"] == tally.sha256 and answer["bytes"] == tally.bytes
            tally.end = "clean" if same and not sock.recv(1) else "differs"
        except ConnectionResetError:
            tally.end = "reset"
        except ConnectionError:
            tally.end = "cut"
    return tally.as_json("put")


def follow(sock: socket.socket) -> str:
    """Download endlessly, printing `at SECONDS BYTES` (monotonic clock) about every FOLLOW_S."""
    tally = Tally(hashed=False)
    last = [0.0]

    def sample() -> None:
        now = time.monotonic()
        if now - last[0] >= FOLLOW_S:
            last[0] = now
            print(f"at {now:.4f} {tally.bytes}", flush=True)

    sock.sendall(b"get 0\n")
    receive_all(sock, tally, sample)
    return tally.as_json("follow")


def hold(sock: socket.socket) -> str:
    """Keep one echo stream; each line of standard input goes through it, and `echo LINE` is printed."""
    tally = Tally()
    sock.sendall(b"echo\n")
    sock.settimeout(HOLD_S)
    print("holding", flush=True)
    try:
        for text in sys.stdin:
            line = text.encode()
            sock.sendall(line)
            tally.add(receive_exactly(sock, len(line)))
            print("echo", text.rstrip("\n"), flush=True)
        sock.shutdown(socket.SHUT_WR)
        tally.end = "clean" if sock.recv(1) == b"" else "noise"
    except (ConnectionResetError, BrokenPipeError):
        tally.end = "reset"
    except OSError as error:
        tally.end = f"lost: {error}"
    return tally.as_json("hold")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["serve", "get", "put", "follow", "hold"])
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--socks", type=int, default=0)
    parser.add_argument("--size", type=int, default=0)
    options = parser.parse_args()
    if options.role == "serve":
        serve(options.port)
        return
    with Way(options.host, options.socks).dial(options.port) as sock:
        if options.role in ("get", "put"):
            print((get if options.role == "get" else put)(sock, options.size), flush=True)
        else:
            print((follow if options.role == "follow" else hold)(sock), flush=True)


if __name__ == "__main__":
    main()
