from __future__ import annotations

from proxy_vpn.dht.announces import Rounds
from proxy_vpn.dht.events import Announced


def test_a_round_ends_with_its_last_node() -> None:
    rounds = Rounds()
    one, two = rounds.begin(b"h" * 20, 4, 2), rounds.begin(b"h" * 20, 6, 1)
    assert rounds.finish_one(one, stored=True) is None
    assert rounds.finish_one(two, stored=False) == Announced(b"h" * 20, 6, 1, 0)
    assert rounds.finish_one(one, stored=False) == Announced(b"h" * 20, 4, 2, 1)
