"""`pvpn capture`: files, pipes, rotation and ends, against a control server that tells conversations."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from proxy_vpn.cli import main
from proxy_vpn.cli.capture import MEGABYTE, Files, Pipe
from proxy_vpn.daemon.pcap import FILE_HEADER_BYTES
from proxy_vpn.errors import StateError
from tests.cli.pvpn import Capture, environment, fails
from tests.daemon.test_capture import CONVERSATION_PACKETS, Serving, capturing, read
from tests.daemon.test_pcap import HEADER, record
from tests.support.processes import Process

COMMAND = [sys.executable, "-m", "proxy_vpn.cli", "capture"]


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    with capturing(tmp_path / "state" / "control.sock") as serving:
        yield serving


# --- the process ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_file_until_ctrl_c(serving: Serving, tmp_path: Path, ending: signal.Signals) -> None:
    with Process([*COMMAND, "-w", "out.pcap", "--peer", "peer-b"], env=environment()) as process:
        process.wait_for("^capturing peer-b to out.pcap, until Ctrl-C")
        serving.tell()
        os.kill(process.pid, ending)
        assert process.wait() == 0
        assert process.output.endswith(f"\n{CONVERSATION_PACKETS} packets, 0 dropped")
    path = tmp_path / "out.pcap"
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(read(path.read_bytes())) == CONVERSATION_PACKETS
    serving.watched(0)


def test_a_pipe_live(serving: Serving) -> None:
    command = subprocess.Popen(COMMAND, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with command:
        assert command.stdout is not None and command.stderr is not None
        assert len(command.stdout.read(FILE_HEADER_BYTES)) == FILE_HEADER_BYTES
        serving.tell()
        assert len(command.stdout.read(16)) == 16, "while the capture still runs"
        command.send_signal(signal.SIGINT)
        command.stdout.read()
        assert command.wait(20) == 0
        assert command.stderr.read().decode().splitlines()[-1] == f"{CONVERSATION_PACKETS} packets, 0 dropped"


def test_a_reader_that_has_enough_is_no_fault(serving: Serving) -> None:
    command = subprocess.Popen(COMMAND, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with command:
        assert command.stdout is not None and command.stderr is not None
        command.stdout.read(FILE_HEADER_BYTES)
        command.stdout.close()
        serving.tell()
        assert command.wait(20) == 128 + signal.SIGPIPE
        said = command.stderr.read().decode()
        assert "Traceback" not in said and said.splitlines()[-1].endswith("packets, 0 dropped")
    serving.watched(0)


def test_the_process_that_stops_is_said(tmp_path: Path) -> None:
    with capturing(tmp_path / "state" / "control.sock") as serving:
        process = Process([*COMMAND, "-w", "out.pcap"], env=environment())
        process.wait_for("^capturing")
        serving.tell()
    with process:
        assert process.wait() == 1
        assert process.output.splitlines()[1:] == [
            f"{CONVERSATION_PACKETS} packets",
            "pvpn: the capture ended: the running pvpn stopped - start it again",
        ]


# --- what makes no sense ------------------------------------------------------------------------------------------


def test_a_terminal_gets_no_packets(serving: Serving) -> None:
    theirs, ours = pty.openpty()
    try:
        done = subprocess.run(COMMAND, env=environment(), stdout=ours, stderr=subprocess.PIPE, timeout=30, check=False)
    finally:
        os.close(theirs)
        os.close(ours)
    assert done.returncode == 2
    assert done.stderr.decode() == (
        "pvpn: packets are not for a terminal - give -w FILE, or: pvpn capture | tcpdump -n -r -\n"
    )


def test_what_makes_no_sense_is_one_line(serving: Serving, capsys: Capture, tmp_path: Path) -> None:
    assert "-w" in fails(capsys, 2, "capture", "--rotate-size", "1")
    assert "--rotate-size" in fails(capsys, 2, "capture", "-w", "x.pcap", "--rotate-count", "3")
    assert "nobody" in fails(capsys, 1, "capture", "-w", "x.pcap", "--peer", "nobody")
    assert "snaplen" in fails(capsys, 2, "capture", "-w", "x.pcap", "--snaplen", "1")
    assert not (tmp_path / "x.pcap").exists()
    (tmp_path / "x.pcap").write_text("mine")
    assert "is there already" in fails(capsys, 1, "capture", "-w", "x.pcap")
    assert (tmp_path / "x.pcap").read_text() == "mine"
    serving.watched(0)


def test_without_a_process_there_is_nothing_to_capture(capsys: Capture, tmp_path: Path) -> None:
    fails(capsys, 1, "capture", "-w", "x.pcap")
    assert not (tmp_path / "x.pcap").exists()


def test_help_names_what_there_is(capsys: Capture) -> None:
    assert main(["capture", "--help"]) == 0
    assert "tcpdump" in capsys.readouterr().out


# --- files --------------------------------------------------------------------------------------------


def test_rotation_keeps_the_last_files_and_each_is_whole(tmp_path: Path) -> None:
    with Files(tmp_path / "out.pcap", 1, 2) as files:
        files.begin(HEADER)
        for number in range(7):
            files.write([record(MEGABYTE // 2 - 100, number)])
    names = sorted(tmp_path.iterdir())
    assert [name.name for name in names] == ["out-0003.pcap", "out-0004.pcap"]
    assert all(name.stat().st_mode & 0o777 == 0o600 and name.stat().st_size <= MEGABYTE for name in names)
    contents = [name.read_bytes() for name in names]
    assert all(content.startswith(HEADER) for content in contents)
    assert b"".join(content.removeprefix(HEADER) for content in contents) == b"".join(
        record(MEGABYTE // 2 - 100, number) for number in (4, 5, 6)
    )


def test_a_record_larger_than_the_limit_has_a_file_of_its_own(tmp_path: Path) -> None:
    with Files(tmp_path / "out", 1) as files:
        files.begin(HEADER)
        files.write([record(MEGABYTE), record(5), record(MEGABYTE)])
    assert [name.stat().st_size for name in sorted(tmp_path.iterdir())] == [
        FILE_HEADER_BYTES + 16 + MEGABYTE,
        FILE_HEADER_BYTES + 16 + 5,
        FILE_HEADER_BYTES + 16 + MEGABYTE,
    ]


def test_numbered_files_of_an_earlier_capture_stay(tmp_path: Path) -> None:
    (tmp_path / "out-0009.pcap").write_text("mine")
    (tmp_path / "other-0001.pcap").write_text("mine")
    with pytest.raises(StateError):
        Files(tmp_path / "out.pcap", 1)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_link_is_not_followed_and_a_missing_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "out.pcap").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "out.pcap", tmp_path / "none" / "out.pcap"):
        with pytest.raises(StateError):
            Files(path)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr("proxy_vpn.cli.capture.os.open", lambda *_: full)
    with pytest.raises(StateError, match="No space left"), Files(tmp_path / "out.pcap") as files:
        files.begin(HEADER)
        files.write([record(100_000)])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_said() -> None:
    with io.FileIO("/dev/full", "w") as full, pytest.raises(StateError, match="No space left"):
        Pipe(full).begin(HEADER)


def test_a_pipe_passes_the_stream_on() -> None:
    stream = io.BytesIO()
    with Pipe(stream) as pipe:
        pipe.begin(HEADER)
        pipe.write([record(3), record(4)])
    assert stream.getvalue() == HEADER + record(3) + record(4)


def test_stdout_is_meant_by_a_dash(serving: Serving, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True, flush=lambda: None))
    assert main(["capture", "-w", "-"]) == 2
    assert "terminal" in capsys.readouterr().err
