"""A program behind a router: a UDP socket, and a PortMapper that keeps a port for it on the router's outside.

Run as `python -m tests.lab.mapped PORT`. It says `mapped IP:PORT by PROTOCOL after N ms` or `lost` for each change,
`got TEXT` for each datagram that comes, and after a line on its standard input gives the mapping back and says `closed
after N ms`; what the package logs stands between.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import Any

from proxy_vpn.addresses import Address
from proxy_vpn.net.portmap import PortMapper

NONCE = b"mapped nonce"


class Printer(asyncio.DatagramProtocol):
    """Says what comes."""

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        print(f"got {ascii(data.decode())[1:-1]}", flush=True)


async def main(port: int) -> None:
    """Until a line comes."""
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(Printer, local_addr=("0.0.0.0", port))
    began = time.monotonic()

    def told(external: Address | None) -> None:
        passed_ms = round((time.monotonic() - began) * 1000)
        said = f"mapped {external} by {mapper.status.protocol} after {passed_ms} ms" if external else "lost"
        print(said, flush=True)

    mapper = PortMapper(port, told, nonce=NONCE)
    mapper.start()
    await asyncio.to_thread(sys.stdin.readline)
    began = time.monotonic()
    await mapper.close()
    print(f"closed after {round((time.monotonic() - began) * 1000)} ms", flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
    asyncio.run(main(int(sys.argv[1])))
