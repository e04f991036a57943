"""Bare datagrams of full size in as few calls as pvpn's, with nothing in them: what a tunnel over UDP can't exceed.

`receive PORT` counts what comes until nothing has for a while and prints one JSON object; `send PORT --host HOST` sends
for --seconds as fast as the kernel takes it.
"""

from __future__ import annotations

import argparse
import json
import select
import time

from proxy_vpn.addresses import Address
from proxy_vpn.net.udp import Path, UdpSocket

DATAGRAM_BYTES = 1452
TOGETHER = 44  # four trains of eleven
SILENCE_S = 0.5
PATIENCE_S = 20.0


def receive(port: int) -> dict[str, float]:
    """Bytes and Mbit/s, from the first datagram to the last."""
    udp = UdpSocket(Address("0.0.0.0", port))
    print("ready", flush=True)
    total, began, ended = 0, 0.0, 0.0
    while select.select([udp], [], [], SILENCE_S if total else PATIENCE_S)[0]:
        while batches := udp.receive():
            ended = time.monotonic()
            began = began or ended
            total += sum(batch.segments.size for batch in batches)
    udp.close()
    return {"bytes": total, "mbit_s": total * 8 / (ended - began) / 1e6 if ended > began else 0.0}


def send(host: str, port: int, seconds: float) -> dict[str, float]:
    """Bytes given to the kernel."""
    udp, path = UdpSocket(Address("0.0.0.0", 0)), Path("", 0, Address(host, port))
    datagrams, total, deadline = [bytes(DATAGRAM_BYTES * TOGETHER)], 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        udp.send(datagrams, path, DATAGRAM_BYTES)
        total += len(datagrams[0])
        while not udp.flush():
            select.select([], [udp], [])
    udp.close()
    return {"bytes": total}


def main() -> None:
    """Play the role the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["receive", "send"])
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    receives = options.role == "receive"
    print(json.dumps(receive(options.port) if receives else send(options.host, options.port, options.seconds)))


if __name__ == "__main__":
    main()
