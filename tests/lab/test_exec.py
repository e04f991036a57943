"""`pvpn exec` with whole daemons: a command's own network, whose only way out is the running process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.lab.daemon import SOCKS_PORT, Daemon
from tests.lab.hosts import Lab
from tests.lab.scenes import EXCHANGE_PORT, curl, serve_exchange, serve_web, two_peers
from tests.support import nobody

GONE_S = 10.0
WRITTEN = 4_000_000
ROOT_RUNS = os.geteuid() == 0


class OrdinaryDaemon(Daemon):
    """One that an ordinary user runs, and asks."""

    def __init__(self, host: Any, key: Path, *more: str) -> None:
        super().__init__(host, key, *more)
        self.program = nobody.as_nobody(self.program)

    def pvpn(self, *arguments: str, check: bool = True, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        return self.host.run([*self.program, *arguments], env=self._environment, check=check, timeout_s=timeout_s)


def peer_address(daemon: Daemon) -> str:
    return str(json.loads(daemon.pvpn("peers", "--json").stdout)["peers"][0]["ipv4"])


def test_a_command_reaches_peers_by_name(lab: Lab, key: Path, tmp_path: Path) -> None:
    peer_a, peer_b = two_peers(lab, key)
    serve_web(peer_b.host, tmp_path / "web")
    for name in ("peer-b", "peer-b.pvpn", "peer-b.home.pvpn", peer_address(peer_a)):
        done = peer_a.pvpn("exec", "--", "curl", "-sS", "--max-time", "20", f"http://{name}:8000/hello")
        assert done.stdout == "hello from b"
    named = peer_a.pvpn("exec", "--", "getent", "hosts", peer_address(peer_a)).stdout
    assert named.split()[1] == "peer-b.home.pvpn"
    refused = peer_a.pvpn("exec", "--", "curl", "-sS", "http://peer-b:7999/", check=False)
    assert refused.returncode == 7, refused.stderr
    unknown = peer_a.pvpn("exec", "--", "getent", "hosts", "nobody.pvpn", check=False)
    assert unknown.returncode == 2
    assert "1 received" in peer_a.pvpn("exec", "--", "ping", "-c", "1", "-w", "10", "peer-b").stdout


def test_the_internet_is_reached_unless_it_is_forbidden(lab: Lab, key: Path, tmp_path: Path) -> None:
    peer_a, _ = two_peers(lab, key)
    stranger = lab.host("stranger")
    serve_web(stranger, tmp_path / "web")
    url = f"http://{stranger.address}:8000/hello"
    assert peer_a.pvpn("exec", "--", "curl", "-sS", url).stdout == "hello from stranger"
    forbidden = peer_a.pvpn("exec", "--only-peers", "--", "curl", "-sS", "--max-time", "20", url, check=False)
    assert forbidden.returncode == 7, forbidden.stderr


def test_from_one_command_s_network_to_another_host_s_interface(lab: Lab, key: Path) -> None:
    if lab.rootless:
        pytest.skip("a TUN device needs root")
    peer_a, peer_b = two_peers(lab, key, [], ["--tun"])
    peer_b.host.popen(["redis-server", "--protected-mode", "no", "--save", ""]).wait_for("Ready to accept")
    commands = "set k v\nget k\n"
    said = peer_a.pvpn("exec", "--", "sh", "-c", f"printf '{commands}' | redis-cli -h peer-b").stdout
    assert said.split() == ["OK", "v"]
    own = peer_a.pvpn("exec", "--", "sh", "-c", "printf 'client info\\n' | redis-cli -h peer-b").stdout
    mine = json.loads(peer_a.pvpn("status", "--json").stdout)["networks"][0]["ipv4"]
    assert f"addr={mine}:" in own, "the service sees who connects"


def test_an_ordinary_user_s_daemon_and_commands(lab: Lab, key: Path, tmp_path: Path) -> None:
    if reason := nobody.forbidden(True):
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="pvpn-user-"))  # not below pytest's own, into which nobody else may look
    try:
        if ROOT_RUNS:
            os.chown(directory, nobody.NOBODY, nobody.NOBODY)
        copy = directory / key.name
        shutil.copyfile(key, copy)
        copy.chmod(0o600)
        if ROOT_RUNS:
            os.chown(copy, nobody.NOBODY, nobody.NOBODY)
        peer_b = Daemon(lab.host("b"), key, "peer-b", "--no-dht").start()
        peer_a = OrdinaryDaemon(lab.host("a"), copy, "peer-a", "--no-dht", "--peer", peer_b.endpoint).start()
        peer_a.meet(peer_b)
        serve_web(peer_b.host, tmp_path / "web")
        assert peer_a.pvpn("exec", "--", "curl", "-sS", "http://peer-b:8000/hello").stdout == "hello from b"
        assert peer_a.pvpn("exec", "--", "id", "-u").stdout.strip() == str(nobody.NOBODY if ROOT_RUNS else os.geteuid())
        assert peer_a.pvpn("exec", "--", "sh", "-c", "exit 7", check=False).returncode == 7
        peer_a.stop()
    finally:
        shutil.rmtree(directory)


def test_what_a_command_serves_ends_with_it(lab: Lab, key: Path, tmp_path: Path) -> None:
    peer_a, peer_b = two_peers(lab, key)
    before = networks_of_processes()
    (tmp_path / "hello").write_text("hello from within")
    words = ("exec", "--", sys.executable, "-u", "-m", "http.server", "8000", "--directory", str(tmp_path))
    with peer_b.start_command(*words) as server:
        server.wait_for("Serving HTTP")
        url = "http://peer-b:8000/hello"
        proxy = f"socks5h://127.0.0.1:{SOCKS_PORT}"
        assert curl(peer_a.host, "-x", proxy, url) == "hello from within"
        assert peer_b.host.run(["curl", "-sS", "http://127.0.0.1:8000/"], check=False).returncode == 7
        assert len(networks_of_processes() - before) == 1
    deadline = time.monotonic() + GONE_S
    while networks_of_processes() - before:
        assert time.monotonic() < deadline, "a process stayed in the command's network"
    refused = peer_a.host.run(["curl", "-sS", "--max-time", "20", "-x", proxy, url], check=False)
    assert refused.returncode == 97, refused.stderr


# Writes and is gone, as `echo x > /dev/tcp/...` is: its kernel holds most of it then.
WRITES_AND_ENDS = """
import os, socket, sys
sock = socket.create_connection(("peer-b", 7001))
sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, int(sys.argv[1]))
sock.sendall(bytes(int(sys.argv[1])))
os._exit(0)
"""


def test_what_a_command_wrote_before_it_ended_arrives(lab: Lab, key: Path, tmp_path: Path) -> None:
    peer_a, peer_b = two_peers(lab, key)
    for number, size in enumerate((5, WRITTEN)):
        got = tmp_path / str(number)
        with peer_b.host.popen(["socat", "-d", "-d", "-u", "TCP-LISTEN:7001,reuseaddr", f"CREATE:{got}"]) as service:
            service.wait_for("listening on")
            peer_a.pvpn("exec", "--", sys.executable, "-c", WRITES_AND_ENDS, str(size))
            assert service.wait() == 0
        assert got.stat().st_size == size


def test_what_a_command_leaves_behind_learns_that_its_network_has_ended(lab: Lab, key: Path) -> None:
    peer_a, peer_b = two_peers(lab, key)
    serve_exchange(peer_b.host)
    left = f"sleep 0.3; socat -d -d -u TCP:peer-b:{EXCHANGE_PORT} - 2>&1"
    with peer_a.start_command("exec", "--", "sh", "-c", f"({left}) & read line") as command:
        command.wait_for("starting data transfer loop")
        command.tell("end")
        command.wait_for("Connection reset by peer", timeout_s=20)


def networks_of_processes() -> set[str]:
    """The network namespaces in which some process of this machine is."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found.add(os.readlink(process / "ns/net"))
    return found
