"""Status as JSON and as lines."""

from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_vpn.addresses import Address, ForwardSpec
from proxy_vpn.daemon import status
from proxy_vpn.daemon.status import (
    DaemonStatus,
    DhtStatus,
    ExposeStatus,
    ForwardStatus,
    OpenPort,
    PeersReply,
    PeerStatus,
    render_peers,
    render_status,
)
from tests.daemon.fake import STATUS

NOW = 1_700_000_600.0


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def peer(**fields: object) -> PeerStatus:
    return msgspec.convert({"name": "peer-b", "id": "bb", "network": "home", "state": "live", **fields}, PeerStatus)


def test_json_comes_back_and_unknown_fields_are_skipped() -> None:
    data = msgspec.json.encode(STATUS)
    assert msgspec.json.decode(data, type=DaemonStatus) == STATUS
    newer = data[:-1] + b',"colour":"blue"}'
    assert msgspec.json.decode(newer, type=DaemonStatus) == STATUS
    assert msgspec.json.decode(b'{"schema":1}', type=PeersReply) == PeersReply()


def test_one_aligned_line_a_peer() -> None:
    peers = [
        peer(path="direct 203.0.113.7:41641", rtt_ms=12.3, tx_bytes=1_200_000, rx_bytes=3_400_000, since=NOW - 60),
        peer(name="a", id="aa", path="relay via peer-b", rtt_ms=140, since=NOW - 2 * 86400),
        peer(name="long-gone", id="cc", state="lost"),
        peer(name="walled-in", id="cd", state="lost", reason="no direct path and no relay"),
    ]
    assert render_peers(peers, NOW) == [
        "a          relay via peer-b                   140 ms  tx 0 B rx 0 B        since 2023-11-12 22:23",
        "peer-b     direct 203.0.113.7:41641           12 ms   tx 1.2 MB rx 3.4 MB  since 22:22",
        "long-gone  lost                                       tx 0 B rx 0 B",
        "walled-in  lost: no direct path and no relay          tx 0 B rx 0 B",
    ]


def test_networks_are_named_when_there_are_several() -> None:
    lines = render_peers([peer(), peer(network="office", state="probing")], NOW)
    assert lines[0].startswith("peer-b.home")
    assert lines[1].startswith("peer-b.office  probing")
    assert render_peers([], NOW) == [
        "no peers yet: run pvpn with the same key file on another machine"
        " - if it runs there, see that both clocks are right: here it is 2023-11-14 22:23"
    ]


def test_addresses_that_none_answers_at_are_told() -> None:
    alone = msgspec.structs.replace(
        STATUS, peers=(), networks=(msgspec.structs.replace(STATUS.networks[0], unanswered=2),)
    )
    line = render_status(alone, NOW)[-1]
    assert line.startswith("no peers yet: 2 addresses found, none answers - no direct path and no relay to somebody")
    assert "--listen" in line and line.endswith("see that both clocks are right: here it is 2023-11-14 22:23")
    gone, there = peer(state="lost"), peer()
    assert render_peers([gone], NOW, unanswered=1)[1].startswith("1 address found, none answers")
    assert len(render_peers([gone, there], NOW, unanswered=1)) == 2


@pytest.mark.parametrize(
    ("where", "ip"),
    [
        (Address("127.0.0.1", 1080), ""),
        (Address("::1", 1080), ""),
        (Address("0.0.0.0", 1080), "0.0.0.0"),
        (Address("::", 1080), "::"),
        (Address("192.0.2.1", 1080), "192.0.2.1"),
        (ForwardSpec.parse("2222:peer-b:22"), ""),
        (ForwardSpec.parse("unix:/s:peer-b:22"), ""),
        (ForwardSpec.parse("0.0.0.0:2222:peer-b:22"), "0.0.0.0"),
    ],
)
def test_a_door_that_is_open_to_more_than_this_machine_is_told(where: Address | ForwardSpec, ip: str) -> None:
    text = status.open_door(where, "proxy")
    assert bool(text) == bool(ip)
    if ip:
        assert f"can use this proxy - leave out {ip} to" in text


