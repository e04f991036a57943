"""Many streams that end while packets are lost: no byte and no end is missing, and nothing takes for ever."""

from __future__ import annotations

import random

import pytest

from tests.support.engine_pair import PAIRINGS, End, EnginePair

STREAMS = 120
STEP_S = 0.01
SIZES = (1, 1000, 30_000)
LOSSES = (0.05, 0.15)
HEAD = b"head"
SEEDS = range(3)


class Writer:
    """What one end has to say on its streams, given to the engine as it has room: a chunk of each in turn."""

    def __init__(self, end: End) -> None:
        self._end = end
        self._texts: dict[int, bytes] = {}
        self.said: dict[int, bytes] = {}

    def say(self, stream_id: int, text: bytes) -> None:
        self._texts[stream_id] = self.said[stream_id] = text

    def write(self) -> None:
        engine = self._end.engine
        while self._texts and (room := engine.room) > 0:
            stream_id, text = next(iter(self._texts.items()))
            del self._texts[stream_id]
            chunk, rest = text[:room], text[room:]
            engine.send(stream_id, chunk, end=not rest)
            if rest:
                self._texts[stream_id] = rest


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("client", "server"), PAIRINGS)
def test_streams_end_whole_on_a_line_that_loses(client: str, server: str, loss: float, seed: int) -> None:
    entropy = random.Random(seed)
    pair = EnginePair(client, server, seed=seed).handshake()
    pair.loss = loss
    asks, answers = Writer(pair.client), Writer(pair.server)

    def feed() -> None:
        for stream_id in pair.server.handler.ended - answers.said.keys():
            answers.say(stream_id, entropy.randbytes(entropy.choice(SIZES)))
        asks.write()
        answers.write()

    pair.feed = feed
    for _ in range(STREAMS):
        stream_id = pair.client.engine.open_stream()
        pair.client.engine.send(stream_id, HEAD)  # opens it: until then the next one has the same id
        asks.say(stream_id, entropy.randbytes(entropy.choice(SIZES)))
        pair.run_for(STEP_S)
    pair.run_until(lambda: len(pair.client.handler.ended) == STREAMS)
    assert pair.client.handler.data == answers.said
    assert pair.server.handler.data == {stream_id: HEAD + text for stream_id, text in asks.said.items()}
    assert pair.client.handler.end is None and pair.server.handler.end is None
