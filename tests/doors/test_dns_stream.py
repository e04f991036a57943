"""The name server over TCP: framing, order, and who floods it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial

import pytest
from scapy.layers.dns import DNS

from proxy_vpn.addresses import Target
from proxy_vpn.doors.dns_server import answer
from proxy_vpn.doors.dns_stream import MAX_WAITING_BYTES, DnsStream, NamesFirst
from proxy_vpn.errors import FlowError, Status
from proxy_vpn.mesh.duplex import Duplex
from tests.doors.test_dns_server import V4, OnePeer, query
from tests.support.duplex_pair import RecordingSink

respond = partial(answer, zone=OnePeer())


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def unframed(data: bytes) -> list[bytes]:
    found = []
    while data:
        size = int.from_bytes(data[:2], "big")
        found.append(data[2 : 2 + size])
        data = data[2 + size :]
    return found


def moved_on(before: int, sink: RecordingSink) -> bool:
    return len(sink.data) > before or sink.error is not None


def run(work: Coroutine[None, None, None]) -> None:
    asyncio.run(work)


@pytest.mark.parametrize("chunk", [1, 3, 10_000])
def test_queries_are_answered_in_order_however_they_are_cut(chunk: int) -> None:
    async def work() -> None:
        stream = DnsStream(respond)
        sink = RecordingSink(stream)
        sent = framed(query("peer-b")) + framed(query("nobody.pvpn")) + framed(b"") + framed(query("peer-b", "AAAA"))
        for at in range(0, len(sent), chunk):
            stream.write(sent[at : at + chunk])
        stream.write_eof()
        await sink.until(lambda sink: "finished" in sink.events)
        answers = [DNS(data) for data in unframed(bytes(sink.data))]
        assert [answer.qd[0].qname for answer in answers] == [b"peer-b.", b"nobody.pvpn.", b"peer-b."]
        assert answers[0].an[0].rdata == V4 and answers[1].rcode == 3
        assert sink.events == ["eof", "finished"] and sink.written_bytes == len(sent)

    run(work())


def test_half_a_query_at_the_end_is_no_question() -> None:
    async def work() -> None:
        stream = DnsStream(respond)
        sink = RecordingSink(stream)
        stream.write(framed(query("peer-b"))[:-1])
        stream.write_eof()
        await sink.until(lambda sink: "finished" in sink.events)
        assert not sink.data

    run(work())


def test_a_flood_is_cut_off() -> None:
    async def work() -> None:
        stream = DnsStream(respond)
        sink = RecordingSink(stream)
        stream.write(framed(query("peer-b")) * (MAX_WAITING_BYTES // 20))
        await sink.until(lambda sink: sink.error is not None)
        stream.write(framed(query("peer-b")))
        assert not sink.data

    run(work())


def test_who_does_not_read_is_cut_off() -> None:
    async def work() -> None:
        stream = DnsStream(respond)
        sink = RecordingSink(stream, eager=False)
        one = framed(query("peer-b"))
        for _ in range(100):
            if sink.error is not None:
                break
            before = len(sink.data)
            stream.write(one * 100)
            await sink.until(partial(moved_on, before))
        else:
            pytest.fail("answers pile up")

    run(work())


def test_only_the_name_servers_port_is_taken_from_others() -> None:
    class Nowhere:
        async def open_tcp(self, target: Target) -> Duplex:
            raise FlowError(Status.REFUSED, str(target))

    async def work() -> None:
        opener = NamesFirst(Nowhere(), ["100.64.0.53"], respond)
        assert isinstance(await opener.open_tcp(Target("100.64.0.53", 53)), DnsStream)
        for target in (Target("100.64.0.53", 80), Target("100.64.0.54", 53)):
            with pytest.raises(FlowError):
                await opener.open_tcp(target)

    run(work())
