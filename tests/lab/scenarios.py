"""Where two peers are, and how long it takes them to be connected there.

The program is `python -m tests.lab.scenarios [--runs N] [NAME...]`; a name with * and ? stands for all that match. Each
run is a laboratory of its own with public-looking addresses, a DHT of libtorrent nodes, and two peers that share
nothing but the key file and know one DHT node's address each. The table is Markdown: seconds from the start of the
second peer's program until both say that the other is there.
Then comes what may happen to peers that are connected (tests.lab.events), and how long flows wait for it.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TypeVar

from tests.lab.daemon import Daemon, make_key
from tests.lab.events import EVENTS
from tests.lab.hosts import PUBLIC, Host, Lab
from tests.lab.nat import CARRIER, CONES, Kind, Router, guard, unavailable
from tests.lab.scenes import strangers_dht

MEET_S = 60.0
# The first peer is in the DHT, and has looked around for a while, when the second comes.
LATE_S = 20.0
RUNS = 3
# Worst first; the words of `pvpn peers`, and none while there is no path.
PATHS = ("none", "relay", "direct", "lan")

Places = tuple[Host, Host]


@dataclass(frozen=True)
class Outcome:
    """How one run went: `path` is one of PATHS, and `seconds` how long it took or was waited."""

    path: str
    seconds: float


@dataclass
class Meeting:
    """Two peers in a lab, about to find each other."""

    peer_a: Daemon
    peer_b: Daemon
    third: Daemon | None = None

    def run(self, pause_s: float = 0.0, timeout_s: float = MEET_S) -> Outcome:
        """Start a, after a pause b, and wait until each knows the other; `path` is the worse one of both."""
        self.peer_a.start()
        if self.third is not None:
            self.third.start().meet(self.peer_a, timeout_s=timeout_s)
        time.sleep(pause_s)
        began = time.monotonic()
        self.peer_b.start()
        try:
            self.peer_b.meet(self.peer_a, timeout_s=timeout_s)
            self.peer_a.meet(self.peer_b, timeout_s=max(1.0, began + timeout_s - time.monotonic()))
        except AssertionError:
            return Outcome("none", time.monotonic() - began)
        seconds = time.monotonic() - began
        paths = {path_of(self.peer_a, self.peer_b), path_of(self.peer_b, self.peer_a)}
        return Outcome(min(paths, key=PATHS.index), seconds)


def meeting(lab: Lab, directory: Path, places: Places, options: Sequence[str] = (), *, third: bool = False) -> Meeting:
    """Two peers at their places, who find each other through strangers' DHT or their LAN, and perhaps a third."""
    key = make_key(directory)
    first, *_, last = strangers_dht(lab)
    host_a, host_b = places
    return Meeting(
        Daemon(host_a, key, "peer-a", "--dht-bootstrap", first, *options, udp_port=None, lan=True),
        Daemon(host_b, key, "peer-b", "--dht-bootstrap", last, *options, udp_port=None, lan=True),
        Daemon(lab.host("c"), key, "peer-c", "--dht-bootstrap", last, udp_port=None, lan=True) if third else None,
    )


def path_of(peer: Daemon, other: Daemon) -> str:
    """The kind of a peer's path to another: one of PATHS."""
    return path_text(peer, other).partition(" ")[0] or "none"


def path_text(peer: Daemon, other: Daemon) -> str:
    """What a peer says of its path to another, such as `direct 192.0.2.1:41641`; empty while there is none."""
    answer = json.loads(peer.pvpn("peers", "--json").stdout)
    live = (entry for entry in answer["peers"] if entry["name"] == other.name and entry["state"] == "live")
    return next((str(entry["path"]) for entry in live), "")


# --- places: each makes two hosts in a lab ------------------------------------------------------------------------


def behind(kind_a: Kind | None, kind_b: Kind | None) -> Callable[[Lab], Places]:
    """Each behind a router of its own, or on the internet; the homes' private networks are the same."""

    def build(lab: Lab) -> Places:
        a, b = (
            Router(lab, kind).host(name) if kind else lab.host(name) for kind, name in ((kind_a, "a"), (kind_b, "b"))
        )
        return a, b

    return build


def same_home(kind: Kind, hairpin: bool = False) -> Callable[[Lab], Places]:
    """Both behind one router."""

    def build(lab: Lab) -> Places:
        router = Router(lab, kind, hairpin=hairpin)
        return router.host("a"), router.host("b")

    return build


def carriers(kind_a: Kind, kind_b: Kind | None) -> Callable[[Lab], Places]:
    """Behind a home's and a carrier's router; b's with another carrier, or, with None, on the internet."""

    def build(lab: Lab) -> Places:
        return _subscriber(lab, "a", kind_a), _subscriber(lab, "b", kind_b) if kind_b else lab.host("b")

    return build


def one_carrier(kind: Kind, hairpin: bool) -> Callable[[Lab], Places]:
    """Each behind a home's router, both of them behind one carrier's."""

    def build(lab: Lab) -> Places:
        carrier = Router(lab, kind, lan=CARRIER, hairpin=hairpin)
        a, b = (Router(lab, Kind.MASQUERADE, behind=carrier).host(name) for name in ("a", "b"))
        return a, b

    return build


