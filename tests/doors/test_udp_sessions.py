"""Sessions: one flow a key, bounded, idle ones closed, failures retried later."""

from __future__ import annotations

import asyncio

import pytest

from proxy_vpn.doors import udp_sessions
from proxy_vpn.doors.udp import DatagramFlow
from proxy_vpn.doors.udp_sessions import MAX_PENDING, UdpSessions
from proxy_vpn.errors import FlowError, Status
from tests.support.duplex_pair import MemoryUdp, udp_pair

WAIT_S = 10.0


class Bench:
    """Sessions over in-memory flows, and what came out of them."""

    def __init__(self, limit: int = 64, idle_s: float = 60.0) -> None:
        self.far: dict[str, MemoryUdp] = {}
        self.opened: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failing = False
        self.heard: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self.back: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self.told: list[tuple[str, Status]] = []
        self.sessions = UdpSessions(self.open, self.deliver, limit, idle_s, self.tell)

    def deliver(self, key: str, data: bytes) -> None:
        self.back.put_nowait((key, data))

    def tell(self, key: str, error: FlowError) -> None:
        self.told.append((key, error.status))

    async def open(self, key: str) -> DatagramFlow:
        self.opened.append(key)
        await self.gate.wait()
        if self.failing:
            raise FlowError(Status.UNREACHABLE, "asleep")
        near, far = udp_pair()
        far.on_datagram = lambda data: self.heard.put_nowait((key, data))
        self.far[key] = far
        return near


async def next_of(queue: asyncio.Queue[tuple[str, bytes]]) -> tuple[str, bytes]:
    return await asyncio.wait_for(queue.get(), WAIT_S)


def test_each_key_has_its_flow_both_ways() -> None:
    async def main() -> None:
        bench = Bench()
        for key in ("a", "b", "a"):
            bench.sessions.send(key, key.encode())
        assert sorted([await next_of(bench.heard) for _ in range(3)]) == [("a", b"a"), ("a", b"a"), ("b", b"b")]
        assert bench.opened == ["a", "b"] and len(bench.sessions) == 2
        bench.far["b"].send(b"answer")
        assert await next_of(bench.back) == ("b", b"answer")
        await bench.sessions.close()
        await bench.sessions.close()
        assert all(far.closed for far in bench.far.values())
        bench.sessions.send("c", b"ignored")
        assert len(bench.sessions) == 0

    asyncio.run(main())


def test_only_so_much_waits_for_a_flow() -> None:
    async def main() -> None:
        bench = Bench()
        bench.gate.clear()
        for number in range(MAX_PENDING + 5):
            bench.sessions.send("a", b"%d" % number)
        await asyncio.sleep(0)
        bench.gate.set()
        for number in range(MAX_PENDING):
            assert await next_of(bench.heard) == ("a", b"%d" % number)
        bench.sessions.send("a", b"last")
        assert await next_of(bench.heard) == ("a", b"last")
        await bench.sessions.close()

    asyncio.run(main())


def test_the_one_unused_longest_makes_room() -> None:
    async def main() -> None:
        bench = Bench(limit=2)
        for key in ("a", "b", "a", "c"):
            bench.sessions.send(key, b"x")
            await next_of(bench.heard)
        assert bench.far["b"].closed and not bench.far["a"].closed and len(bench.sessions) == 2
        await bench.sessions.close()

    asyncio.run(main())


def test_idle_ones_are_closed() -> None:
    async def main() -> None:
        bench = Bench(idle_s=0.05)
        bench.sessions.send("a", b"x")
        await next_of(bench.heard)
        ended = asyncio.Event()
        bench.far["a"].on_closed = ended.set
        await asyncio.wait_for(ended.wait(), WAIT_S)
        assert len(bench.sessions) == 0
        bench.sessions.send("a", b"again")
        assert await next_of(bench.heard) == ("a", b"again")
        await bench.sessions.close()

    asyncio.run(main())


def test_a_flow_the_peer_ends_is_opened_anew() -> None:
    async def main() -> None:
        bench = Bench()
        bench.sessions.send("a", b"x")
        await next_of(bench.heard)
        bench.far["a"].close()
        assert len(bench.sessions) == 0
        bench.sessions.send("a", b"again")
        assert await next_of(bench.heard) == ("a", b"again")
        assert bench.opened == ["a", "a"]
        await bench.sessions.close()

    asyncio.run(main())


def test_a_flow_that_ends_in_the_turn_in_which_it_opens_is_opened_anew() -> None:
    async def main() -> None:
        flows: list[MemoryUdp] = []
        heard: list[bytes] = []

        async def open_flow(key: str) -> DatagramFlow:
            near, far = udp_pair()
            far.on_datagram = heard.append
            flows.append(near)
            opened: asyncio.Future[DatagramFlow] = asyncio.get_running_loop().create_future()

            def arrive() -> None:
                opened.set_result(near)
                if len(flows) == 1:
                    near.close()

            asyncio.get_running_loop().call_soon(arrive)
            return await opened

        sessions = UdpSessions(open_flow, lambda key, payload: None, 8)
        sessions.send("a", b"lost with its flow")
        for _turn in range(5):
            await asyncio.sleep(0)
        assert len(sessions) == 0
        sessions.send("a", b"found")
        for _turn in range(5):
            await asyncio.sleep(0)
        assert heard == [b"found"] and len(flows) == 2
        await sessions.close()

    asyncio.run(main())


def test_failures_are_retried_but_not_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        bench = Bench()
        bench.failing = True
        bench.sessions.send("a", b"lost")
        for _turn in range(5):
            await asyncio.sleep(0)
            bench.sessions.send("a", b"lost too")
        assert bench.opened == ["a"]
        assert len(bench.told) >= 3 and set(bench.told) == {("a", Status.UNREACHABLE)}, "each that is lost"
        bench.failing = False
        monkeypatch.setattr(udp_sessions, "RETRY_S", 0.0)
        bench.sessions.send("a", b"found")
        assert await next_of(bench.heard) == ("a", b"found")
        await bench.sessions.close()

    asyncio.run(main())


def test_that_nobody_listens_is_told_and_the_flow_stays() -> None:
    async def main() -> None:
        bench = Bench()
        for turn in range(1, 3):
            bench.sessions.send("a", b"x")
            await next_of(bench.heard)
            bench.far["a"].refuse()
            assert bench.told == [("a", Status.REFUSED)] * turn
        assert bench.opened == ["a"] and not bench.far["a"].closed
        await bench.sessions.close()

    asyncio.run(main())


def test_closing_while_a_flow_opens() -> None:
    async def main() -> None:
        bench = Bench()
        bench.gate.clear()
        bench.sessions.send("a", b"x")
        await asyncio.sleep(0)
        await bench.sessions.close()
        assert bench.opened == ["a"] and not bench.far

    asyncio.run(main())
