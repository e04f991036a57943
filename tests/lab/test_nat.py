"""The laboratory's routers are what they claim: mapping, filtering, hairpin, nesting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.hosts import Host, Lab
from tests.lab.nat import CARRIER, CONES, Kind, Router, guard
from tests.lab.scenes import curl, serve_web
from tests.lab.talker import PORT, Talker

OTHER_PORT = 5001
TRANSLATING = [kind for kind in Kind if kind is not Kind.NO_UDP]


@dataclass
class Stage:
    """A talker behind a router, and what it meets outside: two ports of `far`, and a port of `stranger`."""

    inner: Talker
    far: Talker
    far_port: Talker
    stranger: Talker


def set_stage(lab: Lab, inner: Host) -> Stage:
    far, stranger = lab.host("far"), lab.host("stranger")
    return Stage(Talker(inner), Talker(far), Talker(far, OTHER_PORT), Talker(stranger))


def mapping(inner: Talker, outer: Talker, word: str) -> tuple[str, int]:
    """Where `inner` is, as `outer` sees it; an answer comes back."""
    inner.send(word, outer.endpoint)
    seen = outer.hear(word)
    outer.send(f"{word}-answer", seen)
    inner.hear(f"{word}-answer")
    return seen


@pytest.mark.parametrize("kind", TRANSLATING)
def test_mapping(internet: Lab, kind: Kind) -> None:
    router = Router(internet, kind)
    stage = set_stage(internet, router.host("in"))
    first = mapping(stage.inner, stage.far, "one")
    others = [mapping(stage.inner, stage.far_port, "two"), mapping(stage.inner, stage.stranger, "three")]
    assert first[0] == router.address
    assert {other[0] for other in others} == {router.address}
    if kind is Kind.SYMMETRIC:
        assert first not in others
    else:
        assert others == [first, first]
    assert (first[1] == PORT) == (kind is Kind.MASQUERADE)


@pytest.mark.parametrize("kind", TRANSLATING)
def test_filtering(internet: Lab, kind: Kind) -> None:
    stage = set_stage(internet, Router(internet, kind).host("in"))
    outside = mapping(stage.inner, stage.far, "hello")
    stage.stranger.send("stranger", outside)
    stage.far_port.send("other-port", outside)
    stage.far.send("asked", outside)
    stage.inner.hear("asked")
    assert stage.inner.heard("stranger") == (kind is Kind.FULL_CONE)
    assert stage.inner.heard("other-port") == (kind in (Kind.FULL_CONE, Kind.ADDRESS_RESTRICTED))


@pytest.mark.parametrize("kind", [*CONES, Kind.MASQUERADE])
def test_an_early_datagram_spoils_nothing(internet: Lab, kind: Kind) -> None:
    """A peer's probe that came before ours went out: ours still leaves from the port everyone knows."""
    stage = set_stage(internet, Router(internet, kind).host("in"))
    outside = mapping(stage.inner, stage.far, "hello")
    stage.stranger.send("early", outside)
    assert mapping(stage.inner, stage.stranger, "mine") == outside


@pytest.mark.parametrize("kind", CONES)
def test_two_hosts_with_one_port(internet: Lab, kind: Kind) -> None:
    router = Router(internet, kind)
    stage, second = set_stage(internet, router.host("in")), Talker(router.host("in too"))
    ports = [mapping(inner, stage.far, f"first-{n}")[1] for n, inner in enumerate((stage.inner, second))]
    again = [mapping(inner, stage.stranger, f"second-{n}")[1] for n, inner in enumerate((stage.inner, second))]
    assert ports[0] != ports[1]
    assert again == ports


def test_what_came_in_first_is_answered_from_the_same_port(internet: Lab) -> None:
    stage = set_stage(internet, Router(internet, Kind.FULL_CONE).host("in"))
    outside = mapping(stage.inner, stage.far, "hello")
    stage.stranger.send("stranger", outside)
    stage.inner.send("welcome", stage.inner.hear("stranger"))
    assert stage.stranger.hear("welcome") == outside


def test_no_udp(internet: Lab, tmp_path: Path) -> None:
    """No datagram passes, TCP does."""
    stage = set_stage(internet, inner := Router(internet, Kind.NO_UDP).host("in"))
    stage.inner.send("lost", stage.far.endpoint)
    serve_web(web := internet.host("web"), tmp_path / "web")
    assert curl(inner, f"http://{web.address}:8000/hello") == "hello from web"
    assert not stage.far.heard("lost")


@pytest.mark.parametrize("hairpin", [False, True])
@pytest.mark.parametrize("kind", CONES)
def test_hairpin(internet: Lab, kind: Kind, hairpin: bool) -> None:
    router = Router(internet, kind, hairpin=hairpin)
    stage, second = set_stage(internet, router.host("in")), Talker(router.host("in too"))
    outside, outside2 = mapping(stage.inner, stage.far, "hello"), mapping(second, stage.far, "hello2")
    second.send("round", outside)
    if hairpin:
        assert stage.inner.hear("round") == outside2
        stage.inner.send("back", outside2)
        assert second.hear("back") == outside
    assert mapping(second, stage.stranger, "after") == outside2
    assert stage.inner.heard("round") == hairpin
    second.send("direct", stage.inner.endpoint)
    assert stage.inner.hear("direct") == second.endpoint


@pytest.mark.parametrize("kind", TRANSLATING)
def test_two_deep(internet: Lab, kind: Kind, tmp_path: Path) -> None:
    """Carrier-grade NAT; homes behind it may use one network, and TCP passes."""
    carrier = Router(internet, kind, lan=CARRIER)
    inner = Router(internet, kind, behind=carrier).host("in")
    neighbour = Router(internet, kind, behind=carrier).host("in too")
    stage = set_stage(internet, inner)
    assert inner.address == neighbour.address
    assert mapping(stage.inner, stage.far, "one")[0] == carrier.address
    assert mapping(Talker(neighbour), stage.far, "two")[0] == carrier.address
    serve_web(web := internet.host("web"), tmp_path / "web")
    assert curl(inner, f"http://{web.address}:8000/hello") == "hello from web"


def test_a_guarded_host_hears_whom_it_spoke_to(internet: Lab) -> None:
    guard(host := internet.host("guarded"))
    stage = set_stage(internet, host)
    stage.far.send("unasked", stage.inner.endpoint)
    assert mapping(stage.inner, stage.far, "hello") == stage.inner.endpoint
    assert not stage.inner.heard("unasked")
