from __future__ import annotations

from proxy_vpn.dht.limits import (
    BURST,
    MAX_IPS,
    QUESTIONS_PER_IP,
    RATE_PER_S,
    REPLIES_PER_IP,
    REPLY_RESERVE,
    WINDOW_S,
    Pacer,
)


def ip(number: int) -> str:
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def test_the_bucket_empties_and_fills() -> None:
    pacer = Pacer(0.0)
    for number in range(int(BURST)):
        assert pacer.may_ask(0.0)
        assert pacer.ask(ip(number), 0.0)
    assert not pacer.may_ask(0.0)
    assert pacer.next_token_at(0.0) == 1 / RATE_PER_S
    assert pacer.may_ask(1 / RATE_PER_S)
    assert pacer.next_token_at(1.0) == 1.0


def test_replies_leave_a_reserve_for_questions() -> None:
    pacer = Pacer(0.0)
    sent = sum(pacer.answer(ip(number), 0.0) for number in range(int(BURST)))
    assert sent == BURST - REPLY_RESERVE + 1
    assert pacer.may_ask(0.0)


def test_each_destination_has_its_own_limit() -> None:
    pacer = Pacer(0.0)
    assert [pacer.ask("10.0.0.1", 0.0) for _ in range(QUESTIONS_PER_IP + 1)] == [True] * QUESTIONS_PER_IP + [False]
    assert pacer.ask("10.0.0.2", 0.0)
    assert pacer.ask("10.0.0.1", WINDOW_S)
    assert sum(pacer.answer("10.0.0.3", 0.0) for _ in range(REPLIES_PER_IP + 5)) == REPLIES_PER_IP


def test_the_memory_of_destinations_is_bounded() -> None:
    pacer = Pacer(0.0)
    for number in range(2 * MAX_IPS):
        pacer.ask(ip(number), float(number))
    assert len(pacer._questions._times) == MAX_IPS
