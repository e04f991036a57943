"""House rules every test obeys: nothing leaks out of a test, and none touches this user's own state."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

LEAK_GRACE_S = 2.0
POLL_S = 0.01
ASYNCIO_LEAKS = ("was destroyed but it is pending", "was never retrieved", "Unclosed")
HELPERS_OF_PYTHON = (b"resource_tracker", b"forkserver")
_state_numbers = count()
os.environ["PVPN_NO_LAN"] = os.environ["PVPN_NO_PORT_MAPPING"] = "1"  # tests leave this machine's own networks alone


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "lab: runs hosts in network namespaces; skipped, with the reason, where none can be"
    )
    for fault in (
        "error:coroutine .* was never awaited:RuntimeWarning",
        "error:unclosed:ResourceWarning",
        "error::pytest.PytestUnraisableExceptionWarning",
        "error::pytest.PytestUnhandledThreadExceptionWarning",
    ):
        config.addinivalue_line("filterwarnings", fault)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """An empty state directory (0700) of this test's own."""
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes this user's state, nor obeys this user's PVPN_ settings."""
    for name in [name for name in os.environ if name.startswith("PVPN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PVPN_STATE", str(tmp_path_factory.getbasetemp() / f"own-{next(_state_numbers)}"))


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    """Fails a test that leaves a thread, a child process or a lost asyncio task behind."""
    threads, children = set(threading.enumerate()), _children()
    with _AsyncioComplaints() as complaints:
        yield
        deadline = time.monotonic() + LEAK_GRACE_S
        while time.monotonic() < deadline and (_new_threads(threads) or _children() - children):
            time.sleep(POLL_S)  # threads and children that are ending need a moment, and have no event in common
    left = [thread.name for thread in _new_threads(threads)] + [_describe(pid) for pid in _children() - children]
    assert not left, f"left running: {', '.join(left)}"
    assert not complaints.texts, f"asyncio complained: {'; '.join(complaints.texts)}"


@pytest.fixture(autouse=True, scope="module")
def _no_garbage() -> Iterator[None]:
    """Collects garbage after each module, so that what it forgot to close is found there and not later."""
    with _AsyncioComplaints() as complaints:
        yield
        gc.collect()
    assert not complaints.texts, f"asyncio complained: {'; '.join(complaints.texts)}"


class _AsyncioComplaints(logging.Handler):
    """Hears what asyncio only logs: tasks destroyed while pending, exceptions nobody retrieved."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if any(leak in text for leak in ASYNCIO_LEAKS):
            self.texts.append(text)

    def __enter__(self) -> _AsyncioComplaints:
        logging.getLogger("asyncio").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("asyncio").removeHandler(self)


def _new_threads(before: set[threading.Thread]) -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread not in before and thread.is_alive()}


def _children() -> set[int]:
    """This process's children that have not ended, Python's own helpers aside."""
    pids: set[int] = set()
    for listing in Path("/proc/self/task").glob("*/children"):
        try:
            pids.update(int(pid) for pid in listing.read_text().split())
        except OSError:  # the thread has ended
            continue
    return {pid for pid in pids if not _is_helper(pid)}


def _is_helper(pid: int) -> bool:
    try:
        return any(word in Path(f"/proc/{pid}/cmdline").read_bytes() for word in HELPERS_OF_PYTHON)
    except OSError:
        return True


def _describe(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        words = "(ended)"
    return f"process {pid} {words}".strip()
