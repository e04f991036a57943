"""Programs that know nothing of pvpn, in every pairing: what runs on one side, and where its service is on the other.

TUN: on a host with an interface. exec: in a command's own network. proxy: on a host whose pvpn has no interface.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.lab.daemon import Daemon, make_key
from tests.lab.hosts import Lab, available
from tests.lab.scenes import two_peers
from tests.support import postgres, sshd
from tests.support.processes import Process

PAIRINGS = ("TUN and TUN", "TUN and proxy", "exec and proxy", "exec and TUN", "exec and exec", "TUN and exec")
WEB, SSH, SQL, H3, WHO, CLOSED = 8000, 2222, 5432, 4433, 7001, 7999
SIZE = 20_000_000


class Pair(NamedTuple):
    """Peer a runs programs and peer b services, each in its way."""

    a: Daemon
    b: Daemon
    ways: tuple[str, str]

    def run(self, *words: str, check: bool = True) -> str:
        """What a program of a's says."""
        if self.ways[0] == "exec":
            done = self.a.pvpn("exec", "--", *words, check=check, timeout_s=60)
        else:
            done = self.a.host.run(words, check=check, timeout_s=60)
        return done.stdout if check else done.stdout + done.stderr

    def serve(self, *words: str, ready: str) -> Process:
        """A service of b's."""
        process = self.b.start_command("exec", "--", *words) if self.ways[1] == "exec" else self.b.host.popen(words)
        process.wait_for(ready)
        return process

    def address(self, family: int) -> str:
        """That of b."""
        return str(own(self.b)[f"ipv{family}"])


def own(daemon: Daemon) -> dict[str, str]:
    return dict(json.loads(daemon.pvpn("status", "--json").stdout)["networks"][0])


