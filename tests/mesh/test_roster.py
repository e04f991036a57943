"""Who is called what: a name belongs to whoever bore it first, until it is forgotten."""

from __future__ import annotations

import pytest

from proxy_vpn.addresses import Address, valid_name
from proxy_vpn.errors import UsageError
from proxy_vpn.mesh import roster as module
from proxy_vpn.mesh.roster import ADDRESSES_REMEMBERED, NAME_LIMIT_CHARS, Peer, Roster

ONE, TWO, THREE = (bytes([number]) * 32 for number in (0xA1, 0xB2, 0xC3))


@pytest.fixture
def roster() -> Roster:
    return Roster("home", "this-machine")


def test_the_first_keeps_the_name_and_the_second_gets_a_suffix(roster: Roster) -> None:
    first, second = roster.meet(ONE, "laptop"), roster.meet(TWO, "laptop")
    assert (first.name, second.name) == ("laptop", "laptop-b2b2")
    assert first.claimed == second.claimed == "laptop" and first.network == "home"
    assert roster.find("laptop") is first and roster.find("laptop-b2b2") is second
    assert roster.get(ONE) is first and roster.get(THREE) is None and roster.find("nobody") is None
    assert roster.meet(ONE, "laptop") is first and roster.meet(TWO, "laptop") is second


def test_a_pin_outlives_the_peer_it_belongs_to(roster: Roster) -> None:
    roster.pins = {"laptop": ONE}
    assert roster.meet(TWO, "laptop").name == "laptop-b2b2"
    assert roster.meet(ONE, "laptop").name == "laptop"


def test_nobody_gets_this_machines_own_name(roster: Roster) -> None:
    assert roster.meet(ONE, "this-machine").name == "this-machine-a1a1"
    assert "this-machine" not in roster.pins


@pytest.mark.parametrize(
    "claimed", ["", "UPPER", "a.b", "x" * 33, "localhost", "wpad", "pvpn", "böse", "a b", "\x1b[2J"]
)
def test_a_claim_that_is_no_name_becomes_one(roster: Roster, claimed: str) -> None:
    assert roster.meet(ONE, claimed).name == "peer-a1a1"


def test_names_stay_valid_with_a_suffix(roster: Roster) -> None:
    roster.meet(ONE, "x" * NAME_LIMIT_CHARS)
    second = roster.meet(TWO, "x" * NAME_LIMIT_CHARS)
    assert valid_name(second.name) and len(second.name) == NAME_LIMIT_CHARS and second.name.endswith("-b2b2")


def test_a_peer_may_change_its_name_and_keeps_its_old_pin_from_others(roster: Roster) -> None:
    peer = roster.meet(ONE, "old")
    assert roster.meet(ONE, "new") is peer and peer.name == "new"
    assert roster.find("old") is None
    assert roster.meet(TWO, "old").name == "old-b2b2"


def test_forget_gives_the_name_to_the_next_that_comes(roster: Roster) -> None:
    roster.meet(ONE, "laptop")
    gone = roster.forget("laptop")
    assert gone.identity == ONE and roster.get(ONE) is None and roster.find("laptop") is None
    assert roster.meet(TWO, "laptop").name == "laptop"
    assert roster.meet(ONE, "laptop").name == "laptop-a1a1"


def test_forgetting_the_one_with_the_suffix_leaves_the_first_alone(roster: Roster) -> None:
    first = roster.meet(ONE, "laptop")
    roster.meet(TWO, "laptop")
    assert roster.forget("laptop-b2b2").identity == TWO
    assert roster.find("laptop") is first and roster.pins["laptop"] == ONE


def test_forgetting_nobody_is_a_usage_error(roster: Roster) -> None:
    with pytest.raises(UsageError, match="pvpn peers"):
        roster.forget("nobody")


def test_a_pin_without_a_peer_can_be_forgotten(roster: Roster) -> None:
    roster.pins = {"laptop": ONE}
    assert roster.forget("laptop").identity == ONE and not roster.pins


def test_others_cannot_bring_back_who_was_forgotten(roster: Roster) -> None:
    roster.meet(ONE, "laptop")
    roster.forget("laptop")
    assert roster.hear_of(ONE, "laptop") is None and roster.get(ONE) is None
    roster.meet(ONE, "laptop")
    assert roster.hear_of(ONE, "laptop") is roster.get(ONE)


def test_hearsay_does_not_rename_a_peer(roster: Roster) -> None:
    peer = roster.meet(ONE, "laptop")
    assert roster.hear_of(ONE, "impostor") is peer and peer.name == "laptop"


def test_loading_remembers_a_few_addresses(roster: Roster) -> None:
    addresses = [Address("192.0.2.1", port) for port in range(1000, 1020)]
    peer = roster.load(ONE, "laptop", addresses, 5.0)
    assert peer.addresses == addresses[:ADDRESSES_REMEMBERED] and peer.last_seen == 5.0 and peer.session is None


def test_a_name_that_is_only_remembered_belongs_to_the_first_that_comes(roster: Roster) -> None:
    roster.load(ONE, "nas", [], 1.0)
    assert roster.pins == {}
    assert roster.meet(TWO, "nas").name == "nas"
    remembered = roster.get(ONE)
    assert remembered is not None and remembered.name != "nas"


def test_the_address_that_worked_last_comes_first(roster: Roster) -> None:
    peer = roster.meet(ONE, "laptop")
    for port in [*range(1000, 1012), 1005]:
        peer.remember(Address("192.0.2.1", port))
    assert peer.addresses[0].port == 1005 and len(peer.addresses) == ADDRESSES_REMEMBERED
    assert len(set(peer.addresses)) == ADDRESSES_REMEMBERED


def test_the_roster_is_bounded_and_keeps_who_was_seen_last(roster: Roster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PEERS_LIMIT", 20)
    kept = roster.meet(ONE, "kept")
    kept.last_seen = 1e9
    live = roster.meet(TWO, "live")
    live.sessions.append(None)  # type: ignore[arg-type]
    for number in range(200):
        roster.meet(number.to_bytes(32, "big"), f"peer-{number}")
    peers: list[Peer] = list(roster)
    assert len(peers) <= 20 and kept in peers and live in peers


def test_names_that_others_make_up_fill_no_memory(roster: Roster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PEERS_LIMIT", 20)
    for number in range(500):
        roster.hear_of(number.to_bytes(32, "big"), f"made-up-{number}")
    assert len(roster.pins) <= 100
    for number in range(500):
        roster.meet(ONE, f"renamed-{number}")
    assert len(roster.pins) <= 100
