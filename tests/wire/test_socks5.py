"""SOCKS handshakes whole, byte by byte, with a tail and with noise; replies; UDP headers."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy_vpn.addresses import Address, Target
from proxy_vpn.errors import Status, WireError
from proxy_vpn.wire.socks5 import SOCKS5_REPLIES, Command, SocksHandshake, SocksRequest, UdpHeader

GREETING = b"\x05\x01\x00"
CONNECT_NAME = b"\x05\x01\x00\x03\x06peer-b\x00\x16"
CONNECT_V4 = b"\x05\x01\x00\x01\xc0\x00\x02\x07\x01\xbb"
CONNECT_V6 = b"\x05\x01\x00\x04" + bytes.fromhex("20010db8000000000000000000000001") + b"\x00\x50"
ASSOCIATE = b"\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00"
SOCKS4 = b"\x04\x01\x00\x50\xc0\x00\x02\x07user\x00"
SOCKS4A = b"\x04\x01\x00\x50\x00\x00\x00\x01\x00peer-b\x00"
PASSWORD = b"\x01\x04user\x04pass"

PEER_B_22 = SocksRequest(5, Command.CONNECT, Target("peer-b", 22))
HANDSHAKES = [
    (GREETING + CONNECT_NAME, b"\x05\x00", PEER_B_22),
    (GREETING + CONNECT_V4, b"\x05\x00", SocksRequest(5, Command.CONNECT, Target("192.0.2.7", 443))),
    (GREETING + CONNECT_V6, b"\x05\x00", SocksRequest(5, Command.CONNECT, Target("2001:db8::1", 80))),
    (GREETING + ASSOCIATE, b"\x05\x00", SocksRequest(5, Command.UDP_ASSOCIATE, Target("0.0.0.0", 0))),
    (b"\x05\x02\x00\x02" + CONNECT_NAME, b"\x05\x00", PEER_B_22),
    # Without credentials of ours any password will do: some clients can't leave it out.
    (b"\x05\x01\x02" + PASSWORD + CONNECT_NAME, b"\x05\x02\x01\x00", PEER_B_22),
    (SOCKS4, b"", SocksRequest(4, Command.CONNECT, Target("192.0.2.7", 80))),
    (SOCKS4A, b"", SocksRequest(4, Command.CONNECT, Target("peer-b", 80))),
]

REFUSALS = [
    (b"\x05\x01\x01", b"\x05\xff", "no method"),
    (b"\x05\x00", b"\x05\xff", "no methods at all"),
    (GREETING + b"\x05\x02\x00\x03\x06peer-b\x00\x16", b"\x05\x00\x05\x07\x00\x01" + bytes(6), "BIND"),
    (GREETING + b"\x05\x01\x00\x05", b"\x05\x00\x05\x08\x00\x01" + bytes(6), "address type"),
    (GREETING + b"\x05\x01\x00\x03\x06peer-b\x00\x00", b"\x05\x00\x05\x01\x00\x01" + bytes(6), "port 0"),
    (GREETING + b"\x05\x01\x00\x03\x00\x00\x16", b"\x05\x00\x05\x01\x00\x01" + bytes(6), "empty name"),
    (GREETING + b"\x05\x01\x00\x03\x03a\nb\x00\x16", b"\x05\x00\x05\x01\x00\x01" + bytes(6), "line in a name"),
    (b"\x04\x02\x00\x50\xc0\x00\x02\x07\x00", b"\x00\x5b" + bytes(6), "SOCKS4 BIND"),
    (b"\x04\x01\x00\x50\xc0\x00\x02\x07" + b"u" * 256, b"\x00\x5b" + bytes(6), "endless user id"),
    (b"\x04\x01\x00\x50\x00\x00\x00\x01\x00" + b"h" * 256, b"\x00\x5b" + bytes(6), "endless name"),
    (b"\x06", b"", "another version"),
    (b"\x05\x01\x02\x02", b"\x05\x02\x01\x01", "password message of another version"),
]


@pytest.mark.parametrize(("wire", "answer", "request_"), HANDSHAKES)
@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize("tail", [b"", b"SSH-2.0-x\r\n"])
def test_handshakes_in_pieces_and_with_a_tail(
    wire: bytes, answer: bytes, request_: SocksRequest, step: int, tail: bytes
) -> None:
    handshake, sent, found = SocksHandshake(), b"", None
    for at in range(0, len(wire), step):
        assert found is None, "the request was complete before its last byte"
        piece = wire[at : at + step]
        found = handshake.receive(piece + tail if at + step >= len(wire) else piece)
        sent += handshake.data_to_send()
    assert (found, sent, handshake.leftover) == (request_, answer, tail)
    assert handshake.data_to_send() == b""


@pytest.mark.parametrize(("wire", "answer", "_what"), REFUSALS)
@pytest.mark.parametrize("step", [1, 1000])
def test_refusals_answer_before_they_close(wire: bytes, answer: bytes, _what: str, step: int) -> None:
    handshake = SocksHandshake()
    with pytest.raises(WireError):
        for at in range(0, len(wire), step):
            handshake.receive(wire[at : at + step])
    assert handshake.data_to_send() == answer
    assert handshake.receive(CONNECT_NAME) is None


def test_password_must_be_right() -> None:
    handshake = SocksHandshake(("user", "pass"))
    found = handshake.receive(b"\x05\x02\x00\x02" + PASSWORD + CONNECT_NAME)
    assert found is not None and handshake.data_to_send() == b"\x05\x02\x01\x00"


@pytest.mark.parametrize("wrong", [b"\x01\x04user\x04past", b"\x01\x04usex\x04pass", b"\x01\x00\x00"])
def test_wrong_password(wrong: bytes) -> None:
    handshake = SocksHandshake(("user", "pass"))
    with pytest.raises(WireError):
        handshake.receive(b"\x05\x01\x02" + wrong + CONNECT_NAME)
    assert handshake.data_to_send() == b"\x05\x02\x01\x01"


@pytest.mark.parametrize("wire", [GREETING, SOCKS4, SOCKS4A])
def test_nobody_comes_in_without_the_password(wire: bytes) -> None:
    with pytest.raises(WireError):
        SocksHandshake(("user", "pass")).receive(wire)


def test_replies() -> None:
    five = SocksRequest(5, Command.CONNECT, Target("peer-b", 22))
    assert five.reply(Status.OK) == b"\x05\x00\x00\x01" + bytes(6)
    assert five.reply(Status.REFUSED) == b"\x05\x05\x00\x01" + bytes(6)
    assert five.reply(Status.OK, Address("127.0.0.1", 258)) == b"\x05\x00\x00\x01\x7f\x00\x00\x01\x01\x02"
    assert five.reply(Status.OK, Address("::1", 1)) == b"\x05\x00\x00\x04" + bytes(15) + b"\x01\x00\x01"
    four = SocksRequest(4, Command.CONNECT, Target("peer-b", 22))
    assert four.reply(Status.OK) == b"\x00\x5a" + bytes(6)
    assert four.reply(Status.TIMEOUT) == b"\x00\x5b" + bytes(6)


def test_every_status_has_a_reply() -> None:
    assert set(SOCKS5_REPLIES) == set(Status)


@given(st.lists(st.binary(max_size=40), max_size=12), st.booleans())
@example([GREETING, CONNECT_NAME[:-1]], False)
def test_noise_gives_requests_or_wire_errors(pieces: list[bytes], locked: bool) -> None:
    handshake = SocksHandshake(("u", "p") if locked else None)
    for piece in pieces:
        try:
            if handshake.receive(piece) is not None:
                return
        except WireError as error:
            assert str(error).isprintable()
            return


@given(st.sampled_from([GREETING + CONNECT_NAME, SOCKS4A, GREETING + CONNECT_V6]), st.data())
def test_mutated_handshakes(wire: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(wire) - 1))
    noisy = wire[:at] + data.draw(st.binary(max_size=4)) + wire[at + 1 :]
    try:
        SocksHandshake().receive(noisy)
    except WireError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("target", [Target("peer-b", 53), Target("192.0.2.7", 1), Target("2001:db8::1", 65535)])
def test_udp_headers_go_round(target: Target) -> None:
    header, payload = UdpHeader.parse(UdpHeader.build(target).raw + b"query")
    assert (header.target, payload) == (target, b"query")
    assert header == UdpHeader.build(target)


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"\x00\x00\x00\x01\x7f\x00\x00",
        b"\x00\x00\x01\x01\x7f\x00\x00\x01\x00\x35fragment",
        b"\x00\x00\x00\x02\x7f\x00\x00\x01\x00\x35",
        b"\x00\x00\x00\x01\x7f\x00\x00\x01\x00\x00port 0",
        b"\x00\x00\x00\x03\x00\x00\x35",
    ],
)
def test_broken_udp_headers(wire: bytes) -> None:
    with pytest.raises(WireError):
        UdpHeader.parse(wire)


@given(st.binary(max_size=300))
def test_udp_noise(wire: bytes) -> None:
    try:
        header, payload = UdpHeader.parse(wire)
        assert header.raw + payload == wire
    except WireError as error:
        assert str(error).isprintable()
