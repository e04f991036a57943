"""The control API's blocking client, against the real server and against broken ones."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proxy_vpn.daemon import client
from proxy_vpn.daemon.client import ControlClient
from proxy_vpn.errors import ControlError, StateError, UsageError
from tests.daemon.fake import STATUS, FakeDaemon, serving


@pytest.fixture
def where(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    return directory / "control.sock"


def test_every_request(where: Path) -> None:
    with serving(FakeDaemon(), where):
        ask = ControlClient(where)
        assert ask.status() == STATUS
        assert [peer.name for peer in ask.peers("home").peers] == ["peer-b"]
        assert ask.ping("peer-b").path == "direct 203.0.113.7:41641"
        assert ask.add_forward("0:peer-b:22") == "127.0.0.1:40000:peer-b:22"
        assert [item.spec for item in ask.forwards()] == ["127.0.0.1:40000:peer-b:22"]
        ask.remove_forward("40000:peer-b:22")
        assert ask.forwards() == ()
        assert ask.expose("8000").rules == "default,8000"
        assert ask.forget("peer-b").network == "home"
        with pytest.raises(UsageError, match="no network 'attic' - it is in: home, office"):
            ask.status("attic")
        with pytest.raises(ControlError, match="no peer 'peer-x' - see 'pvpn peers'"):
            ask.ping("peer-x")


def test_a_held_forward_lives_as_long_as_it_is_held(where: Path) -> None:
    daemon = FakeDaemon()
    with serving(daemon, where):
        with ControlClient(where).hold_forward("0:peer-b:22") as held:
            assert held.spec == "127.0.0.1:40000:peer-b:22"
            daemon.wait_for_forwards(1)
        daemon.wait_for_forwards(0)
        with pytest.raises(UsageError):
            ControlClient(where).hold_forward("nonsense")


def test_a_held_forward_notices_its_end(where: Path) -> None:
    with serving(FakeDaemon(), where):
        held = ControlClient(where).hold_forward("0:peer-b:22")
        ControlClient(where).remove_forward(held.spec)
        with pytest.raises(ControlError, match="the forward ended"):
            held.wait()
        held.close()
        held = ControlClient(where).hold_forward("0:peer-b:22")
    with held, pytest.raises(ControlError, match="the forward ended"):
        held.wait()


def test_no_running_process_says_how_to_start_one(where: Path) -> None:
    with pytest.raises(ControlError, match=rf"no pvpn is running with '{where.parent}' - start one with: pvpn run"):
        ControlClient(where).status()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(where))
    with pytest.raises(ControlError, match="no pvpn is running"):
        ControlClient(where).status()
    with pytest.raises(ControlError, match="no pvpn is running"):
        ControlClient(where.parent / "missing" / "control.sock").status()


def test_a_socket_in_a_directory_open_to_others_is_not_asked(where: Path) -> None:
    where.parent.chmod(0o755)
    with pytest.raises(StateError):
        ControlClient(where).status()


@contextmanager
def answering(where: Path, answer: bytes) -> Iterator[None]:
    """A server that reads once, says this to its first client and hangs up."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(where))
        listener.listen()
        listener.settimeout(20)
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(20)


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (b"", "hung up"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{", "makes sense"),
        (b"garbage\r\n\r\n", "hung up"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{", "makes sense"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "makes sense"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + b'{"schema":2}', "version"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 2\r\n\r\nno", "answered 502"),
    ],
)
def test_broken_answers_are_one_line(where: Path, answer: bytes, what: str) -> None:
    with answering(where, answer), pytest.raises(ControlError, match=what):
        ControlClient(where).peers()


def test_answers_are_bounded(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 10)
    with serving(FakeDaemon(), where), pytest.raises(ControlError, match="far too much"):
        ControlClient(where).status()


def test_silence_ends_in_an_error(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_TIMEOUT_S", 0.2)
    with serving(FakeDaemon(), where), pytest.raises(ControlError, match="in time"):
        ControlClient(where).ping("silent")


def test_the_client_imports_no_event_loop() -> None:
    script = (
        "import sys, proxy_vpn.daemon.client; print(*sorted({'asyncio', 'aiohttp', 'rich', 'nacl'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ))
    assert (result.stdout.strip(), result.stderr) == ("", "")
