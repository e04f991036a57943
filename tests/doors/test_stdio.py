"""The stdio connector as its own process: pipes, files, sockets and a terminal in front, a live proxy door behind."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from proxy_vpn.addresses import Target
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.proxy import ProxyDoor
from proxy_vpn.errors import FlowError, Status
from tests.support.duplex_pair import FakeRouter, MemoryDuplex, RecordingSink
from tests.support.loopback import connect, receive, receive_all, send

WAIT_S = 15.0
BULK = bytes(range(256)) * 8192  # 2 MiB
PROGRAM = """
import sys
from proxy_vpn.addresses import Target
from proxy_vpn.doors.stdio import connect
sys.exit(connect(sys.argv[1], Target.parse(sys.argv[2])))
"""


class World:
    """A proxy door on a Unix socket whose peer-b keeps its flows, and processes that connect to it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.router = FakeRouter()
        self.flows: asyncio.Queue[MemoryDuplex] = asyncio.Queue()
        self.router.peers["peer-b"] = lambda far, _target: self.flows.put_nowait(far)
        self.processes: list[asyncio.subprocess.Process] = []

    async def start(self, **streams: Any) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, self.path, "peer-b:22",
            **{"stdin": pipe, "stdout": pipe, "stderr": pipe, **streams},
        )  # fmt: skip
        self.processes.append(process)
        return process

    async def flow(self) -> MemoryDuplex:
        return await asyncio.wait_for(self.flows.get(), WAIT_S)


