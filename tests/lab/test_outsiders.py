"""Who has no key gets nothing: no byte in reply, no connection dropped, no transfer slowed."""

from __future__ import annotations

import re
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from tests.lab.daemon import Daemon, make_key
from tests.lab.hosts import Host, Lab
from tests.lab.scenes import EXCHANGE_PORT, serve_exchange, two_peers
from tests.support.processes import Process

# A peer with its DHT node awake, which has junk to consider; nobody lives at this address of the lab.
WITH_DHT = ("--dht-bootstrap", "10.93.199.1:6881")
LEAST_CAPTURED = 50
RATE = 10_000
SEND_S = 60.0
ARRIVED = 0.9
FLOOD_SHARE = 0.8
WINDOW_SAMPLES = 20
SETTLE_SAMPLES = 5
ROUNDS = 3
WINDOWS = 5


@pytest.fixture
def crowd(lab: Lab, key: Path, tmp_path: Path) -> tuple[Daemon, Daemon, Host, Path]:
    """peer-a and peer-b after some traffic, an outsider's host, and a capture of all that went between the two."""
    peer_b = Daemon(lab.host("b"), key, "peer-b", *WITH_DHT).start()
    host_a, outsider = lab.host("a"), lab.host("outsider")
    capture = tmp_path / "capture"
    lab.set_offloads(False)  # with them a tap sees one huge packet where the wire has many
    tap = _packets(peer_b.host, "capture", host_a.address, str(capture))
    peer_a = Daemon(host_a, key, "peer-a", *WITH_DHT, "--peer", peer_b.endpoint).start()
    peer_a.meet(peer_b)
    serve_exchange(peer_b.host)
    for role in ("get", "put"):
        assert peer_a.exchange(role, "peer-b", EXCHANGE_PORT, 1 << 20).result()["end"] == "clean"
    seen = tap.finish()
    lab.set_offloads(True)
    assert min(seen["in"], seen["out"]) >= LEAST_CAPTURED
    return peer_a, peer_b, outsider, capture


def test_a_hundred_thousand_datagrams_draw_no_byte(crowd: tuple[Daemon, Daemon, Host, Path], tmp_path: Path) -> None:
    peer_a, peer_b, outsider, capture = crowd
    held = _hold(peer_a)
    foreign = _foreign_datagrams(outsider, peer_b, tmp_path)
    before, sent, drawn = _udp_received(peer_b.host), 0, {}
    for kind, file, count in (
        ("random", None, 20_000),
        ("dht", None, 10_000),
        ("replay", capture, 20_000),
        ("mutated", capture, 30_000),
        ("replay", foreign, 10_000),
        ("mutated", foreign, 10_000),
    ):
        watch = _packets(outsider, "watch", peer_b.host.address)
        sent += _send(outsider, peer_b.endpoint, kind, file, count)
        _echo(held, f"after {kind}")
        counts = watch.finish()
        assert counts["out"] >= count
        if counts["in"]:
            drawn[f"{kind} {file.name if file else ''}"] = (counts["in"], counts["in_bytes"])
    assert sent == 100_000 and not drawn, f"datagrams and bytes in reply: {drawn}"
    assert _udp_received(peer_b.host) - before > ARRIVED * sent
    assert held.finish()["end"] == "clean"


def test_forged_senders_drop_no_connection(crowd: tuple[Daemon, Daemon, Host, Path]) -> None:
    """The same from the peer's own address, while it is in use."""
    peer_a, peer_b, outsider, capture = crowd
    held = _hold(peer_a)
    transfer = peer_a.exchange("get", "peer-b", EXCHANGE_PORT, 64 << 20)
    for kind in ("replay", "mutated", "random"):
        _send(outsider, peer_b.endpoint, kind, capture, 10_000, forged=peer_a.endpoint)
    got = transfer.result(SEND_S)
    assert (got["bytes"], got["end"]) == (64 << 20, "clean")
    _echo(held, "after the forgeries")
    assert held.finish()["end"] == "clean"


