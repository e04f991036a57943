"""The control API, asked by a real curl."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy_vpn.daemon.control import ControlServer, classify
from proxy_vpn.daemon.messages import MAX_BODY_BYTES
from proxy_vpn.errors import ControlError, FlowError, FlowLost, KeyFileError, PvpnError, StateError, Status, UsageError
from tests.daemon.fake import FakeDaemon, serving

ROOT = Path(__file__).resolve().parents[2]
# A daemon that is never asked, from its start to its end.
UNASKED = """
import asyncio, pathlib, sys
from proxy_vpn.daemon.control import ControlServer
from tests.daemon.fake import FakeDaemon

async def main():
    server = ControlServer(FakeDaemon(), pathlib.Path(sys.argv[1]))
    await server.start()
    await asyncio.sleep(0)
    await server.close()

asyncio.run(main())
sys.exit("aiohttp" in sys.modules)
"""
pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@pytest.fixture
def daemon() -> FakeDaemon:
    return FakeDaemon()


@pytest.fixture
def path(daemon: FakeDaemon, tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    with serving(daemon, directory / "control.sock"):
        yield directory / "control.sock"


def command(path: Path, method: str, what: str, *more: str) -> list[str]:
    return ["curl", "-sS", "--max-time", "20", "--unix-socket", str(path), "-X", method, *more, f"http://pvpn{what}"]


def curl(path: Path, method: str, what: str, body: object = None, data: str = "") -> tuple[int, Any]:
    """The HTTP status and the decoded JSON."""
    more = ["-w", "\n%{http_code}", *(["--data-binary", data or json.dumps(body)] if data or body is not None else [])]
    result = subprocess.run(command(path, method, what, *more), capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    text, _, status = result.stdout.rpartition("\n")
    return int(status), json.loads(text)


def test_status_and_peers_carry_a_schema_version(path: Path) -> None:
    status, reply = curl(path, "GET", "/v1/status")
    assert (status, reply["schema"], reply["name"]) == (200, 1, "peer-a")
    assert reply["peers"][1]["path"] == "direct 203.0.113.7:41641"
    status, reply = curl(path, "GET", "/v1/peers")
    assert (status, reply["schema"], len(reply["peers"])) == (200, 1, 2)


def test_one_network_of_several(path: Path) -> None:
    _, reply = curl(path, "GET", "/v1/status?net=office")
    assert [network["name"] for network in reply["networks"]] == ["office"]
    assert [peer["name"] for peer in reply["peers"]] == ["peer-c"]
    status, reply = curl(path, "GET", "/v1/peers?net=attic")
    assert status == 400
    assert reply == {
        "error": "this process is in no network 'attic'",
        "hint": "it is in: home, office",
        "status": "usage",
    }


def test_ping(path: Path) -> None:
    status, reply = curl(path, "POST", "/v1/ping", {"peer": "peer-b"})
    assert (status, reply["rtt_ms"], reply["path"]) == (200, 12.34, "direct 203.0.113.7:41641")
    status, reply = curl(path, "POST", "/v1/ping", {"peer": "peer-x\x1b"})
    assert (status, reply["status"], reply["hint"]) == (404, "no_such_name", "see 'pvpn peers'")


def test_who_hangs_up_is_no_longer_waited_for(path: Path, daemon: FakeDaemon) -> None:
    with subprocess.Popen(command(path, "POST", "/v1/ping", "-d", '{"peer": "silent"}')) as waiting:
        assert daemon.pinging.wait(20)
        waiting.kill()
    assert daemon.hung_up.wait(20)


def test_forwards_come_and_go(path: Path, daemon: FakeDaemon) -> None:
    assert curl(path, "POST", "/v1/forwards", {"spec": "0:peer-b:22"})[1]["spec"] == "127.0.0.1:40000:peer-b:22"
    assert curl(path, "POST", "/v1/forwards", {"spec": "5353:peer-b:53/udp"})[0] == 201
    _, reply = curl(path, "GET", "/v1/forwards")
    assert [item["spec"] for item in reply["forwards"]] == ["127.0.0.1:40000:peer-b:22", "127.0.0.1:5353:peer-b:53/udp"]
    assert curl(path, "DELETE", "/v1/forwards", {"spec": "5353:peer-b:53/udp"})[0] == 200
    assert curl(path, "DELETE", "/v1/forwards", {"spec": "5353:peer-b:53/udp"})[0] == 400
    assert len(daemon.specs) == 1


def hold(path: Path, spec: str) -> subprocess.Popen[bytes]:
    body = json.dumps({"spec": spec, "hold": True})
    return subprocess.Popen(command(path, "POST", "/v1/forwards", "-N", "-d", body), stdout=subprocess.PIPE)


def first_line(process: subprocess.Popen[bytes]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def test_a_held_forward_ends_with_its_connection_even_by_a_kill(path: Path, daemon: FakeDaemon) -> None:
    with hold(path, "2222:peer-b:22") as holder:
        assert first_line(holder)["spec"] == "127.0.0.1:2222:peer-b:22"
        assert daemon.forwards()[0].held
        holder.kill()
    daemon.wait_for_forwards(0)


def test_a_held_forward_that_is_removed_lets_its_holder_go(path: Path, daemon: FakeDaemon) -> None:
    with hold(path, "2222:peer-b:22") as holder:
        first_line(holder)
        assert curl(path, "DELETE", "/v1/forwards", {"spec": "2222:peer-b:22"})[0] == 200
        assert curl(path, "POST", "/v1/forwards", {"spec": "2222:peer-b:22"})[0] == 201
        assert holder.wait(20) == 0
    assert len(daemon.specs) == 1


def test_stopping_ends_held_forwards_and_removes_the_socket(tmp_path: Path, daemon: FakeDaemon) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "control.sock"
    with serving(daemon, path):
        holder = hold(path, "2222:peer-b:22")
        first_line(holder)
    with holder:
        assert holder.wait(20) == 0
    assert not daemon.specs
    assert not path.exists()


def test_expose_and_forget(path: Path, daemon: FakeDaemon) -> None:
    assert curl(path, "POST", "/v1/expose", {"spec": "8000"})[1]["expose"]["rules"] == "default,8000"
    assert curl(path, "POST", "/v1/expose", {"spec": "no"})[1]["status"] == "usage"
    assert curl(path, "POST", "/v1/forget", {"peer": "peer-b"})[1]["id"] == "bb" * 32
    assert curl(path, "POST", "/v1/forget", {"peer": "peer-x"})[0] == 400


def test_readyz_says_what_is_missing(path: Path, daemon: FakeDaemon) -> None:
    assert curl(path, "GET", "/readyz") == (200, {"schema": 1, "ready": True, "reason": ""})
    daemon.reason = "the DHT does not answer"
    assert curl(path, "GET", "/readyz") == (503, {"schema": 1, "ready": False, "reason": "the DHT does not answer"})


@pytest.mark.parametrize(
    "data",
    ["{", "[]", "{}", '{"peer": 5}', '{"peer": ""}', '{"peer": "b", "colour": "blue"}', "[" * 50_000, '"\\ud800"'],
)
def test_bodies_that_make_no_sense_are_refused(path: Path, data: str) -> None:
    status, reply = curl(path, "POST", "/v1/ping", data=data)
    assert (status, reply["status"], reply["hint"]) == (400, "usage", "send JSON with: peer, net")


def test_bodies_are_bounded(path: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_text("x" * (MAX_BODY_BYTES + 1))
    status, reply = curl(path, "POST", "/v1/expose", data=f"@{large}")
    assert (status, reply["status"]) == (413, "too_large")


def test_unknown_paths_and_methods_are_answered_in_json(path: Path) -> None:
    assert curl(path, "GET", "/v2/status")[1]["status"] == "not_found"
    assert curl(path, "PUT", "/v1/status")[1]["status"] == "method"


def test_a_broken_daemon_answers_and_lives_on(path: Path, daemon: FakeDaemon, caplog: pytest.LogCaptureFixture) -> None:
    daemon.failure = ZeroDivisionError("secret detail")
    status, reply = curl(path, "GET", "/v1/status")
    assert (status, reply["error"]) == (500, "the running process failed: ZeroDivisionError")
    assert "secret detail" in caplog.text
    daemon.failure = None
    assert curl(path, "GET", "/v1/status")[0] == 200


def test_the_socket_is_private_and_replaces_a_dead_one(tmp_path: Path, daemon: FakeDaemon) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "control.sock"
    path.write_text("left by a killed process")
    with serving(daemon, path):
        assert path.stat().st_mode & 0o777 == 0o600
        assert curl(path, "GET", "/readyz")[0] == 200


def test_a_process_that_nobody_asks_does_without_aiohttp(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "control.sock"
    done = subprocess.run([sys.executable, "-c", UNASKED, str(path)], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0 and not path.exists()


def test_a_directory_open_to_others_is_refused(tmp_path: Path, daemon: FakeDaemon) -> None:
    tmp_path.chmod(0o755)

    async def start() -> None:
        server = ControlServer(daemon, tmp_path / "control.sock")
        with pytest.raises(StateError):
            await server.start()
        await server.close()

    asyncio.run(start())


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (UsageError("x"), "usage", 400),
        (KeyFileError("x"), "key", 409),
        (StateError("x"), "state", 409),
        (ControlError("x"), "control", 409),
        (FlowLost("x"), "lost", 502),
        (PvpnError("x"), "internal", 500),
        (FlowError(Status.POLICY, "x"), "policy", 403),
        (FlowError(Status.REFUSED, "x"), "refused", 502),
        (FlowError(Status.TIMEOUT, "x"), "timeout", 504),
        (FlowError(Status.UNREACHABLE, "x"), "unreachable", 503),
        (FlowError(Status.NO_SUCH_NAME, "x"), "no_such_name", 404),
        (FlowError(Status.LIMIT, "x"), "limit", 429),
        (FlowError(Status.INTERNAL, "x"), "internal", 500),
    ],
)
def test_every_error_has_its_kind(error: PvpnError, kind: str, status: int) -> None:
    assert classify(error) == (kind, status)
