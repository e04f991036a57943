"""What flows tell the tap: whole conversations in order, from both ends, and from the middle on."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from proxy_vpn.addresses import Target
from proxy_vpn.errors import FlowError, Status
from proxy_vpn.mesh.tap import Kind, Seen, Tap
from tests.support.mesh_world import Member, StreamSink, Wire, two_members
from tests.support.virtual_loop import run_virtually

Scene = Callable[[Wire, Member, Member], Coroutine[Any, Any, None]]


class Log:
    """What one member's flows told, checked for numbers that go on where the last ones ended."""

    def __init__(self, member: Member) -> None:
        self.seen: list[Seen] = []
        self.tap = member.mesh._world.tap
        self.tap.watchers.append(self.take)
        self._next: dict[tuple[int, bool], int] = {}

    def take(self, seen: Seen) -> None:
        self.seen.append(seen)
        if seen.kind is Kind.DATAGRAM:
            return
        began = seen.kind in (Kind.ASKED, Kind.ACCEPTED, Kind.REFUSED)
        size = 1 if began else len(seen.data) + seen.end
        assert self._next.setdefault((seen.stream_id, seen.from_here), seen.position) == seen.position
        if seen.kind is not Kind.ASKED:
            known = self._next.setdefault((seen.stream_id, not seen.from_here), seen.acknowledged)
            assert known == seen.acknowledged
        self._next[seen.stream_id, seen.from_here] = seen.position + size

    def kinds(self) -> list[tuple[str, bool]]:
        """(kind, from here); data without its end is left out."""
        return [(seen.kind.name, seen.from_here) for seen in self.seen if seen.kind is not Kind.DATA or seen.end]

    def bytes(self, from_here: bool) -> bytes:
        return b"".join(bytes(seen.data) for seen in self.seen if seen.from_here == from_here)


def play(scene: Scene, engine: str = "qh3") -> None:
    async def main() -> None:
        async with two_members((engine, engine)) as (wire, one, two):
            await scene(wire, one, two)

    run_virtually(main())


async def transfer(sink: StreamSink, other: StreamSink, size: int) -> tuple[bytes, bytes]:
    """`size` random bytes there, half as many back, and both ends."""
    out, back = random.Random(1).randbytes(size), random.Random(2).randbytes(size // 2)
    sink.flow.write(out)
    sink.flow.write_eof()
    await other.until(lambda sink: "eof" in sink.events)
    other.flow.write(back)
    other.flow.write_eof()
    await sink.until(lambda sink: sink.over)
    await other.until(lambda sink: sink.over)
    return out, back


@pytest.mark.parametrize("engine", ["qh3", "aioquic"])
def test_a_whole_conversation_is_told_alike_at_both_ends(engine: str) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        logs = Log(one), Log(two)
        sink = await one.open_tcp(two, 8000)
        out, back = await transfer(sink, await two.until_sink(), 300_000)
        opener, answerer = logs
        assert opener.kinds() == [("ASKED", True), ("ACCEPTED", False), ("DATA", True), ("DATA", False)]
        assert answerer.kinds() == [(kind, not here) for kind, here in opener.kinds()]
        assert opener.bytes(True) == out == answerer.bytes(False)
        assert opener.bytes(False) == back == answerer.bytes(True)
        first, other = opener.seen[0], answerer.seen[0]
        assert first.opened_here and not other.opened_here
        assert first.target == Target("two", 8000) and other.target == Target("one", 8000)
        assert (first.line.network, first.line.identity) == ("home", two.mesh.identity.id)
        assert (first.stream_id, first.position) == (other.stream_id, other.position)

    play(scene, engine)


def test_who_begins_in_the_middle_sees_the_rest_with_the_same_numbers() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        whole = Log(one)
        sink = await one.open_tcp(two, 8000)
        other = await two.until_sink()
        sink.flow.write(bytes(1000))
        await other.until_received(1000)
        late = Log(one)
        await transfer(sink, other, 10_000)
        assert late.seen and late.seen == whole.seen[-len(late.seen) :]
        assert len(late.bytes(True)) == 10_000

    play(scene)


def test_refusals_are_told_at_both_ends() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        logs = Log(one), Log(two)
        two.accepting = False
        refused = one.open_flow(two, 9)
        two.changes.note()
        task = one.mesh._loop.create_task(refused)
        (await two.until_offered()).refuse(Status.REFUSED)
        with pytest.raises(FlowError):
            await task
        assert logs[0].kinds() == [("ASKED", True), ("REFUSED", False)]
        assert logs[1].kinds() == [("ASKED", False), ("REFUSED", True)]

    play(scene)


@pytest.mark.parametrize("breaker", ["opener", "answerer"])
def test_a_reset_is_told_by_who_broke_it(breaker: str) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        logs = Log(one), Log(two)
        sink = await one.open_tcp(two)
        other = await two.until_sink()
        sink.flow.write(b"hello")
        await other.until_received(5)
        first, second = (sink, other) if breaker == "opener" else (other, sink)
        first.flow.reset()
        await second.until(lambda sink: sink.over)
        here = breaker == "opener"
        assert logs[0].kinds()[-1] == ("RESET", here) and logs[1].kinds()[-1] == ("RESET", not here)

    play(scene)


def test_a_lost_connection_looks_like_the_peers_reset() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        sink = await one.open_tcp(two)
        log = Log(one)
        one.session(two).close("over")
        await sink.until(lambda sink: sink.over)
        assert log.kinds() == [("RESET", False)]

    play(scene)


def test_a_program_that_ends_and_reads_no_more_sends_its_end_and_then_a_reset() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        log = Log(one)
        sink = await one.open_tcp(two)
        other = await two.until_sink()
        sink.flow.write(bytes(200_000))
        sink.flow.write_eof()
        sink.flow.reset()
        await other.until(lambda sink: "eof" in sink.events)
        assert log.kinds()[-2:] == [("DATA", True), ("RESET", True)]

    play(scene)


def test_udp_payloads_are_told_whole() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        log = Log(one)
        flow = await one.session(two).streams.open_udp(Target("two", 53))
        other = await two.until_udp()
        answers: list[bytes] = []
        flow.on_datagram = lambda payload: (answers.append(payload), one.changes.note())[0]
        other.on_datagram = other.send
        flow.send(bytes(3000))
        await one.changes.until(lambda: answers)
        assert [(seen.kind, seen.from_here, len(seen.data)) for seen in log.seen] == [
            (Kind.DATAGRAM, True, 3000),
            (Kind.DATAGRAM, False, 3000),
        ]

    play(scene)


def test_watchers_come_and_go_and_lines_are_numbered() -> None:
    tap = Tap(lambda: 12.5)
    lines = [tap.line("home", b"a" * 32, initiator=True), tap.line("home", b"a" * 32, initiator=False)]
    assert lines[0].number != lines[1].number
    assert not any(line.watchers for line in lines)
    seen: list[Seen] = []

    def once(report: Seen) -> None:
        seen.append(report)
        tap.watchers.remove(once)

    tap.watchers += [once, seen.append]
    lines[1].tell(Kind.DATAGRAM, 4, Target("peer-b", 53), True, data=b"x")
    assert len(seen) == 2 and seen[0] == seen[1]
    assert (seen[0].at, seen[0].opened_here) == (12.5, False)
    tap.watchers.clear()
    assert not any(line.watchers for line in lines)