@pytest.fixture(scope="module", params=PAIRINGS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if reason := available():
        pytest.skip(f"no laboratory here: {reason}")
    with Lab() as lab:
        near, far = request.param.split(" and ")
        if lab.rootless and "TUN" in (near, far):
            pytest.skip("a TUN device needs root")
        options = [["--tun"] if way == "TUN" else [] for way in (near, far)]
        yield Pair(*two_peers(lab, make_key(tmp_path_factory.mktemp("pairing")), *options), (near, far))


def in_url(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip


def test_names_and_pings(pair: Pair) -> None:
    server = () if pair.ways[0] == "exec" else ("@" + own(pair.a)["range4"].replace(".0.0/16", ".0.53"),)
    for family, kind in ((4, "A"), (6, "AAAA")):
        address = pair.address(family)
        assert pair.run("dig", "+short", *server, "peer-b.pvpn", kind).split() == [address]
        assert pair.run("dig", "+short", *server, "-x", address).split() == ["peer-b.home.pvpn."]
        assert "2 received" in pair.run("ping", "-c", "2", "-i", "0.2", "-w", "10", address)


@pytest.mark.parametrize("family", [4, 6])
def test_curl(pair: Pair, tmp_path: Path, family: int) -> None:
    content = hashlib.shake_128(b"pairing").digest(SIZE)
    (tmp_path / "file").write_bytes(content)
    words = (sys.executable, "-u", "-m", "http.server", str(WEB), "--bind", "::", "--directory", str(tmp_path))
    with pair.serve(*words, ready="Serving HTTP"):
        url = f"http://{in_url(pair.address(family))}:{WEB}/file"
        got = tmp_path / "got"
        pair.run("curl", "-sS", "--fail", "--max-time", "50", "-o", str(got), url)
        assert hashlib.sha256(got.read_bytes()).digest() == hashlib.sha256(content).digest()


@pytest.mark.parametrize("family", [4, 6])
def test_iperf3(pair: Pair, family: int) -> None:
    with pair.serve("iperf3", "-s", "--forceflush", ready="listening"):
        there = pair.address(family)
        # Its server counts no more once the client has sent everything, and some of that is still on its way then.
        for way, least in (([], 1 << 20), (["-R"], 20 << 20)):
            said = json.loads(pair.run("iperf3", "-J", "-c", there, "-n", "20M", *way))
            assert said["end"]["sum_received"]["bytes"] >= least
        said = json.loads(pair.run("iperf3", "-J", "-u", "-b", "5M", "-l", "1100", "-c", there, "-n", "300K"))
        assert said["end"]["sum"]["packets"] > 200 and said["end"]["sum"]["lost_percent"] < 5


@pytest.mark.parametrize("family", [4, 6])
def test_ssh(pair: Pair, tmp_path: Path, family: int) -> None:
    if reason := sshd.unavailable():
        pytest.skip(reason)
    if pair.a.host.lab.rootless:
        pytest.skip("sshd wants to be somebody else than the laboratory's root")
    daemon = sshd.Sshd.prepare(tmp_path)
    with pair.serve(*daemon.server(SSH), ready="listening on :: port"):
        assert pair.run(*daemon.client("-p", str(SSH), pair.address(family), "echo $((40 + 2))")) == "42\n"


@pytest.mark.parametrize("family", [4, 6])
def test_redis(pair: Pair, family: int) -> None:
    with pair.serve("redis-server", "--protected-mode", "no", "--save", "", ready="Ready to accept"):
        there = pair.address(family)
        assert pair.run("redis-cli", "-h", there, "set", "k", "v").strip() == "OK"
        assert pair.run("redis-cli", "-h", there, "get", "k").strip() == "v"


@pytest.mark.parametrize("pair", ["exec and TUN"], indirect=True)
def test_postgresql(pair: Pair) -> None:
    if reason := postgres.unavailable():
        pytest.skip(reason)
    with postgres.Postgres.prepared() as database, pair.serve(*database.server(SQL), ready=postgres.READY):
        made = ("create table t (number int primary key, word text)", "insert into t values (1, 'one'), (2, 'two')")
        pair.run(*database.client("peer-b.pvpn", SQL, *made))
        asked = ("select word from t where number = 2", "select host(inet_client_addr())")
        word, client = pair.run(*database.client("peer-b.pvpn", SQL, *asked)).split()
    assert word == "two"
    assert ip_address(client) in {ip_address(own(pair.a)[f"ipv{family}"]) for family in (4, 6)}


@pytest.mark.parametrize("family", [4, 6])
def test_http3(pair: Pair, tmp_path: Path, family: int) -> None:
    words = (sys.executable, "-m", "tests.lab.http3")
    with pair.serve(*words, "serve", str(H3), str(tmp_path), ready="^serving"):
        assert pair.run(*words, "get", pair.address(family), str(H3)) == "hello over h3\n"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", ["TCP", "UDP"])
def test_services_see_who_asks(pair: Pair, kind: str, family: int) -> None:
    if pair.ways[1] == "proxy":
        pytest.skip("a host without an interface has only its own addresses to ask from")
    # One that takes both families is met over IPv4: a flow tells a port, and no family.
    listening = f"{kind}{family}-{'LISTEN' if kind == 'TCP' else 'RECVFROM'}:{WHO},fork"
    listening += ",ipv6-v6only" if family == 6 else ""
    with pair.serve(
        "socat", "-d", "-d", listening, "SYSTEM:read line; echo $SOCAT_PEERADDR", ready="listening on|receiving on"
    ):
        target = f"{kind}:{in_url(pair.address(family))}:{WHO}"
        said = pair.run("sh", "-c", f"echo | socat -T5 -t1 - {target}").strip()
    assert ip_address(said.strip("[]")) == ip_address(own(pair.a)[f"ipv{family}"])


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", ["TCP", "UDP"])
def test_where_nobody_listens(pair: Pair, kind: str, family: int) -> None:
    target = f"{kind}:{in_url(pair.address(family))}:{CLOSED}"
    # The answer to a datagram finds its socket still open: ten seconds are for a lost one.
    said = pair.run("sh", "-c", f"(echo; sleep 0.3) | socat -t10 - {target}", check=False)
    assert re.search("Connection refused", said), said
