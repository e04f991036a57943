from __future__ import annotations

import os

from proxy_vpn.addresses import Address
from proxy_vpn.dht.pending import ANSWER_S, MAX_PENDING, Pending
from proxy_vpn.wire.krpc import Ping

ONE, OTHER = Address("10.0.0.1", 1), Address("10.0.0.1", 2)


def test_only_the_exact_address_and_id_take_a_question() -> None:
    pending = Pending(os.urandom)
    question = pending.add(ONE, Ping(), 0.0)
    assert pending.expects(ONE)
    assert not pending.expects(OTHER)
    assert pending.take(question.tid, OTHER) is None
    assert pending.take(b"none", ONE) is None
    assert pending.take(question.tid, ONE) is question
    assert pending.take(question.tid, ONE) is None
    assert not pending.expects(ONE)
    assert pending.expired(ANSWER_S) == []


def test_expiry() -> None:
    pending = Pending(os.urandom)
    first, second = pending.add(ONE, Ping(), 0.0), pending.add(ONE, Ping(), 1.0)
    assert pending.next_timer() == ANSWER_S
    assert pending.expired(ANSWER_S - 0.1) == []
    assert pending.expired(ANSWER_S) == [first]
    assert pending.expects(ONE)
    assert pending.expired(ANSWER_S + 1) == [second]
    assert not pending.expects(ONE)
    assert pending.next_timer() is None
    assert len(pending) == 0


def test_ids_are_never_shared_and_fullness_is_told() -> None:
    values = iter([b"aaaa", b"aaaa", b"bbbb"])
    pending = Pending(lambda _: next(values))
    assert [pending.add(ONE, Ping(), 0.0).tid for _ in range(2)] == [b"aaaa", b"bbbb"]
    pending = Pending(os.urandom)
    for _ in range(MAX_PENDING):
        assert not pending.full
        pending.add(ONE, Ping(), 0.0)
    assert pending.full
