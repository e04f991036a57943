"""Running `pvpn` in a test: as a function, or as a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy_vpn.cli import main

Capture = pytest.CaptureFixture[str]


def pvpn(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """A real process."""
    command = [sys.executable, "-m", "proxy_vpn.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(), **more)


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))}


def fails(capsys: Capture, code: int, *arguments: str) -> str:
    """Run a command that must fail; its one line."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pvpn: ")
    assert captured.err.count("\n") == 1
    return captured.err
