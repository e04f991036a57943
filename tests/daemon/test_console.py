"""Lines for people: warnings without -v, everything that happens with it."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from proxy_vpn.daemon.console import Console


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    root, quic = logging.getLogger(), logging.getLogger("quic")
    before = root.level, list(root.handlers), quic.level
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    quic.setLevel(before[2])


def said(verbosity: int) -> list[str]:
    """What a console shows of one record of each level, the warning twice, and a failure."""
    stream = io.StringIO()
    Console(stream).take_logs(verbosity)
    log = logging.getLogger("proxy_vpn.mesh.seeker")
    log.debug("searched")
    log.info("dialling")
    for _ in range(2):
        log.warning("can't \x1b[2J accept\n! forged")
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("a task failed")
    return stream.getvalue().splitlines()


def test_without_v_only_warnings_each_in_one_line() -> None:
    assert said(0) == [r"! can't \x1b[2J accept\n! forged", "! a task failed (ValueError('broken'))"]


def test_v_shows_what_happens_and_where_it_failed() -> None:
    lines = said(1)
    assert lines[0].endswith(" proxy_vpn.mesh.seeker: dialling")
    assert [line for line in lines if line.startswith("!") or "searched" in line] == []
    assert lines[-1] == "ValueError: broken"
    assert any(line.startswith("  File ") for line in lines)
    assert said(2)[0].endswith(": searched")


def test_a_long_line_keeps_what_to_do() -> None:
    stream = io.StringIO()
    Console(stream).warn("x" * 200 + " - use --state")
    assert stream.getvalue().endswith(" - use --state\n")
