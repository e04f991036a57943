from __future__ import annotations

from proxy_vpn.addresses import Address
from proxy_vpn.dht.votes import MAX_VOTERS, VOTE_LIFE_S, Votes

SEEN, MOVED = Address("9.9.9.9", 4000), Address("9.9.9.10", 4000)


def voter(number: int, host: int = 4) -> Address:
    return Address(f"8.8.{number}.{host}", 6881)


def test_three_subnets_must_agree() -> None:
    votes = Votes()
    for host in range(1, 6):
        votes.add(voter(1, host), SEEN, 0.0)
    votes.add(voter(2), SEEN, 0.0)
    assert votes.address is None
    votes.add(voter(3), SEEN, 0.0)
    assert votes.address == SEEN
    assert votes.ip == SEEN.ip
    assert not votes.symmetric


def test_different_ports_mean_a_symmetric_nat() -> None:
    votes = Votes()
    for number in range(4):
        votes.add(voter(number), Address(SEEN.ip, 4000 + number), 0.0)
    assert votes.ip == SEEN.ip
    assert votes.address is None
    assert votes.symmetric


def test_a_few_liars_change_nothing_and_a_move_does() -> None:
    votes = Votes()
    for number in range(6):
        votes.add(voter(number), SEEN, 0.0)
    for number in range(10, 13):
        votes.add(voter(number), MOVED, 1.0)
    assert votes.address == SEEN
    for number in range(20, 20 + MAX_VOTERS):
        votes.add(voter(number), MOVED, 2.0)
    assert votes.address == MOVED
    votes.clear()
    assert votes.ip is None


def test_old_votes_lapse() -> None:
    votes = Votes()
    for number in range(3):
        votes.add(voter(number), SEEN, 0.0)
    for number in range(3, 6):
        votes.add(voter(number), MOVED, VOTE_LIFE_S + 1)
    assert votes.address == MOVED


def test_who_cannot_know_has_no_vote() -> None:
    votes = Votes()
    for number in range(3):
        for seen in (Address("192.168.1.5", 4000), Address("127.0.0.1", 4000), Address("fd00::1", 4000)):
            votes.add(voter(number), seen, 0.0)
        votes.add(voter(number), Address(SEEN.ip, 0), 0.0)
    assert votes.ip is None
    for number in range(3):
        votes.add(Address(f"127.0.{number}.1", 1), Address("127.0.9.1", 4000), 0.0)
    assert votes.address == Address("127.0.9.1", 4000)