def run(tmp_path: Path, test: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World(str(tmp_path / "proxy"))
        door = ProxyDoor(world.router, world.path, None, OwnListeners())
        await door.start()
        try:
            await asyncio.wait_for(test(world), 60)
        finally:
            await door.close()
            for process in world.processes:
                if process.returncode is None:
                    process.kill()
                await process.wait()

    asyncio.run(main())


async def ended(process: asyncio.subprocess.Process) -> tuple[int, bytes]:
    """Its exit code and what it said on stderr."""
    assert process.stderr is not None
    complaint = await asyncio.wait_for(process.stderr.read(), WAIT_S)
    return await asyncio.wait_for(process.wait(), WAIT_S), complaint


def test_pipes_both_ways_then_both_ends(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        process = await world.start()
        assert process.stdin is not None and process.stdout is not None
        flow = await world.flow()
        sink = RecordingSink(flow)
        process.stdin.write(b"hello")
        await sink.until(lambda s: s.data == b"hello")
        flow.write(b"welcome")
        assert await asyncio.wait_for(process.stdout.readexactly(7), WAIT_S) == b"welcome"
        process.stdin.write(BULK)
        process.stdin.close()
        await sink.until(lambda s: s.events == ["eof"])
        assert sink.data == b"hello" + BULK
        flow.write(BULK)
        flow.write_eof()
        assert await asyncio.wait_for(process.stdout.read(), WAIT_S) == BULK
        assert await ended(process) == (0, b"")

    run(tmp_path, check)


def test_the_peer_may_end_first(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        process = await world.start()
        assert process.stdin is not None and process.stdout is not None
        flow = await world.flow()
        sink = RecordingSink(flow)
        flow.write(b"bye")
        flow.write_eof()
        assert await asyncio.wait_for(process.stdout.read(), WAIT_S) == b"bye"
        process.stdin.write(b"I have more to say")
        process.stdin.close()
        await sink.until(lambda s: "eof" in s.events)
        assert sink.data == b"I have more to say"
        assert await ended(process) == (0, b"")

    run(tmp_path, check)


def test_neither_side_waits_for_the_other(tmp_path: Path) -> None:
    """Nobody reads stdout while stdin is being filled, and the other way round: no deadlock."""

    async def check(world: World) -> None:
        process = await world.start()
        assert process.stdin is not None and process.stdout is not None
        flow = await world.flow()
        sink = RecordingSink(flow)
        flow.write(BULK)
        flow.write_eof()
        process.stdin.write(BULK)
        process.stdin.close()
        await sink.until(lambda s: "eof" in s.events)
        assert sink.data == BULK
        assert await asyncio.wait_for(process.stdout.read(), WAIT_S) == BULK
        assert (await ended(process))[0] == 0

    run(tmp_path, check)


def test_files(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(BULK)

    async def check(world: World) -> None:
        with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as result:
            process = await world.start(stdin=source, stdout=result)
        flow = await world.flow()
        sink = RecordingSink(flow)
        await sink.until(lambda s: s.events == ["eof"])
        assert sink.data == BULK
        flow.write(BULK)
        flow.write_eof()
        assert await ended(process) == (0, b"")
        assert (tmp_path / "out").read_bytes() == BULK

    run(tmp_path, check)


@pytest.mark.parametrize("separate", [False, True])
def test_sockets(tmp_path: Path, separate: bool) -> None:
    async def check(world: World) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            with theirs, theirs.dup() as twin:
                process = await world.start(stdin=theirs, stdout=twin if separate else theirs)
            flow = await world.flow()
            sink = RecordingSink(flow)
            await send(ours, b"hello")
            await sink.until(lambda s: s.data == b"hello")
            flow.write(BULK)
            assert await receive(ours, len(BULK)) == BULK
            flow.write_eof()
            assert await receive_all(ours) == b""
            ours.shutdown(socket.SHUT_WR)
            assert await ended(process) == (0, b"")

    run(tmp_path, check)


def test_a_terminal_is_told_when_it_is_over(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        master, terminal = pty.openpty()
        try:
            process = await world.start(stdin=terminal)
            flow = await world.flow()
            sink = RecordingSink(flow)
            os.write(master, b"typed\n")
            await sink.until(lambda s: s.data == b"typed\n")
            flow.write_eof()
            assert (await ended(process))[0] == 0
        finally:
            os.close(master)
            os.close(terminal)

    run(tmp_path, check)


@pytest.mark.parametrize("data", [b"", b"some\0", BULK])
def test_a_lost_peer_is_no_clean_end_after_stdin_either(tmp_path: Path, data: bytes) -> None:
    async def check(world: World) -> None:
        process = await world.start(stdin=asyncio.subprocess.DEVNULL)
        flow = await world.flow()
        sink = RecordingSink(flow)
        flow.write(data)
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readexactly(len(data)), WAIT_S) == data
        await sink.until(lambda s: s.events == ["eof"])
        flow.reset()
        assert await ended(process) == (1, b"pvpn: the connection was lost\n")

    run(tmp_path, check)


def test_an_ended_direction_is_complete_though_the_other_breaks(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        process = await world.start(stdin=asyncio.subprocess.DEVNULL)
        flow = await world.flow()
        flow.write(BULK)
        flow.write_eof()
        flow.reset()
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.read(), WAIT_S) == BULK
        assert await ended(process) == (0, b"")

    run(tmp_path, check)


@pytest.mark.parametrize("data", [b"", b"all at once"])
def test_a_peer_that_ends_at_once(tmp_path: Path, data: bytes) -> None:
    async def check(world: World) -> None:
        def talk(far: MemoryDuplex, _target: Target) -> None:
            RecordingSink(far)
            far.write(data)
            far.write_eof()

        world.router.peers["peer-b"] = talk
        process = await world.start(stdin=asyncio.subprocess.DEVNULL)
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.read(), WAIT_S) == data
        assert await ended(process) == (0, b"")

    run(tmp_path, check)


def test_other_programs_get_no_mark(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        with await connect(world.path) as sock:
            await send(sock, b"CONNECT peer-b:22 HTTP/1.1\r\nHost: peer-b:22\r\n\r\n")
            flow = await world.flow()
            RecordingSink(flow)
            flow.write(b"data")
            flow.write_eof()
            assert (await receive_all(sock)).endswith(b"established\r\n\r\ndata")

    run(tmp_path, check)


def test_a_lost_peer_is_no_clean_end(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        process = await world.start()
        flow = await world.flow()
        flow.reset()
        assert await ended(process) == (1, b"pvpn: the connection was lost\n")

    run(tmp_path, check)


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        reading, writing = os.pipe()
        process = await world.start(stdout=writing)
        os.close(writing)
        flow = await world.flow()
        sink = RecordingSink(flow)
        os.close(reading)
        flow.write(b"for nobody")
        assert await ended(process) == (128 + signal.SIGPIPE, b"")
        await sink.until(lambda s: bool(s.events))

    run(tmp_path, check)


def test_refusals_are_one_line(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        world.router.errors["peer-b"] = FlowError(Status.REFUSED, "nothing listens on port 22 of peer-b", "start it")
        process = await world.start()
        assert await ended(process) == (1, b"pvpn: nothing listens on port 22 of peer-b - start it\n")
        del world.router.errors["peer-b"], world.router.peers["peer-b"]
        process = await world.start()
        code, complaint = await ended(process)
        assert code == 1 and complaint.startswith(b"pvpn: peer-b is no peer") and complaint.count(b"\n") == 1
        assert world.router.asked == [Target("peer-b", 22)] * 2

    run(tmp_path, check)


@pytest.mark.parametrize("stale", [False, True])
def test_pvpn_is_not_running(tmp_path: Path, stale: bool) -> None:
    async def main() -> None:
        world = World(str(tmp_path / "proxy"))
        if stale:
            with socket.socket(socket.AF_UNIX) as crashed:
                crashed.bind(world.path)
        code, complaint = await ended(await world.start())
        start = f"pvpn: no pvpn is running with '{tmp_path}' - start one with: pvpn run "
        assert code == 1 and complaint.decode().startswith(start) and complaint.count(b"\n") == 1

    asyncio.run(main())


def test_it_is_light() -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import proxy_vpn.doors.stdio, sys; print([m for m in ('asyncio', 'aiohttp', 'rich') if m in sys.modules])",
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        assert output.strip() == b"[]"

    asyncio.run(main())
