"""The demo: that it works, and that nothing of it is left, however it ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Process

DEMO = [sys.executable, "-m", "proxy_vpn", "demo"]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory of short name, so that its Unix sockets need no other one."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)


def started(temporary: Path) -> Process:
    root = str(Path(__file__).parents[2])
    return Process(DEMO, env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": root})


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, timeout=20)
    return [int(text) for text in found.stdout.split()]


def wait_for_the_end(pids: list[int]) -> None:
    """Until these processes, which are not this one's own children, have ended."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        with open(descriptor, "rb") as handle:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            assert poll.poll(20_000), f"process {pid} outlived the demo"


def test_the_whole_demo(temporary: Path) -> None:
    with started(temporary) as demo:
        assert demo.wait(60) == 0, demo.output
    assert demo.output.count("fetched") == 3
    assert "it works" in demo.output
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("step", "number"),
    [
        ("made demo.key", signal.SIGTERM),
        ("started a private DHT", signal.SIGINT),
        ("started a private DHT", signal.SIGHUP),
        ("started peer-a and peer-b", signal.SIGTERM),
    ],
)
def test_a_demo_that_is_stopped_leaves_nothing(temporary: Path, step: str, number: signal.Signals) -> None:
    with started(temporary) as demo:
        demo.wait_for(step)
        running = children(demo.pid)
        os.kill(demo.pid, number)
        assert demo.wait() == 128 + number
    wait_for_the_end(running)
    assert not list(temporary.iterdir())


def test_a_demo_that_is_killed_leaves_no_process(temporary: Path) -> None:
    with started(temporary) as demo:
        demo.wait_for("started peer-a and peer-b")
        running = children(demo.pid)
        assert len(running) == 3
        demo.kill()
    wait_for_the_end(running)
