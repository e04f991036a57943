"""One Lan on a host, for the lab: says what it hears, line by line.

python -m tests.lab.lan_member PORT TAG...        a member; standard input: `changed` or `end`
python -m tests.lab.lan_member --watch INTERFACE  every mDNS frame there, in hexadecimal
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time

from proxy_vpn.addresses import Address
from proxy_vpn.net.interfaces import reachable_addresses
from proxy_vpn.net.lan import Lan

ALL_PROTOCOLS = 3
MDNS_PORT = (5353).to_bytes(2, "big")


async def member(port: int, tags: list[str]) -> None:
    def addresses() -> list[Address]:
        return reachable_addresses([Address("0.0.0.0", port), Address("::", port)])

    began = time.monotonic()

    def heard(address: Address) -> None:
        print(f"heard {address} after {time.monotonic() - began:.3f} s", flush=True)

    lan = Lan(addresses, os.urandom)
    for tag in tags:
        lan.add(lambda tag=tag: [tag], heard)  # type: ignore[misc]
    lan.start()
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print("started", flush=True)
    while await lines.readline() == b"changed\n":
        lan.network_changed()
    await lan.close()
    print("closed", flush=True)


def watch(interface: str) -> None:
    frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
    frames.bind((interface, 0))
    print("watching", flush=True)
    while True:
        frame = frames.recv(65536)
        if MDNS_PORT in frame[34:58]:
            print(frame.hex(), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--watch":
        watch(sys.argv[2])
    else:
        asyncio.run(member(int(sys.argv[1]), sys.argv[2:]))