def guarded(lab: Lab) -> Places:
    """Public addresses, and firewalls that let in only answers."""
    a, b = lab.host("a"), lab.host("b")
    guard(a)
    guard(b)
    return a, b


def _subscriber(lab: Lab, name: str, kind: Kind) -> Host:
    return Router(lab, Kind.MASQUERADE, behind=Router(lab, kind, lan=CARRIER)).host(name)


# --- the registry -------------------------------------------------------------------------------------------------

Scenario = Callable[[Lab, Path], Outcome]
Result = TypeVar("Result")


def meets(places: Callable[[Lab], Places], pause_s: float = 0.0, *, third: bool = False) -> Scenario:
    """Two peers at these places, b coming later than a; a `third`, on the internet, is with a by then."""
    return lambda lab, directory: meeting(lab, directory, places(lab), third=third).run(pause_s)


HOMES = (*CONES, Kind.MASQUERADE)
DIRECT: dict[str, Callable[[Lab], Places]] = {
    "no-nat": behind(None, None),
    "firewalls": guarded,
    "no-nat+port-restricted": behind(None, Kind.PORT_RESTRICTED),
    "no-nat+symmetric": behind(None, Kind.SYMMETRIC),
    **{f"{a}+{b}": behind(a, b) for a, b in combinations_with_replacement(HOMES, 2)},
    "full-cone+symmetric": behind(Kind.FULL_CONE, Kind.SYMMETRIC),
    "address-restricted+symmetric": behind(Kind.ADDRESS_RESTRICTED, Kind.SYMMETRIC),
    "carriers": carriers(Kind.PORT_RESTRICTED, Kind.PORT_RESTRICTED),
    "carrier+no-nat": carriers(Kind.SYMMETRIC, None),
    "one-carrier-hairpin": one_carrier(Kind.PORT_RESTRICTED, hairpin=True),
    "same-home-hairpin": same_home(Kind.PORT_RESTRICTED, hairpin=True),
    "same-home": same_home(Kind.MASQUERADE),
}
"""Places where a direct path is possible."""

RELAYED: dict[str, Callable[[Lab], Places]] = {
    "port-restricted+symmetric": behind(Kind.PORT_RESTRICTED, Kind.SYMMETRIC),
    "symmetric+symmetric": behind(Kind.SYMMETRIC, Kind.SYMMETRIC),
    "carriers-symmetric": carriers(Kind.SYMMETRIC, Kind.SYMMETRIC),
    "one-carrier": one_carrier(Kind.PORT_RESTRICTED, hairpin=False),
}
"""Places where only a third peer helps."""

SCENARIOS: dict[str, Scenario] = {
    **{name: meets(places) for name, places in DIRECT.items()},
    **{
        f"late:{name}": meets(DIRECT[name], LATE_S)
        for name in ("no-nat", "port-restricted+port-restricted", "carriers")
    },
    **{name: meets(places, third=True) for name, places in RELAYED.items()},
    **{f"alone:{name}": meets(places) for name, places in RELAYED.items()},
}


def run(scenario: Callable[[Lab, Path], Result]) -> Result:
    """One run, in a lab of its own."""
    with tempfile.TemporaryDirectory(prefix="pvpn-") as directory, Lab(PUBLIC) as lab:
        return scenario(lab, Path(directory))


def row(name: str, outcomes: Sequence[Outcome]) -> str:
    """The table's line about some runs of one scenario: each kind of path met, and the times of runs that connected."""
    paths = " or ".join(sorted({outcome.path for outcome in outcomes}))
    times = [outcome.seconds for outcome in outcomes if outcome.path != "none"]
    median, worst = (f"{statistics.median(times):.1f}", f"{max(times):.1f}") if times else ("-", "-")
    return f"| {name} | {paths} | {median} | {worst} | {len(times)} of {len(outcomes)} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.scenarios", description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help="of each scenario (%(default)s)")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("names", nargs="*", default=["*"], help="all unless given")
    arguments = parser.parse_args()
    chosen = [name for name in SCENARIOS if any(fnmatch.fnmatchcase(name, wish) for wish in arguments.names)]
    events = [name for name in EVENTS if any(fnmatch.fnmatchcase(name, wish) for wish in arguments.names)]
    if arguments.list:
        print("\n".join([*chosen, *events]))
        return
    if not (chosen or events) or arguments.runs < 1:
        parser.error("nothing to run")
    if reason := unavailable():
        sys.exit(f"no routers here: {reason}")
    if chosen:
        print("| scenario | path | median s | worst s | connected |\n|---|---|---|---|---|", flush=True)
    for name in chosen:
        print(row(name, [run(SCENARIOS[name]) for _ in range(arguments.runs)]), flush=True)
    if events:
        print("| event | promised s | median s | worst s |\n|---|---|---|---|", flush=True)
    for name in events:
        times = [run(EVENTS[name].seconds) for _ in range(arguments.runs)]
        print(
            f"| {name} | {EVENTS[name].promised_s:g} | {statistics.median(times):.1f} | {max(times):.1f} |", flush=True
        )


if __name__ == "__main__":
    main()