def test_a_flood_leaves_a_transfer_its_speed(crowd: tuple[Daemon, Daemon, Host, Path]) -> None:
    """Quiet and flooded windows in turn, within one download; medians compared.

    Whatever else the machine does falls on some of the windows, so a round that fails is measured again, twice.
    """
    peer_a, peer_b, outsider, _ = crowd
    transfer = peer_a.exchange("follow", "peer-b", EXCHANGE_PORT)
    flood = _packets(outsider, "send", peer_b.endpoint, "--kind", "dht", "--rate", str(RATE))
    shares: list[float] = []
    while len(shares) < ROUNDS and max(shares, default=0.0) < FLOOD_SHARE:
        quiet, flooded = [], []
        for _ in range(WINDOWS):
            quiet.append(_speed(transfer))
            _order(flood, "go")
            flooded.append(_speed(transfer))
            _order(flood, "halt")
        shares.append(statistics.median(flooded) / statistics.median(quiet))
    sent = flood.finish()["sent"]
    transfer.kill()
    assert max(shares) >= FLOOD_SHARE, f"{shares} of the speed left under {sent} datagrams"


def test_another_network_hears_nothing(lab: Lab, key: Path, tmp_path: Path) -> None:
    """Somebody with a key file of another network dials this peer: no datagram comes back."""
    peer_a, peer_b = two_peers(lab, key)
    serve_exchange(peer_b.host)
    held = _hold(peer_a)
    _foreign_datagrams(lab.host("outsider"), peer_b, tmp_path)
    _echo(held, "still here")
    assert held.finish()["end"] == "clean"


def _foreign_datagrams(outsider: Host, peer: Daemon, directory: Path) -> Path:
    """What a member of another network sends when told to dial `peer`, which must not answer; a capture of it."""
    capture = directory / "foreign"
    tap = _packets(outsider, "capture", peer.host.address, str(capture))
    stranger = Daemon(outsider, make_key(directory, "other"), "stranger", "--no-dht", "--peer", peer.endpoint)
    stranger.start()
    tap.wait_for(r"^out 4$", timeout_s=30)
    stranger.stop()
    assert tap.finish()["in"] == 0
    return capture


def _hold(peer: Daemon) -> Process:
    """An echo stream from `peer` to peer-b's exchange, in use."""
    held = peer.exchange("hold", "peer-b", EXCHANGE_PORT)
    held.wait_for("^holding")
    _echo(held, "before")
    return held


def _echo(held: Process, text: str) -> None:
    held.tell(text)
    held.wait_for(f"^echo {text}$")


def _packets(host: Host, *arguments: str) -> Process:
    process = host.python("-m", "tests.lab.packets", *arguments)
    process.wait_for("^(watching|ready)$")
    return process


def _send(host: Host, endpoint: str, kind: str, file: Path | None, count: int, forged: str = "") -> int:
    options = ["--kind", kind, "--count", str(count), "--rate", str(RATE), "--as", forged]
    if file is not None:
        options += ["--file", str(file)]
    sent: int = _packets(host, "send", endpoint, *options).result(SEND_S)["sent"]
    return sent


def _order(flood: Process, order: str) -> None:
    since = flood.mark()
    flood.tell(order)
    flood.wait_for(f"^went {order}", since=since)


def _speed(transfer: Process) -> float:
    """Bytes a second over the next samples, after a few to settle."""
    at = transfer.mark() + SETTLE_SAMPLES
    samples = []
    for _ in range(WINDOW_SAMPLES):
        line = transfer.wait_for(r"^at ([\d.]+) (\d+)$", since=at)
        samples.append((float(line[1]), int(line[2])))
        at += 1
    assert all(late > early for (early, _), (late, _) in pairwise(samples))
    return (samples[-1][1] - samples[0][1]) / (samples[-1][0] - samples[0][0])


def _udp_received(host: Host) -> int:
    """Datagrams programs of this host have read so far."""
    found = re.findall(r"^Udp: (\d+)", host.run(["cat", "/proc/net/snmp"]).stdout, re.MULTILINE)
    return int(found[-1])
