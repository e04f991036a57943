"""Programs on one peer reach services on the other: curl, socat and ssh, through proxy, forward and connect."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.lab.daemon import SOCKS_PORT, Daemon, make_key
from tests.lab.hosts import Host, Lab, available
from tests.lab.scenes import EXCHANGE_PORT, curl, serve_exchange, serve_web, two_peers
from tests.support import sshd

CONTROL_S = 0.2
LOCAL_PORT = r"127\.0\.0\.1:(\d+)"


class Pair(NamedTuple):
    """Two peers; b serves a web page on 8000, the exchange on 7000, UDP echo on 5300 and sshd on 2222."""

    a: Daemon
    b: Daemon
    ssh: sshd.Sshd | str  # or why there is none


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if reason := available():
        pytest.skip(f"no laboratory here: {reason}")
    directory = tmp_path_factory.mktemp("pair")
    with Lab() as lab:
        peer_a, peer_b = two_peers(lab, make_key(directory))
        serve_web(peer_b.host, directory / "web")
        serve_exchange(peer_b.host)
        peer_b.host.popen(["socat", "UDP4-RECVFROM:5300,fork", "EXEC:cat"])
        yield Pair(peer_a, peer_b, _serve_ssh(peer_b.host, directory / "ssh"))


def _serve_ssh(host: Host, directory: Path) -> sshd.Sshd | str:
    if reason := sshd.unavailable():
        return reason
    directory.mkdir()
    keys = sshd.Sshd.prepare(directory)
    server = host.popen(keys.server(2222), as_self=True)
    server.wait_for("listening on")
    host.run(keys.client("-p", "2222", host.address, "true"), check=False)
    return "sshd lets this user in nowhere: the account is locked" if "is locked" in server.output else keys


@pytest.fixture
def ssh(pair: Pair) -> sshd.Sshd:
    if isinstance(pair.ssh, str):
        pytest.skip(pair.ssh)
    return pair.ssh


@pytest.mark.parametrize(
    "proxy",
    [
        ("-x", f"socks5h://127.0.0.1:{SOCKS_PORT}"),
        ("-x", f"socks4a://127.0.0.1:{SOCKS_PORT}"),
        ("-x", f"http://127.0.0.1:{SOCKS_PORT}"),
        ("--proxytunnel", "-x", f"http://127.0.0.1:{SOCKS_PORT}"),
    ],
    ids=["socks5", "socks4a", "http", "http connect"],
)
@pytest.mark.parametrize("name", ["peer-b", "peer-b.pvpn", "peer-b.home.pvpn"])
def test_curl_through_the_proxy(pair: Pair, proxy: tuple[str, ...], name: str) -> None:
    assert curl(pair.a.host, *proxy, f"http://{name}:8000/hello") == "hello from b"


def test_a_refused_port_is_told_at_once(pair: Pair) -> None:
    asked = ["curl", "-sS", "--max-time", "10", "-x", f"socks5h://127.0.0.1:{SOCKS_PORT}", "http://peer-b:9/"]
    done = pair.a.host.run(asked, check=False)
    assert done.returncode == 97 and "(5)" in done.stderr, done.stderr


def test_an_unknown_peer_is_no_host(pair: Pair) -> None:
    asked = ["curl", "-sS", "--max-time", "15", "-x", f"socks5h://127.0.0.1:{SOCKS_PORT}", "http://nobody.pvpn/"]
    done = pair.a.host.run(asked, check=False)
    assert done.returncode == 97 and "(4)" in done.stderr, done.stderr


def test_forward_to_a_port_it_picks(pair: Pair) -> None:
    with pair.a.start_command("forward", "127.0.0.1:0:peer-b:8000") as forward:
        port = forward.wait_for(LOCAL_PORT)[1]
        assert curl(pair.a.host, f"http://127.0.0.1:{port}/hello") == "hello from b"
        assert port in pair.a.pvpn("forward", "--list").stdout
        assert forward.interrupt() == 0
    assert port not in pair.a.pvpn("forward", "--list").stdout


def test_half_close_through_socat_and_a_forward(pair: Pair) -> None:
    with pair.a.start_command("forward", f"127.0.0.1:0:peer-b:{EXCHANGE_PORT}") as forward:
        port = forward.wait_for(LOCAL_PORT)[1]
        done = pair.a.host.run(["socat", "-t", "20", "-", f"TCP:127.0.0.1:{port}"], text="put\nhello")
    assert json.loads(done.stdout)["bytes"] == 5


def test_half_close_through_connect(pair: Pair) -> None:
    connect = f"EXEC:{pair.a.wrapper} connect peer-b {EXCHANGE_PORT}"
    done = pair.a.host.run(["socat", "-t", "20", "-", connect], text="put\nhello")
    assert json.loads(done.stdout)["bytes"] == 5


def test_udp_through_a_forward(pair: Pair) -> None:
    with pair.a.start_command("forward", "127.0.0.1:5353:peer-b:5300/udp") as forward:
        forward.wait_for(LOCAL_PORT)
        done = pair.a.host.run(["socat", "-t", "2", "-", "UDP4:127.0.0.1:5353"], text="ping")
    assert done.stdout == "ping"


def test_ssh_through_a_forward(pair: Pair, ssh: sshd.Sshd) -> None:
    with pair.a.start_command("forward", "2200:peer-b:2222") as forward:
        forward.wait_for(LOCAL_PORT)
        done = pair.a.host.run(ssh.client("-p", "2200", "127.0.0.1", "cat; echo done"), text="hello")
    assert done.stdout == "hellodone\n"


def test_ssh_through_connect(pair: Pair, ssh: sshd.Sshd) -> None:
    through = f"ProxyCommand={pair.a.wrapper} connect %h %p"
    done = pair.a.host.run(ssh.client("-o", through, "-p", "2222", "peer-b", "cat; echo done"), text="hello")
    assert done.stdout == "hellodone\n"


def test_control_commands_answer_at_once(pair: Pair) -> None:
    took = []
    for _ in range(5):
        began = time.monotonic()
        assert "peer-b" in pair.a.pvpn("status").stdout
        took.append(time.monotonic() - began)
    assert min(took) < CONTROL_S


def test_peers_in_json(pair: Pair) -> None:
    answer = json.loads(pair.a.pvpn("peers", "--json").stdout)
    assert "peer-b" in json.dumps(answer)
    assert any("version" in field or "schema" in field for field in answer)


def test_ping_tells_time_and_path(pair: Pair) -> None:
    said = pair.a.pvpn("ping", "peer-b").stdout
    assert "ms" in said and pair.b.host.address in said


@pytest.mark.parametrize(
    "command",
    [("ping", "nobody"), ("forward", "nonsense"), ("forward", "--remove", "127.0.0.1:1"), ("connect", "nobody", "1")],
    ids=" ".join,
)
def test_what_is_wrong_is_said_in_one_line(pair: Pair, command: tuple[str, ...]) -> None:
    done = pair.a.pvpn(*command, check=False)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
