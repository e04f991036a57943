"""The Python API: join a network from a program and fetch a page from a peer, with asyncio's own streams.

    python examples/python_api.py home.key peer-b 8000

The program is a peer of its own, so it has its own state directory, beside that of a `pvpn run`.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from proxy_vpn import Node, PvpnError, Settings, load_key_file
from proxy_vpn.addresses import Target


async def fetch(settings: Settings, peer: str, port: int) -> bytes:
    """The bytes a peer's web server answers with."""
    async with Node(settings) as node:
        reader, writer = await node.open(peer, port)
        writer.write(f"GET / HTTP/1.0\r\nHost: {peer}\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch http://PEER:PORT/ over the mesh.")
    parser.add_argument("key", type=Path)
    parser.add_argument("peer")
    parser.add_argument("port", type=int)
    parser.add_argument("--at", type=Target.parse, metavar="HOST:PORT", help="look here, not in the DHT or on the LAN")
    parser.add_argument("--state", type=Path, default=Path("python-api.state"))
    given = parser.parse_args()
    settings = Settings(
        keys=(load_key_file(given.key),),
        name="python-api",
        peers=(given.at,) if given.at else (),
        dht=not given.at,
        lan=not given.at,
        port_mapping=not given.at,
        state=given.state,
    )
    print(asyncio.run(fetch(settings, given.peer, given.port)).decode())


if __name__ == "__main__":
    try:
        main()
    except PvpnError as error:
        sys.exit(str(error))
