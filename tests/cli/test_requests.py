"""The commands that ask a running process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from proxy_vpn.addresses import Target
from proxy_vpn.cli import main
from tests.cli.pvpn import Capture, environment, fails
from tests.daemon.fake import FakeDaemon, serving


def test_status_and_peers_as_lines(daemon: FakeDaemon, capsys: Capture) -> None:
    assert main(["status"]) == 0
    said = capsys.readouterr().out
    assert "proxy   127.0.0.1:1080" in said
    assert "\x1b" not in said
    assert main(["peers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("peer-b.home    direct 203.0.113.7:41641  12 ms  tx 1.2 MB rx 3.4 MB  since ")
    assert len(lines) == 2
    assert main(["peers", "--net", "home"]) == 0
    assert capsys.readouterr().out.startswith("peer-b  direct")
    assert "it is in: home, office" in fails(capsys, 2, "peers", "--net", "attic")


def test_status_and_peers_as_json(daemon: FakeDaemon, capsys: Capture) -> None:
    assert main(["peers", "--json"]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert (reply["schema"], len(reply["peers"])) == (1, 2)
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 1


def test_the_state_option_picks_the_process(daemon: FakeDaemon, capsys: Capture, tmp_path: Path) -> None:
    assert "'" + str(tmp_path / "other") + "'" in fails(capsys, 1, "status", "--state", "other")
    assert main(["peers", "--state", str(tmp_path / "state")]) == 0


def test_ping_says_time_and_path(daemon: FakeDaemon, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy_vpn.cli.requests.PING_INTERVAL_S", 0.0)
    assert main(["ping", "peer-b", "-c", "2"]) == 0
    assert capsys.readouterr().out == "pong from peer-b (home) via direct 203.0.113.7:41641 in 12 ms\n" * 2
    assert main(["ping", "peer-b", "--until-direct"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert "no peer 'peer-x' - see 'pvpn peers'" in fails(capsys, 1, "ping", "peer-x")
    daemon.offline = True
    assert "peer-b is offline" in fails(capsys, 1, "ping", "peer-b")
    assert main(["ping", "peer-b", "-c", "2"]) == 1
    assert capsys.readouterr().err.count("pvpn: peer-b is offline") == 2


def test_forwards_in_the_background(daemon: FakeDaemon, capsys: Capture) -> None:
    assert main(["forward", "--background", "127.0.0.1:0:peer-b:22"]) == 0
    assert capsys.readouterr().out == "127.0.0.1:40000 -> peer-b:22\n"
    assert main(["forward", "--background", "5353:peer-b:53/udp", "--net", "home"]) == 0
    assert capsys.readouterr().out == "127.0.0.1:5353 (udp) -> peer-b.home.pvpn:53\n"
    assert main(["forward", "--background", "unix:x.sock:peer-b:22"]) == 0
    assert capsys.readouterr().out == f"unix:{os.getcwd()}/x.sock -> peer-b:22\n"
    assert main(["forward", "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0] == "127.0.0.1:40000:peer-b:22"
    assert [main(["forward", "--remove", spec]) for spec in listed] == [0, 0, 0]
    assert "there is no forward" in fails(capsys, 2, "forward", "--remove", listed[0])


def holding(*more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "proxy_vpn.cli", "forward", "0:peer-b:22", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, -15), (signal.SIGKILL, -9)])
def test_a_forward_stays_until_its_command_ends(daemon: FakeDaemon, sent: signal.Signals, code: int) -> None:
    with holding() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "127.0.0.1:40000 -> peer-b:22\n"
        daemon.wait_for_forwards(1)
        process.send_signal(sent)
        assert process.wait(20) == code
        assert process.stderr is not None
        assert process.stderr.read() == ""
    daemon.wait_for_forwards(0)


def test_a_forward_whose_process_stops_says_so(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    with serving(FakeDaemon(), tmp_path / "state" / "control.sock"):
        process = holding()
        assert process.stdout is not None
        assert process.stdout.readline()
    with process:
        _, said = process.communicate(timeout=20)
        assert process.returncode == 1
        assert said.startswith("pvpn: the forward ended")


def test_expose_and_forget(daemon: FakeDaemon, capsys: Capture) -> None:
    assert main(["expose"]) == 0
    assert capsys.readouterr().out.startswith("open to peers: 8000/tcp")
    assert main(["expose", "8000"]) == 0
    assert "(rules: default,8000;" in capsys.readouterr().out
    assert main(["forget", "peer-b"]) == 0
    assert capsys.readouterr().out == "forgot peer-b in home: the next machine of this name is accepted\n"
    assert "no peer 'peer-x' was ever seen" in fails(capsys, 2, "forget", "peer-x")


def test_connect_goes_to_the_proxy_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[str, Target]] = []

    def connect(path: str, target: Target) -> int:
        calls.append((path, target))
        return 7

    monkeypatch.setitem(sys.modules, "proxy_vpn.doors.stdio", SimpleNamespace(connect=connect))
    assert main(["connect", "peer-b", "22"]) == 7
    assert main(["connect", "Peer-B.home.pvpn", "22", "--net", "home"]) == 7
    path = str((tmp_path / "state").resolve() / "proxy.sock")
    assert calls == [(path, Target("peer-b", 22)), (path, Target("peer-b.home.pvpn", 22))]


def test_the_doctor_fails_when_something_is_bad(daemon: FakeDaemon, capsys: Capture) -> None:
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("udp") and lines[-1] == "    is it on?"
    assert main(["netcheck", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["checks"][1]["state"] == "bad"