def test_the_whole_status() -> None:
    full = msgspec.structs.replace(
        STATUS,
        forwards=(ForwardStatus(spec="127.0.0.1:2222:peer-b:22", held=True), ForwardStatus(spec="unix:/s:peer-b:1")),
        warnings=("two machines carry one identity",),
        networks=(
            STATUS.networks[0],
            msgspec.structs.replace(STATUS.networks[1], range4="100.88.0.0/16", range4_moved=True),
        ),
    )
    assert render_status(full, NOW)[:-3] == [
        "running pvpn 0.1.0 as peer-a, process 4321, since 22:13",
        "network home  aaaa-bbbb",
        "network office  cccc-dddd  in 100.88.0.0/16 (moved)",
        "proxy   127.0.0.1:1080  (SOCKS4a/5 and HTTP)",
        "forward 127.0.0.1:2222:peer-b:22  until its pvpn forward ends",
        "forward unix:/s:peer-b:1",
        "open    to peers: 8000/tcp  (rules: default; the host's firewall does not apply)",
        "udp     0.0.0.0:41641",
        "dht     announced, 120 nodes; seen from outside as 203.0.113.9:41641",
        "warning two machines carry one identity",
    ]


def test_a_round_trip_not_yet_measured_is_no_hole_in_the_column() -> None:
    lines = render_peers(
        [peer(path="direct 192.0.2.1:5", rtt_ms=4.2), peer(name="peer-c", path="direct 192.0.2.2:5")], NOW
    )
    assert lines[0].startswith("peer-b  direct 192.0.2.1:5  4.2 ms  tx")
    assert lines[1].startswith("peer-c  direct 192.0.2.2:5  -       tx")


def test_what_is_open_in_a_few_words() -> None:
    many = ExposeStatus(open=tuple(OpenPort(port=port, protocol="tcp", address="::") for port in (80, 22, 53)))
    assert status.open_services(many) == status.open_services(many, 3) == "22/tcp 53/tcp 80/tcp"
    assert status.open_services(many, 2) == "22/tcp 53/tcp and 1 more"


def test_what_is_open_in_one_line() -> None:
    assert status.render_expose(ExposeStatus(rules="none", open=())).startswith("to peers: nothing  (rules: none;")
    assert status.render_expose(ExposeStatus(rules="all")).startswith("to peers: what the rules allow")
    twice = tuple(OpenPort(port=53, protocol="udp", address=address) for address in ("0.0.0.0", "::"))
    assert status.render_expose(ExposeStatus(open=twice)).startswith("to peers: 53/udp  (")


def test_the_dht_in_one_line() -> None:
    assert status.render_dht(DhtStatus()) == "off"
    assert status.render_dht(DhtStatus(state="unreachable")).startswith(
        "unreachable: no node answers; is UDP blocked? peers are still found on the same LAN, at --peer"
    )
    assert (
        status.render_dht(DhtStatus(state="searching", nodes=3, serving=True)) == "searching, 3 nodes; answering others"
    )


def test_colours_only_when_asked_for() -> None:
    plain, coloured = render_status(STATUS, NOW), render_status(STATUS, NOW, colour=True)
    assert not any("\x1b" in line for line in plain)
    assert any("\x1b[32m" in line for line in coloured)
    assert list(map(strip, coloured)) == plain


def strip(line: str) -> str:
    for code in ("2", "31", "32", "33", "0"):
        line = line.replace(f"\x1b[{code}m", "")
    return line


@given(st.text(max_size=200))
def test_remote_text_is_escaped_and_cut(text: str) -> None:
    shown = status.printable(text)
    assert shown.isprintable() or not shown
    assert len(shown) <= 10 * (status.MAX_REMOTE_TEXT_CHARS + 3)
    for line in render_peers([peer(name=text, path=text, version=text, engine=text)], NOW):
        assert line.isprintable()


def test_terminal_tricks_show_as_text() -> None:
    assert status.printable("a\x1b[2J\u202eb\r\n") == r"a\x1b[2J\u202eb\r\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert status.size(count) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.4216, "0.42 ms"), (0.996, "1.0 ms"), (4.21, "4.2 ms"), (9.96, "10 ms"), (142.4, "142 ms")]
)
def test_round_trips(value: float, text: str) -> None:
    assert status.milliseconds(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_time_can_be_shown(when: float) -> None:
    assert status.clock(when, NOW)
