"""The HTTP front and its exchanges: rewriting, framing, refusals, noise."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.addresses import Target
from proxy_vpn.errors import FlowError, Status, WireError
from proxy_vpn.wire.http import HTTP_REPLIES, MAX_HEAD_BYTES, HttpExchange, HttpFront, HttpRefused

GET = b"GET http://peer-b:8000/a?b=1 HTTP/1.1\r\nHost: other\r\nAccept: */*\r\n\r\n"
CONNECT = b"CONNECT peer-b:22 HTTP/1.1\r\nHost: peer-b:22\r\n\r\n"


def plain(wire: bytes) -> HttpExchange:
    request = HttpFront().receive(wire)
    assert request is not None and request.exchange is not None
    return request.exchange


def code_of(wire: bytes, front: HttpFront | None = None) -> int:
    front = front or HttpFront()
    with pytest.raises(HttpRefused) as caught:
        front.receive(wire)
    answer = front.refusal(caught.value)
    assert answer.startswith(b"HTTP/1.1 %d " % caught.value.code) and b"Connection: close\r\n" in answer
    assert answer.endswith(b"\n") and answer.partition(b"\r\n\r\n")[2].count(b"\n") == 1
    return caught.value.code


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("tail", [b"", b"SSH-2.0-x\r\n"])
def test_connect_in_pieces_and_with_a_tail(step: int, tail: bytes) -> None:
    front = HttpFront()
    for at in range(0, len(CONNECT), step):
        piece = CONNECT[at : at + step]
        request = front.receive(piece + tail if at + step >= len(CONNECT) else piece)
    assert request is not None
    assert (request.target, request.exchange, front.leftover) == (Target("peer-b", 22), None, tail)


@pytest.mark.parametrize(
    ("line", "target"),
    [
        (b"CONNECT [2001:db8::1]:443 HTTP/1.1", Target("2001:db8::1", 443)),
        (b"CONNECT 192.0.2.7:443 HTTP/1.0", Target("192.0.2.7", 443)),
        (b"GET http://peer-b HTTP/1.1", Target("peer-b", 80)),
        (b"GET HTTP://Peer-B:81/ HTTP/1.1", Target("Peer-B", 81)),
        (b"GET http://[::1]:8000/x HTTP/1.1", Target("::1", 8000)),
    ],
)
def test_targets(line: bytes, target: Target) -> None:
    request = HttpFront().receive(line + b"\r\nHost: x\r\n\r\n")
    assert request is not None and request.target == target


def test_the_end_mark_is_only_for_those_who_ask() -> None:
    plain = HttpFront().receive(CONNECT)
    asking = HttpFront().receive(CONNECT[:-2] + b"Pvpn-End-Mark: 1\r\n\r\n")
    assert plain is not None and not plain.wants_end_mark
    assert asking is not None and asking.wants_end_mark and asking.target == plain.target


@pytest.mark.parametrize("step", [1, 9, 1000])
def test_plain_request_is_rewritten(step: int) -> None:
    front = HttpFront()
    for at in range(0, len(GET), step):
        request = front.receive(GET[at : at + step])
    assert request is not None and request.exchange is not None
    assert request.target == Target("peer-b", 8000)
    assert request.exchange.start() == (
        b"GET /a?b=1 HTTP/1.1\r\nHost: peer-b:8000\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )
    request.exchange.end_request()


@pytest.mark.parametrize(
    ("url", "line"),
    [
        (b"GET http://p", b"GET / HTTP/1.1\r\n"),
        (b"GET http://p?q", b"GET /?q HTTP/1.1\r\n"),
        (b"OPTIONS http://p", b"OPTIONS * HTTP/1.1\r\n"),
        (b"OPTIONS http://p/", b"OPTIONS / HTTP/1.1\r\n"),
    ],
)
def test_origin_forms(url: bytes, line: bytes) -> None:
    assert plain(url + b" HTTP/1.1\r\nHost: p\r\n\r\n").start().startswith(line)


def test_hop_by_hop_fields_stay_behind() -> None:
    head = plain(
        b"GET http://p/ HTTP/1.1\r\nHost: p\r\nConnection: keep-alive, X-Mine, Host\r\nX-Mine: 1\r\nKeep-Alive: 5\r\n"
        b"Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nTE: trailers\r\nUpgrade: h2c\r\n"
        b"X-Theirs: 2\r\n\r\n"
    ).start()
    assert head == b"GET / HTTP/1.1\r\nHost: p\r\nX-Theirs: 2\r\nConnection: close\r\n\r\n"


def test_body_with_a_length_and_nothing_behind_it() -> None:
    head = b"POST http://p/ HTTP/1.1\r\nHost: p\r\nContent-Length: 10\r\n\r\n"
    exchange = plain(head + b"01234")
    assert exchange.start().endswith(b"\r\n\r\n01234")
    with pytest.raises(WireError):
        exchange.end_request()
    assert exchange.receive_request(b"56789GET /smuggled HTTP/1.1\r\n\r\n") == b"56789"
    assert exchange.receive_request(b"GET /smuggled HTTP/1.1\r\n\r\n") == b""
    exchange.end_request()


def test_chunked_body_is_framed_anew() -> None:
    exchange = plain(b"POST http://p/ HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\n01")
    assert exchange.start().endswith(b"Connection: close\r\n\r\n2\r\n01\r\n")
    assert exchange.receive_request(b"234\r\n0\r\nX-Trailer: 1\r\n\r\nGET /smuggled") == b"3\r\n234\r\n0\r\n\r\n"
    with pytest.raises(HttpRefused):
        plain(b"POST http://p/ HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").start()


@pytest.mark.parametrize("step", [1, 11, 10_000])
def test_answers_are_rewritten(step: int) -> None:
    exchange = plain(GET)
    exchange.start()
    wire = (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        b"HTTP/1.1 200 Fine\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nContent-Length: 5\r\n\r\nhello"
        b"HTTP/1.1 200 smuggled\r\n\r\n"
    )
    out = b"".join(exchange.receive_answer(wire[at : at + step]) for at in range(0, len(wire), step))
    assert out == (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        b"HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
    )
    assert exchange.answered and exchange.downstream_ended


def test_answer_that_ends_with_its_connection() -> None:
    exchange = plain(GET)
    exchange.start()
    assert b"chunked" in exchange.receive_answer(b"HTTP/1.0 200 OK\r\n\r\nabc")
    assert not exchange.downstream_ended
    assert exchange.receive_answer(b"") == b"0\r\n\r\n"
    assert exchange.downstream_ended


def test_answer_to_an_old_client_is_not_chunked() -> None:
    exchange = plain(b"GET http://p/ HTTP/1.0\r\n\r\n")
    exchange.start()
    out = exchange.receive_answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    assert b"chunked" not in out and out.endswith(b"\r\n\r\nabc") and exchange.downstream_ended


def test_answer_to_head_has_no_body() -> None:
    exchange = plain(b"HEAD http://p/ HTTP/1.1\r\nHost: p\r\n\r\n")
    exchange.start()
    assert b"Content-Length: 9" in exchange.receive_answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    assert exchange.downstream_ended


@pytest.mark.parametrize("wire", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 101 Up\r\nUpgrade: x\r\n\r\n", b""])
def test_what_is_no_answer(wire: bytes) -> None:
    exchange = plain(GET)
    exchange.start()
    with pytest.raises(WireError) as caught:
        exchange.receive_answer(wire)
    assert not exchange.answered
    assert exchange.refusal(caught.value).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")


def test_truncated_answer_is_an_error() -> None:
    exchange = plain(GET)
    exchange.start()
    exchange.receive_answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
    with pytest.raises(WireError):
        exchange.receive_answer(b"")


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1:1080\r\n\r\n", 400),
        (b"GET https://p/ HTTP/1.1\r\nHost: p\r\n\r\n", 400),
        (b"GET http://user@p/ HTTP/1.1\r\nHost: p\r\n\r\n", 400),
        (b"GET http://p:0/ HTTP/1.1\r\nHost: p\r\n\r\n", 400),
        (b"GET http://p:99999/ HTTP/1.1\r\nHost: p\r\n\r\n", 400),
        (b"GET http:///x HTTP/1.1\r\nHost: p\r\n\r\n", 400),
        (b"CONNECT p HTTP/1.1\r\nHost: p\r\n\r\n", 400),
        (b"CONNECT http://p:1/ HTTP/1.1\r\nHost: p\r\n\r\n", 400),
        (b"CONNECT p:22 HTTP/1.1\r\nHost: p\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"CONNECT p:22 HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST http://p/ HTTP/1.1\r\nHost: p\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST http://p/ HTTP/1.1\r\nHost: p\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", 400),
        (b"POST http://p/ HTTP/1.1\r\nHost: p\r\nContent-Length: +3\r\n\r\n", 400),
        (b"POST http://p/ HTTP/1.0\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST http://p/ HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"GET http://p/ HTTP/1.1\r\nHost : p\r\n\r\n", 400),
        (b"GET http://p/ HTTP/1.1\r\nHost: p\r\nHost: q\r\n\r\n", 400),
        (b"GET http://p/ HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"GET http://p/ HTTP/1.1\r\nHost: p\r\nX: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n", 431),
        (b"GET http://p/" + b"x" * (MAX_HEAD_BYTES + 1), 431),
    ],
)
def test_refused(wire: bytes, code: int) -> None:
    assert code_of(wire) == code


def test_endless_head_in_pieces_is_bounded() -> None:
    front = HttpFront()
    with pytest.raises(HttpRefused) as caught:
        for _ in range(200):
            front.receive(b"X" * 512 if _ else b"GET http://p/ HTTP/1.1\r\nX: ")
    assert caught.value.code == 431


def test_password() -> None:
    wire = b"CONNECT peer-b:22 HTTP/1.1\r\nHost: p\r\nProxy-Authorization: %s\r\n\r\n"
    assert HttpFront(("user", "pass")).receive(wire % b"basic dXNlcjpwYXNz") is not None
    for wrong in (b"Basic dXNlcjpwYXN0", b"Basic !!", b"Bearer dXNlcjpwYXNz", b"Basic"):
        assert code_of(wire % wrong, HttpFront(("user", "pass"))) == 407
    front = HttpFront(("user", "pass"))
    with pytest.raises(HttpRefused) as caught:
        front.receive(CONNECT)
    assert b'Proxy-Authenticate: Basic realm="pvpn"\r\n' in front.refusal(caught.value)


def test_every_status_has_a_code_and_says_why() -> None:
    assert set(HTTP_REPLIES) == set(Status) - {Status.OK}
    front = HttpFront()
    front.receive(CONNECT)
    error = FlowError(Status.REFUSED, "nothing listens on port 22\r\nof peer-ü", "start it there")
    answer = front.refusal(error, error.status)
    assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert b"Proxy-Status: pvpn; error=connection_refused\r\n" in answer
    assert answer.endswith(b"\r\n\r\npvpn: nothing listens on port 22 of peer-\\xfc - start it there\n")


def test_refusal_of_head_has_no_body() -> None:
    front = HttpFront()
    front.receive(b"HEAD http://p/ HTTP/1.1\r\nHost: p\r\n\r\n")
    assert front.refusal(FlowError(Status.TIMEOUT, "too slow"), Status.TIMEOUT).endswith(b"\r\n\r\n")


@settings(max_examples=80)
@given(
    st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([GET, CONNECT, b"\r\n", b"Host: p\r\n"])), max_size=8)
)
def test_noise_gives_requests_or_refusals(pieces: list[bytes]) -> None:
    front = HttpFront()
    try:
        for piece in pieces:
            request = front.receive(piece)
            if request is not None:
                if request.exchange is not None:
                    request.exchange.start()
                return
    except HttpRefused as refused:
        assert front.refusal(refused).count(b"HTTP/1.1 ") >= 1 and str(refused).isprintable()


@settings(max_examples=80)
@given(st.integers(0, 120), st.binary(max_size=5), st.integers(1, 40))
def test_noise_in_an_exchange(at: int, noise: bytes, step: int) -> None:
    request = b"POST http://p/ HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    exchange = plain(request[: request.index(b"5\r\n")])
    body = request[request.index(b"5\r\n") :]
    body, answer = (wire[:at] + noise + wire[at:] for wire in (body, answer))
    try:
        exchange.start()
        for start in range(0, len(body), step):
            exchange.receive_request(body[start : start + step])
        exchange.end_request()
        for start in range(0, len(answer), step):
            exchange.receive_answer(answer[start : start + step])
        exchange.receive_answer(b"")
    except WireError as error:
        assert exchange.refusal(error)
