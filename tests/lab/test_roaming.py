"""Flows survive a move: a host gets another address in the middle of a transfer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.daemon import Daemon
from tests.lab.hosts import Host, Lab
from tests.lab.scenes import EXCHANGE_PORT, serve_exchange, two_peers

SIZE_BYTES = 200 << 20
TRANSFER_S = 60.0
RESET_S = 10.0
BACK_S = 5.0


@pytest.mark.parametrize("who", ["who dialled", "who was dialled"])
def test_an_address_changes_during_a_transfer(lab: Lab, key: Path, who: str) -> None:
    """The peer that moves is the one whose program asked: a service's own connection ends with its host's address."""
    mover, other = peers = two_peers(lab, key)
    if who == "who was dialled":
        other, mover = peers
    server = serve_exchange(other.host)
    client = mover.exchange("get", other.name, EXCHANGE_PORT, SIZE_BYTES)
    client.wait_for("^flowing")
    _move(mover.host)
    got = client.result(TRANSFER_S)
    assert (got["bytes"], got["end"]) == (SIZE_BYTES, "clean"), got
    server.wait_for(rf'"sha256": "{got["sha256"]}", "end": "clean"')
    _nobody_left(*peers)


def test_a_service_whose_address_goes_is_reset_and_reached_again_at_the_new_one(lab: Lab, key: Path) -> None:
    """The service's own connection can't outlive its address: the program is told, and does not hang."""
    asker, server = two_peers(lab, key)
    serve_exchange(server.host)
    client = asker.exchange("get", server.name, EXCHANGE_PORT, 0)
    client.wait_for("^flowing")
    _move(server.host)
    assert client.result(RESET_S)["end"] == "reset"
    again = asker.exchange("get", server.name, EXCHANGE_PORT, 1 << 20)
    assert again.result(BACK_S)["end"] == "clean"
    _nobody_left(asker, server)


def _move(host: Host) -> None:
    """Another address and no other, as after a change of networks."""
    new = f"{host.address.rpartition('.')[0]}.77"
    host.run(["ip", "address", "del", f"{host.address}/16", "dev", "eth0"])
    host.run(["ip", "address", "add", f"{new}/16", "dev", "eth0"])
    host.run(["ip", "route", "replace", "default", "via", host.segment.gateway])


def _nobody_left(*peers: Daemon) -> None:
    for peer in peers:
        assert not any(line.startswith("- ") for line in peer.output.splitlines()), peer.output
