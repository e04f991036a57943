"""The bench's one command, so that it goes on working, in short."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.hosts import ROOT, Lab

SHORT = ("--runs", "1", "--seconds", "0.2", "--idle-seconds", "0.2", "--members", "6", "--count", "20")
MEASURES = "streams,datagrams,gigabit,latency,peers"


def test_measures_of_ours_and_of_none(lab: Lab, tmp_path: Path) -> None:
    """`lab`: where none can be made, the bench can't run either."""
    numbers, picture = tmp_path / "numbers.json", tmp_path / "picture.svg"
    words = ["--tools", "direct,pvpn", "--measures", MEASURES, *SHORT, "--json", str(numbers), "--plot", str(picture)]
    command = [sys.executable, "-m", "tests.bench", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(numbers.read_text())["rows"]
    ours = rows["pvpn qh3"]
    wanted = {"up1", "down8", "up1_plain", "cpu_per_gb", "cpu_per_gb_gigabit", "down8_gigabit"}
    wanted |= {"connect_p99", "loaded_p50", "peer_memory", "peer_cpu"}
    assert wanted <= set(ours) and {"up1", "up1_plain"} == set(rows["bare UDP"]), done.stderr
    assert "| pvpn qh3" in done.stdout and "pvpn qh3" in picture.read_text()


@pytest.mark.parametrize("words", [["--tools", "carrier-pigeon"], ["--measures", "luck"]])
def test_what_it_does_not_know(words: list[str]) -> None:
    command = [sys.executable, "-m", "tests.bench", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and f"unknown: {words[1]}" in done.stderr
