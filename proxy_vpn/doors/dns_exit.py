"""The name server that an exit is to its peers: what they ask is asked of this host's own name servers.

Never about .pvpn: a name there is a peer's, and these servers are not to hear of it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Final

from proxy_vpn.addresses import is_under_pvpn
from proxy_vpn.doors.dns_elsewhere import HostResolver
from proxy_vpn.doors.dns_stream import DnsStream
from proxy_vpn.doors.udp import DatagramFlow
from proxy_vpn.wire.dns import asked_name, no_such_name

MAX_A_FLOW: Final = 64
IDLE_S: Final = 30.0


def answering_stream(resolver: HostResolver) -> DnsStream:
    """The far end of a peer's stream of queries."""
    return DnsStream(partial(_respond, resolver, over_tcp=True))


async def answer_queries(flow: DatagramFlow, resolver: HostResolver) -> None:
    """Answer what a peer asks us, its exit, until it closes the flow or is silent for 30 s; then close it."""
    loop = asyncio.get_running_loop()
    queries: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_A_FLOW)

    def put(query: bytes | None) -> None:
        with suppress(asyncio.QueueFull):
            queries.put_nowait(query)

    async def answer(query: bytes) -> None:
        said = await _respond(resolver, query)
        if said is not None:
            flow.send(said)

    flow.on_datagram = put
    flow.on_closed = lambda: put(None)
    tasks: set[asyncio.Task[None]] = set()
    try:
        async with asyncio.timeout(None) as idle:
            while True:
                idle.reschedule(loop.time() + IDLE_S)
                query = await queries.get()
                if query is None:
                    return
                if len(tasks) < MAX_A_FLOW:
                    task = loop.create_task(answer(query))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
    except TimeoutError:
        return
    finally:
        flow.on_datagram = flow.on_closed = None
        for task in tuple(tasks):
            task.cancel()
        flow.close()


async def _respond(resolver: HostResolver, query: bytes, over_tcp: bool = False) -> bytes | None:
    name = asked_name(query)
    if name is None:
        return None
    return no_such_name(query) if is_under_pvpn(name) else await resolver.ask(query, over_tcp)
