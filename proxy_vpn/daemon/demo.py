"""`pvpn demo`: the main job on one machine, without any network.

A private DHT on loopback, two peers as separate processes that share nothing but a key file, a small web service
on one of them, fetched through the other's SOCKS port and through a forward. Each step is printed with its time.
However the demo ends, its processes end too, and unless it is killed outright its directory goes with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from types import FrameType

from proxy_vpn.daemon.lifeline import stop_with_stdin
from proxy_vpn.errors import StateError
from proxy_vpn.keys import NetworkKey, write_key_file
from proxy_vpn.net.private_dht import PrivateDht

STEP_TIMEOUT_S = 15.0
DHT_NODES = 8
PAGE = b"hello from peer-b, over the mesh\n"


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Steps:
    """Prints what was done and how long it took."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()

    def done(self, text: str) -> None:
        now = time.monotonic()
        print(f"{now - self._last:6.2f} s  {text}", flush=True)
        self._last = now

    @property
    def total_s(self) -> float:
        return time.monotonic() - self._started


class _Child:
    """A process of the demo (`python -m` and arguments) that lives as long as its stdin; its lines are waited for."""

    def __init__(self, name: str, *arguments: str) -> None:
        self._name = name
        self._lines: Queue[str | None] = Queue()
        self._said: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip())
        self._lines.put(None)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first line that matches; raises StateError when it doesn't come in time."""
        deadline = time.monotonic() + STEP_TIMEOUT_S
        with contextlib.suppress(Empty):
            while (line := self._lines.get(timeout=max(0.0, deadline - time.monotonic()))) is not None:
                self._said.append(line)
                match = re.search(pattern, line)
                if match:
                    return match
        last = self._said[-1] if self._said else "nothing"
        raise StateError(f"{self._name} never got so far; it last said: {last}", "run 'pvpn demo' again")

    def stop(self) -> None:
        """End it and wait."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STEP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()


@contextlib.contextmanager
def _web_service() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _fetch(url: str, proxy: str = "") -> bytes:
    handler = urllib.request.ProxyHandler({"http": proxy} if proxy else {})
    with urllib.request.build_opener(handler).open(url, timeout=STEP_TIMEOUT_S) as answer:
        body: bytes = answer.read()
    return body


def _socks_fetch(proxy: str, host: str, port: int) -> bytes:
    """One HTTP request through SOCKS5 (RFC 1928), with the name resolved at the far end."""
    proxy_host, _, proxy_port = proxy.rpartition(":")
    with socket.create_connection((proxy_host, int(proxy_port)), STEP_TIMEOUT_S) as sock, sock.makefile("rb") as answer:
        name = host.encode()
        sock.sendall(b"\5\1\0\5\1\0\3" + bytes((len(name),)) + name + port.to_bytes(2, "big"))
        if answer.read(2) != b"\5\0" or answer.read(10)[1:2] != b"\0":
            raise StateError("peer-a's SOCKS port refused", "please report this")
        sock.sendall(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        return answer.read().partition(b"\r\n\r\n")[2]


async def _serve_dht(size: int) -> None:
    """The demo's DHT, in a process of its own until SIGTERM."""
    stop_with_stdin()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with PrivateDht(size) as dht:
        print(f"dht {dht.addresses[0]}", flush=True)
        await stop.wait()


@contextlib.contextmanager
def _tidy_end() -> Iterator[None]:
    """Make the signals that end a process unwind it instead; the first one counts."""
    numbers = (signal.SIGTERM, signal.SIGHUP)

    def end(number: int, _frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run() -> int:
    """The whole demo; 0 if every step worked. Raises PvpnError."""
    steps = _Steps()
    with _tidy_end(), contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pvpn-demo-")))
        key_file = directory / "demo.key"
        write_key_file(key_file, NetworkKey.generate("demo"))
        steps.done("made demo.key: whoever holds it is in the network")
        dht = _Child("the DHT", "proxy_vpn.daemon.demo", str(DHT_NODES))
        stack.callback(dht.stop)
        bootstrap = dht.wait_for(r"^dht (\S+)$")[1]
        steps.done(f"started a private DHT of {DHT_NODES} nodes on loopback")
        port = stack.enter_context(_web_service())

        def peer(name: str, number: int, *extra: str) -> _Child:
            command = ("proxy_vpn", "run", str(key_file), "--no-lan", "--no-port-mapping", "--until-eof")
            own = ("--name", name, "--state", str(directory / name), "--listen", f"127.0.{200 + number}.1:0")
            child = _Child(name, *command, *own, "--dht-bootstrap", bootstrap, *extra)
            stack.callback(child.stop)
            return child

        peer_b = peer("peer-b", 2, "--expose", str(port))
        forward = f"127.0.0.1:0:peer-b:{port}"
        peer_a = peer("peer-a", 1, "--socks", "0", "--forward", forward)
        proxy = peer_a.wait_for(r"socks5h://(\S+)")[1]
        forwarded = peer_a.wait_for(r"forward: (\S+):peer-b:")[1]
        steps.done("started peer-a and peer-b: two processes that share the key file and nothing else")
        found = peer_a.wait_for(r"^\+ peer-b \S+ (.*)")[1]
        peer_b.wait_for(r"^\+ peer-a ")
        steps.done(f"they found each other through the DHT: {found}")
        if _socks_fetch(proxy, "peer-b", port) != PAGE:
            raise StateError("the page came back changed through SOCKS", "please report this")
        steps.done(f"fetched http://peer-b:{port}/ through peer-a's SOCKS port {proxy}")
        if _fetch(f"http://peer-b:{port}/", f"http://{proxy}") != PAGE:
            raise StateError("the page came back changed through the HTTP proxy", "please report this")
        steps.done("fetched it again, through the same port as an HTTP proxy")
        if _fetch(f"http://{forwarded}/") != PAGE:
            raise StateError("the page came back changed through the forward", "please report this")
        steps.done(f"fetched it again, through the forward {forwarded} -> peer-b:{port}")
    steps.done("stopped everything")
    print(f"it works: {steps.total_s:.1f} s in all. Next: pvpn keygen home.key", flush=True)
    return 0


if __name__ == "__main__":
    asyncio.run(_serve_dht(int(sys.argv[1])))
