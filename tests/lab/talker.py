"""One UDP socket on a host that says what it hears: to see what a router does to datagrams.

The program, `python -m tests.lab.talker PORT IP`, obeys lines `IP PORT TEXT`, each answered with `sent TEXT`, and
prints `TEXT from IP:PORT` for what comes in.
"""

from __future__ import annotations

import socket
import sys
import threading

from tests.lab.hosts import Host

PORT = 5000
DATAGRAM_BYTES = 2048


class Talker:
    """A socket bound to one port of a host, until the lab ends; `ip`: at one of its addresses, or at all IPv6 ones."""

    def __init__(self, host: Host, port: int = PORT, ip: str = "0.0.0.0") -> None:
        self.endpoint = (host.address if ip == "0.0.0.0" else ip, port)
        self._process = host.python("-m", "tests.lab.talker", str(port), ip)
        self._process.wait_for("^ready$")

    def send(self, text: str, endpoint: tuple[str, int]) -> None:
        """Send a word; returns when it is on its way."""
        since = self._process.mark()
        self._process.tell(f"{endpoint[0]} {endpoint[1]} {text}")
        self._process.wait_for(f"^sent {text}$", since=since)

    def hear(self, text: str) -> tuple[str, int]:
        """Wait for a word; who sent it, as seen from here."""
        match = self._process.wait_for(rf"^{text} from (.*):(\d+)$")
        return match[1], int(match[2])

    def heard(self, text: str) -> bool:
        """Whether a word has come in so far."""
        return f"\n{text} from " in self._process.output


def main() -> None:
    port, own = int(sys.argv[1]), sys.argv[2]
    sock = socket.socket(socket.AF_INET6 if ":" in own else socket.AF_INET, socket.SOCK_DGRAM)
    if ":" in own:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((own, port))
    threading.Thread(target=_listen, args=[sock], daemon=True).start()
    _say("ready")
    for line in sys.stdin:
        ip, port, text = line.split()
        sock.sendto(text.encode(), (ip, int(port)))
        _say(f"sent {text}")


def _listen(sock: socket.socket) -> None:
    while True:
        try:
            data, (ip, port, *_) = sock.recvfrom(DATAGRAM_BYTES)
        except OSError:  # an earlier datagram was refused
            continue
        _say(f"{data.decode()} from {ip}:{port}")


def _say(text: str) -> None:
    """One write a line: two threads speak, and print() writes the end of a line apart."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
