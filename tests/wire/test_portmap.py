"""PCP, NAT-PMP and SSDP: known bytes, round trips, and what breaks them."""

from __future__ import annotations

import contextlib
from ipaddress import IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.addresses import Address
from proxy_vpn.errors import WireError
from proxy_vpn.wire.portmap import (
    NONCE_BYTES,
    Answer,
    PcpAnnounceAnswer,
    PcpAnnounceRequest,
    PcpMapAnswer,
    PcpMapRequest,
    PmpAddressAnswer,
    PmpAddressRequest,
    PmpMapAnswer,
    PmpMapRequest,
    Refusal,
    Request,
    parse_answer,
    parse_search_answer,
    result_text,
    search_request,
)

EXAMPLES = settings(max_examples=80, deadline=None)
ports = st.integers(0, 65535)
seconds = st.integers(0, 2**32 - 1)
nonces = st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES)
ip4s = st.ip_addresses(v=4).map(str)
ip6s = st.integers(2**100, 2**128 - 1).map(lambda number: str(IPv6Address(number)))
ips = st.one_of(ip4s, ip6s)
addresses = st.builds(Address, ips, ports)
pcp_results = st.sampled_from([0, *range(2, 256)])
pmp_results = st.sampled_from([0, 2, 3, 4, 5, 999])

answers: st.SearchStrategy[Answer] = st.one_of(
    st.builds(PcpMapAnswer, pcp_results, nonces, ports, addresses, seconds, seconds),
    st.builds(PcpAnnounceAnswer, pcp_results, seconds),
    st.builds(PmpAddressAnswer, pmp_results, ip4s, seconds),
    st.builds(PmpMapAnswer, pmp_results, ports, ports, seconds, seconds),
    st.builds(Refusal, st.sampled_from(["pcp", "nat-pmp"]), st.integers(1, 255), seconds),
)
requests: st.SearchStrategy[Request] = st.one_of(
    st.builds(PcpMapRequest, nonces, ips, ports, seconds, addresses),
    st.builds(PcpAnnounceRequest, ips),
    st.builds(PmpAddressRequest),
    st.builds(PmpMapRequest, ports, ports, seconds),
)


def test_requests_are_the_bytes_of_the_rfcs() -> None:
    assert PmpAddressRequest().encode() == b"\0\0"
    assert PmpMapRequest(5000, 6000, 7200).encode() == bytes.fromhex("00010000 1388 1770 00001c20")
    assert PcpAnnounceRequest("192.0.2.1").encode() == bytes.fromhex("02000000 00000000" + "00" * 10 + "ffffc0000201")
    nonce = bytes(range(NONCE_BYTES))
    request = PcpMapRequest(nonce, "192.0.2.1", 5000, 7200, Address("0.0.0.0", 6000))
    header = "0201 0000 00001c20" + "00" * 10 + "ffff c0000201"
    body = nonce.hex() + "11 000000 1388 1770" + "00" * 10 + "ffff 00000000"
    assert request.encode() == bytes.fromhex(header + body)
    assert len(request.encode()) == 60


def test_answers_are_the_bytes_of_the_rfcs() -> None:
    assert parse_answer(bytes.fromhex("0080 0000 00000007 cb007105")) == PmpAddressAnswer(0, "203.0.113.5", 7)
    pmp = bytes.fromhex("0081 0000 00000007 1388 1770 00000e10")
    assert parse_answer(pmp) == PmpMapAnswer(0, 5000, 6000, 3600, 7)
    nonce = bytes(range(NONCE_BYTES))
    header = bytes.fromhex("0281 0000 00000e10 00000007" + "00" * 12)
    body = nonce + bytes.fromhex("11 000000 1388 1770" + "00" * 10 + "ffff cb007105")
    assert parse_answer(header + body) == PcpMapAnswer(0, nonce, 5000, Address("203.0.113.5", 6000), 3600, 7)


