"""AUTH: only two holders of one key, on one TLS session, with the right identities, end up as members."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.keys import Identity, NetworkKey
from proxy_vpn.wire.membership import (
    AUTH_LIMIT_BYTES,
    Credentials,
    Frames,
    Hello,
    Initiator,
    Member,
    Proof,
    Refused,
    Responder,
    Verdict,
    channel_binding,
    frame,
)

KEY = NetworkKey("home", b"n" * 16, b"s" * 32)
ALICE, BOB, CAROL = (Identity(bytes([n]) * 32) for n in (1, 2, 3))
BINDING = channel_binding(b"c" * 32, b"s" * 32)
Tamper = Callable[[int, bytes], bytes]


def initiator(
    key: NetworkKey = KEY, who: Identity = ALICE, binding: bytes = BINDING, wanted: bytes = BOB.id, lane: int = 0
) -> Initiator:
    return Initiator(key, who, b"boot-one", binding, wanted=wanted, lane=lane, features=5)


def responder(
    key: NetworkKey = KEY,
    who: Identity = BOB,
    binding: bytes = BINDING,
    admit: Callable[[bytes, bytes], bool] = lambda identity, boot: True,
) -> Responder:
    return Responder(key, who, b"boot-two", binding, admit=admit, features=6)


def body(framed: bytes) -> bytes:
    assert int.from_bytes(framed[:2], "big") == len(framed) - 2
    return framed[2:]


def exchange(
    one: Initiator, two: Responder, tamper: Tamper = lambda number, message: message
) -> tuple[Member, Member | None]:
    """(whom the initiator met, whom the responder met); raises Refused."""
    first = tamper(1, body(one.start()))
    second, nobody = two.receive(first)
    assert nobody is None
    third, none = one.receive(tamper(2, body(second)))
    assert none is None
    fourth, met = two.receive(tamper(3, body(third)))
    sent, other = one.receive(tamper(4, body(fourth)))
    assert sent == b"" and other is not None
    return other, met


def recorded() -> list[bytes]:
    """The four messages of one good exchange."""
    return recorded_between(initiator(), responder())


def recorded_between(one: Initiator, two: Responder) -> list[bytes]:
    kept: list[bytes] = []

    def keep(number: int, message: bytes) -> bytes:
        kept.append(message)
        return message

    exchange(one, two, keep)
    return kept


def test_two_members_meet() -> None:
    other, met = exchange(initiator(lane=3), responder())
    assert other == Member(BOB.id, b"boot-two", 1, 6, 3)
    assert met == Member(ALICE.id, b"boot-one", 1, 5, 3)


def test_whoever_answers_is_fine_if_nobody_is_wanted() -> None:
    other, _ = exchange(initiator(wanted=b""), responder())
    assert other.identity == BOB.id


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_every_flipped_bit_is_refused(number: int) -> None:
    size = len(recorded()[number - 1])
    for at in range(size * 8):

        def flip(current: int, message: bytes, at: int = at) -> bytes:
            if current != number:
                return message
            mutated = bytearray(message)
            mutated[at // 8] ^= 1 << at % 8
            return bytes(mutated)

        if number == 4 and at // 8 == size - 1 and at % 8 == 0:
            continue  # "accepted" and "refused" differ in one bit that TLS protects, like everything after it
        with pytest.raises(Refused):
            exchange(initiator(), responder(), flip)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_messages_of_another_exchange_are_refused(number: int) -> None:
    other_binding = channel_binding(b"x" * 32, b"y" * 32)
    kept = recorded_between(initiator(binding=other_binding), responder(binding=other_binding))

    if number == 1:  # M1 holds no secret: it may be said again, and proves nothing
        assert exchange(initiator(), responder(), lambda n, m: kept[0] if n == 1 else m)
        return
    with pytest.raises(Refused):
        exchange(initiator(), responder(), lambda n, m: kept[n - 1] if n == number else m)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("instead", [1, 2, 3, 4])
def test_swapped_and_reflected_messages_are_refused(number: int, instead: int) -> None:
    if number == instead:
        return
    kept = recorded()
    with pytest.raises(Refused):
        exchange(initiator(), responder(), lambda n, m: kept[instead - 1] if n == number else m)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_truncated_and_lengthened_messages_are_refused(number: int) -> None:
    size = len(recorded()[number - 1])
    for keep in range(size):
        with pytest.raises(Refused):
            exchange(initiator(), responder(), truncating(number, keep))
    with pytest.raises(Refused):
        exchange(initiator(), responder(), lambda n, m: m + b"\0" if n == number else m)


def truncating(number: int, keep: int) -> Tamper:
    return lambda current, message: message[:keep] if current == number else message


def test_a_responder_cannot_be_asked_twice() -> None:
    one, two = initiator(), responder()
    second, _ = two.receive(body(one.start()))
    third, _ = one.receive(body(second))
    with pytest.raises(Refused):
        two.receive(body(initiator().start()))
    with pytest.raises(Refused):
        one.receive(body(second))
    del third


@pytest.mark.parametrize(
    "changed",
    [
        {"secret": b"t" * 32},
        {"network_id": b"m" * 16},
        {"generation": 2},
    ],
)
def test_another_key_or_generation_is_refused_by_both(changed: dict[str, object]) -> None:
    stranger = replace(KEY, **changed)  # type: ignore[arg-type]
    with pytest.raises(Refused):
        exchange(initiator(stranger), responder())
    with pytest.raises(Refused):
        exchange(initiator(), responder(stranger))


def test_a_responder_without_the_key_is_refused_even_if_it_says_yes() -> None:
    stranger = replace(KEY, secret=b"t" * 32)

    class Gullible(Responder):
        def _third(self, message: bytes, hello: Hello) -> tuple[bytes, Member | None]:
            proof = msgspec.msgpack.decode(message, type=Proof)
            self._absorb(proof.credentials, proof.signature)
            return frame(Verdict(self._mac(b"R"), True)), None

    # The same network id and generation: only the secret is missing.
    liar = Gullible(stranger, BOB, b"boot-two", BINDING, admit=lambda identity, boot: True)
    with pytest.raises(Refused, match="key"):
        exchange(initiator(), liar)


def test_the_initiators_mac_sent_back_is_no_proof() -> None:
    one, two = initiator(), responder()
    second, _ = two.receive(body(one.start()))
    third, _ = one.receive(body(second))
    mac = msgspec.msgpack.decode(body(third), type=Proof).mac
    with pytest.raises(Refused):
        one.receive(body(frame(Verdict(mac, True))))


def test_a_name_change_of_the_network_changes_nothing() -> None:
    other, _ = exchange(initiator(replace(KEY, name="office")), responder())
    assert other.identity == BOB.id


def test_another_tls_session_is_refused() -> None:
    with pytest.raises(Refused):
        exchange(initiator(binding=channel_binding(b"s" * 32, b"c" * 32)), responder())


def test_a_responder_that_is_not_the_wanted_one_does_not_even_introduce_itself() -> None:
    with pytest.raises(Refused, match="another device is wanted"):
        responder(who=CAROL).receive(body(initiator().start()))


def test_an_initiator_refuses_another_device_that_answers() -> None:
    curious = responder(who=CAROL)
    with pytest.raises(Refused):
        exchange(initiator(wanted=BOB.id), curious, lambda n, m: _wanting(m, CAROL.id) if n == 1 else m)
    with pytest.raises(Refused, match="another device"):
        one = initiator(wanted=BOB.id)
        first = body(one.start())
        second, _ = _blind_to_wanted(CAROL).receive(first)
        one.receive(body(second))


def test_meeting_oneself_is_refused_on_both_sides() -> None:
    with pytest.raises(Refused):
        exchange(initiator(who=BOB, wanted=b""), responder())
    two = responder(who=ALICE)
    one = _careless(initiator(wanted=b""))
    second, _ = two.receive(body(one.start()))
    third, _ = one.receive(body(second))
    _, member = two.receive(body(third))
    assert member is None and two.refused


def test_who_is_not_admitted_hears_so_and_nobody_becomes_a_member() -> None:
    asked: list[tuple[bytes, bytes]] = []

    def admit(identity: bytes, boot: bytes) -> bool:
        asked.append((identity, boot))
        return False

    two = responder(admit=admit)
    one = initiator()
    second, _ = two.receive(body(one.start()))
    third, _ = one.receive(body(second))
    fourth, met = two.receive(body(third))
    assert met is None and two.refused and asked == [(ALICE.id, b"boot-one")]
    with pytest.raises(Refused, match="refused this device"):
        one.receive(body(fourth))


@pytest.mark.parametrize(
    "hello", [Hello(0, 0, 0, b""), Hello(1, 0, -1, b""), Hello(1, 0, 64, b""), Hello(1, 0, 0, b"x")]
)
def test_an_unknown_version_or_lane_is_refused(hello: Hello) -> None:
    with pytest.raises(Refused):
        responder().receive(body(frame(hello)))


@pytest.mark.parametrize(
    "credentials",
    [
        Credentials(1, 0, b"boot-two", BOB.id[:-1], b""),
        Credentials(1, 0, b"boot-tw", BOB.id, b""),
        Credentials(1, 0, b"", b"", b""),
    ],
)
def test_credentials_of_wrong_lengths_are_refused(credentials: Credentials) -> None:
    one = initiator()
    one.start()
    with pytest.raises(Refused):
        one.receive(body(frame(Proof(msgspec.msgpack.encode(credentials), bytes(64), b""))))


@given(st.binary(max_size=400))
@settings(max_examples=100)
def test_noise_is_refused_at_most(noise: bytes) -> None:
    one = initiator()
    one.start()
    with suppress(Refused):
        one.receive(noise)
    two = responder()
    with suppress(Refused):
        two.receive(noise)
    with suppress(Refused):
        two.receive(body(initiator().start()))
        two.receive(noise)


# --- framing --------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=30), max_size=6), st.lists(st.integers(1, 20), max_size=20), st.binary(max_size=9))
@settings(max_examples=60)
def test_frames_are_cut_wherever_they_were_torn(sent: list[bytes], cuts: list[int], tail: bytes) -> None:
    stream = b"".join(len(one).to_bytes(2, "big") + one for one in sent) + tail
    frames, at = Frames(), 0
    received: list[bytes] = []
    for cut in [*cuts, len(stream) + 1]:
        message = frames.next_message(stream[at : at + cut])
        while message is not None and len(received) < len(sent):
            received.append(message)
            if len(received) == len(sent):
                break
            message = frames.next_message(b"")
        at += cut
        if len(received) == len(sent):
            break
    if sent:
        assert received == sent
        assert frames.rest() + stream[at:] == tail
        assert frames.rest() == b""


def test_sixteen_kib_in_all_and_no_byte_more() -> None:
    whole = frame(Verdict(bytes(1000), True))
    frames, fed = Frames(), 0
    with pytest.raises(Refused, match="16 KiB"):
        while True:
            assert frames.next_message(whole) is not None
            fed += len(whole)
    assert fed <= AUTH_LIMIT_BYTES < fed + len(whole)


def test_a_huge_length_never_collects_more_than_16_kib() -> None:
    frames = Frames()
    with pytest.raises(Refused):
        for _ in range(100):
            assert frames.next_message(b"\xff" * 1000) is None


def _wanting(message: bytes, wanted: bytes) -> bytes:
    hello = msgspec.msgpack.decode(message, type=Hello)
    return msgspec.msgpack.encode(Hello(hello.version, hello.features, hello.lane, wanted))


def _blind_to_wanted(who: Identity) -> Responder:
    """A responder that does not care whom the initiator wants."""

    class Blind(Responder):
        def _first(self, message: bytes) -> tuple[bytes, None]:
            self._hello = msgspec.msgpack.decode(message, type=Hello)
            self._absorb(message)
            return frame(Proof(self._ours, self._sign(b"R"), b"")), None

    return Blind(KEY, who, b"boot-two", BINDING, admit=lambda identity, boot: True)


def _careless(one: Initiator) -> Initiator:
    """An initiator that does not mind meeting itself."""
    one._identity = CAROL
    original = Identity(ALICE.seed)
    one._sign = lambda role: original.sign(b"pvpn1 " + role + one._transcript + one._ours)  # type: ignore[method-assign]
    return one
