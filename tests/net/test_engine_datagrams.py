"""DATAGRAM frames: neither a program that sends without end nor a line that carries nothing makes memory grow."""

from __future__ import annotations

import pytest

from proxy_vpn.net.engine import DATAGRAM_BURST_BYTES
from tests.support.engine_pair import ENGINES, PAIRINGS, EnginePair

FRAME = bytes(1000)
FLOOD = 20_000
FIRST_WINDOW_BYTES = 20_000


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_dead_line_does_not_take_is_lost_not_kept(engine: str) -> None:
    pair = EnginePair(engine, engine).handshake()
    pair.drop = lambda datagram, from_client: True
    sent = 0
    for _ in range(FLOOD):
        pair.client.engine.send_datagram(FRAME)
        sent += sum(map(len, pair.client.engine.transmit(pair.now)))
    assert sent < 2 * (DATAGRAM_BURST_BYTES + FIRST_WINDOW_BYTES)
    pair.drop = lambda datagram, from_client: False
    stream_id = pair.client.engine.open_stream()
    pair.client.engine.send(stream_id, b"still here", True)
    pair.until_ended(pair.server, stream_id)
    assert len(pair.server.handler.datagrams) * len(FRAME) <= DATAGRAM_BURST_BYTES


@pytest.mark.parametrize("engines", PAIRINGS)
def test_a_burst_goes_through_whole(engines: tuple[str, str]) -> None:
    pair = EnginePair(*engines).handshake()
    burst = [number.to_bytes(4, "big") + FRAME for number in range(100)]
    for frame in burst:
        pair.client.engine.send_datagram(frame)
    pair.run_for(5.0)
    assert sorted(pair.server.handler.datagrams) == burst