def test_a_router_of_the_other_protocol_is_known_as_one() -> None:
    assert parse_answer(bytes.fromhex("0081 0001 00000007")) == Refusal("nat-pmp", 1, 7)
    assert parse_answer(bytes.fromhex("0281 0001 00000000 00000007") + bytes(12)) == Refusal("pcp", 1, 7)


def test_results_have_words() -> None:
    assert result_text(PcpAnnounceAnswer(2, 0)) == result_text(Refusal("nat-pmp", 2, 0)) == "not authorized"
    assert result_text(Refusal("nat-pmp", 65535, 0)) == "error 65535"


@EXAMPLES
@given(answers)
def test_answers_survive(answer: Answer) -> None:
    assert parse_answer(answer.encode()) == answer


@EXAMPLES
@given(requests)
def test_requests_survive(request: Request) -> None:
    assert type(request).decode(request.encode()) == request


@EXAMPLES
@given(answers, st.binary(max_size=12))
def test_options_of_pcp_are_ignored_and_tails_of_others_are_not(answer: Answer, tail: bytes) -> None:
    tail = tail[: len(tail) // 4 * 4]
    try:
        parsed = parse_answer(answer.encode() + tail)
    except WireError:
        assert tail and not isinstance(answer, PcpMapAnswer | PcpAnnounceAnswer)
    else:
        if not isinstance(answer, Refusal | PmpAddressAnswer | PmpMapAnswer):
            assert parsed == answer


@EXAMPLES
@given(answers, st.data())
def test_what_is_cut_short_raises_or_is_a_refusal(answer: Answer, data: st.DataObject) -> None:
    encoded = answer.encode()
    cut = encoded[: data.draw(st.integers(0, len(encoded) - 1))]
    with contextlib.suppress(WireError):
        assert isinstance(parse_answer(cut), Refusal)


@EXAMPLES
@given(st.binary(max_size=80), st.sampled_from([b"", b"\x02\x81", b"\x02\x80", b"\0\x80", b"\0\x81"]))
def test_noise_only_raises_wire_errors(noise: bytes, start: bytes) -> None:
    for parse in (parse_answer, PcpMapRequest.decode, PcpAnnounceRequest.decode, PmpMapRequest.decode):
        with contextlib.suppress(WireError):
            parse(start + noise)


def test_a_search_is_one_of_upnp() -> None:
    text = search_request("upnp:rootdevice").decode()
    assert text.startswith("M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n")
    assert 'MAN: "ssdp:discover"\r\n' in text and "ST: upnp:rootdevice\r\n" in text and text.endswith("\r\n\r\n")


def test_a_search_answer_names_the_device() -> None:
    answer = b"HTTP/1.1 200 OK\r\nST: x\r\nLocation: http://192.168.1.1:5000/root.xml\r\n\r\n"
    assert parse_search_answer(answer) == ("192.168.1.1", "http://192.168.1.1:5000/root.xml")


@pytest.mark.parametrize(
    "location",
    [
        b"",
        b"https://192.168.1.1/",
        b"http://router.lan/",
        b"http://user@192.168.1.1/",
        b"http://[::1]/",
        b"http://192.168.1.1:99999/",
        b"http://192.168.1.1/\x1b[31m",
        b"http://192.168.1.1/" + b"a" * 600,
        b"http://[192.168.1.1/",
    ],
)
def test_locations_that_lead_elsewhere_are_refused(location: bytes) -> None:
    with pytest.raises(WireError):
        parse_search_answer(b"HTTP/1.1 200 OK\r\nLOCATION: " + location + b"\r\n\r\n")


@EXAMPLES
@given(st.binary(max_size=100), st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nLOCATION: http://"]))
def test_noise_after_a_search_only_raises_wire_errors(noise: bytes, start: bytes) -> None:
    with contextlib.suppress(WireError):
        parse_search_answer(start + noise)
