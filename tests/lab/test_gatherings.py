"""Many peers at once, one that dies and returns, groups cut apart and joined again: each pair is connected once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.lab.daemon import UDP_PORT, Daemon
from tests.lab.hosts import Lab
from tests.lab.scenes import EXCHANGE_PORT, serve_exchange

CROWD = 20
GROUP = 4
GATHER_S = 60.0
NOTICED_S = 40.0
BACK_S = 10.0
QUIET_S = 2.0
RETIRED_S = 20.0
COMMANDS_AT_ONCE = 4


class Crowd:
    """Peers on hosts of their own, started at once; each, the first one too, is told the address of the first."""

    def __init__(self, lab: Lab, key: Path, count: int) -> None:
        hosts = [lab.host(f"h{number}") for number in range(1, count + 1)]
        names = [f"peer-{number:02}" for number in range(1, count + 1)]
        told = ("--no-dht", "--peer", f"{hosts[0].address}:{UDP_PORT}")
        self.peers = [Daemon(host, key, name, *told) for host, name in zip(hosts, names, strict=True)]
        self._since = dict.fromkeys(names, 0)

    def gather(self) -> float:
        """Start all; how many seconds passed until each knew all others."""
        began = time.monotonic()
        for peer in self.peers:
            peer.begin()
        for peer in self.peers:
            self.wait_for(peer, "+", self.peers, GATHER_S)
        return time.monotonic() - began

    def mark(self) -> None:
        """From here on only what is said later counts."""
        self._since = {peer.name: peer.mark() for peer in self.peers}

    def wait_for(self, peer: Daemon, sign: str, others: Iterable[Daemon], timeout_s: float) -> None:
        """Wait until a peer has said `+` (here) or `-` (gone) of these others, itself left out."""
        for other in others:
            if other is not peer:
                peer.wait_for(rf"^\{sign} {other.name} ", timeout_s, since=self._since[peer.name])

    def said(self, peer: Daemon) -> list[str]:
        """Who came and went and what was warned of, such as `+ peer-02`, in order."""
        lines = peer.output.splitlines()[self._since[peer.name] :]
        return [" ".join(line.split()[:2]) for line in lines if line[:2] in ("+ ", "- ", "! ")]

    def check_quiet(self, peer: Daemon) -> None:
        """For a while nobody comes or goes; the others had as much time, so one is enough to wait for."""
        since = peer.mark()
        with pytest.raises(AssertionError, match="still running"):
            peer.wait_for("^[-+!] ", QUIET_S, since=since)

    def check_agreement(self) -> None:
        """All are live for all others, each once, at the address it has and under the identity it has for all."""
        identities: dict[str, set[str]] = {peer.name: set() for peer in self.peers}
        with ThreadPoolExecutor(COMMANDS_AT_ONCE) as pool:
            answers = pool.map(lambda peer: json.loads(peer.pvpn("peers", "--json").stdout), self.peers)
            for peer, answer in zip(self.peers, answers, strict=True):
                others = sorted((each.name, "live", f"lan {each.endpoint}") for each in self.peers if each is not peer)
                seen = sorted((entry["name"], entry["state"], entry["path"]) for entry in answer["peers"])
                assert seen == others, f"{peer.name} sees {seen}"
                self._check_one_connection_each(peer, answer)
                for entry in answer["peers"]:
                    identities[entry["name"]].add(entry["id"])
        assert len({each for found in identities.values() for each in found}) == len(self.peers), identities

    def _check_one_connection_each(self, peer: Daemon, answer: dict[str, Any]) -> None:
        """Two that dialled each other at once hold both connections until the second one has retired."""
        deadline = time.monotonic() + RETIRED_S
        while not all(entry["connections"] == 1 for entry in answer["peers"]):
            assert time.monotonic() < deadline, answer
            answer = json.loads(peer.pvpn("peers", "--json").stdout)


def test_twenty_start_at_once_and_one_dies_and_returns(lab: Lab, key: Path) -> None:
    crowd = Crowd(lab, key, CROWD)
    print(f"{CROWD} peers know each other after {crowd.gather():.1f} s")
    crowd.check_quiet(crowd.peers[0])
    for peer in crowd.peers:
        others = sorted(f"+ {other.name}" for other in crowd.peers if other is not peer)
        assert sorted(crowd.said(peer)) == others, peer.output
    crowd.check_agreement()

    victim = crowd.peers[CROWD // 2]
    survivors = [peer for peer in crowd.peers if peer is not victim]
    victim.kill()
    crowd.mark()
    began = time.monotonic()
    victim.start()
    for peer in survivors:
        crowd.wait_for(peer, "+", [victim], BACK_S)
    victim.meet(*survivors)
    print(f"all have the one that was killed again {time.monotonic() - began:.1f} s after it was started")
    crowd.check_quiet(victim)
    for peer in survivors:
        assert crowd.said(peer) in ([f"- {victim.name}", f"+ {victim.name}"], [f"+ {victim.name}"]), peer.output
    crowd.check_agreement()


def test_two_groups_cut_apart_are_one_again(lab: Lab, key: Path) -> None:
    """Flows across the cut make it known after 20 s; nobody asks for anything once it is healed."""
    crowd = Crowd(lab, key, 2 * GROUP)
    crowd.gather()
    sides = here, there = crowd.peers[:GROUP], crowd.peers[GROUP:]
    for peer in there:
        serve_exchange(peer.host)
    flows = [peer.exchange("hold", other.name, EXCHANGE_PORT) for peer in here for other in there]
    for flow in flows:
        flow.wait_for("^holding")
    crowd.mark()
    _bridge(lab, there, "other")
    for side, across in (sides, reversed(sides)):
        for peer in side:
            crowd.wait_for(peer, "-", across, NOTICED_S)
            assert sorted(crowd.said(peer)) == sorted(f"- {other.name}" for other in across)
    crowd.mark()
    began = time.monotonic()
    _bridge(lab, there, there[0].host.segment.bridge)
    for side, across in (sides, reversed(sides)):
        for peer in side:
            crowd.wait_for(peer, "+", across, BACK_S)
    print(f"one again {time.monotonic() - began:.1f} s after the cut")
    crowd.check_quiet(crowd.peers[0])
    for side, across in (sides, reversed(sides)):
        for peer in side:
            assert sorted(crowd.said(peer)) == sorted(f"+ {other.name}" for other in across)
    crowd.check_agreement()


def _bridge(lab: Lab, peers: Sequence[Daemon], name: str) -> None:
    """Move the peers' hosts to the bridge of this name, made unless it is there."""
    made = f"(ip link show {name} >/dev/null 2>&1 || ip link add {name} type bridge) && ip link set {name} up"
    moves = " && ".join(f"ip link set {peer.host.port} master {name}" for peer in peers)
    moving = lab.start([*lab.enter(peers[0].host.segment.anchor), "sh", "-c", f"{made} && {moves}"])
    assert moving.wait() == 0, moving.output
