"""A directory of its own for each command, and a running process to ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.fake import FakeDaemon, serving


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PVPN_STATE", str(tmp_path / "state"))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    (tmp_path / "state").mkdir(mode=0o700)
    fake = FakeDaemon()
    with serving(fake, tmp_path / "state" / "control.sock"):
        yield fake
