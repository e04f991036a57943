"""The HTTP/1.1 side of the proxy: CONNECT tunnels, and plain requests rewritten for the server behind.

HttpFront reads one request head and says what is wanted. After a CONNECT the bytes are the program's own. After a plain
request (`GET http://peer-b:8000/ HTTP/1.1`) its HttpExchange rewrites both directions, body and all. One request a
connection: both sides are told `Connection: close`, so nothing can be smuggled behind the first.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import h11

from proxy_vpn.addresses import Target
from proxy_vpn.errors import PvpnError, Status, WireError
from proxy_vpn.wire.hosts import parse_host

MAX_HEAD_BYTES = 65536
END_MARK_FIELD = b"pvpn-end-mark"  # in a CONNECT, by a Unix socket: tell me a clean end from a break
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"

# Status -> HTTP code and the error token of Proxy-Status (RFC 9209 section 2.3, whose codes these are).
HTTP_REPLIES = {
    Status.POLICY: (403, "http_request_denied"),
    Status.REFUSED: (502, "connection_refused"),
    Status.TIMEOUT: (504, "connection_timeout"),
    Status.UNREACHABLE: (503, "destination_unavailable"),
    Status.NO_SUCH_NAME: (502, "dns_error"),
    Status.LIMIT: (503, "connection_limit_reached"),
    Status.INTERNAL: (500, "proxy_internal_error"),
}
_REASONS = {
    400: "Bad Request",
    403: "Forbidden",
    407: "Proxy Authentication Required",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
# Hop-by-hop fields (RFC 9110 section 7.6.1). Transfer-Encoding stays: h11 frames each side anew by it.
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
    }
)
_ABSOLUTE = re.compile(rb"(?i:http)://([^/?#]+)([^#]*)")
_AUTHORITY = re.compile(rb"(?:\[([^]]*)\]|([^:\[\]]*))(?::([0-9]{1,5}))?")
_ANSWER_START = b"HTTP/"
_USE_AS_PROXY = "this is a proxy: give it to a program as one, as in curl -x http://HOST:PORT http://peer-b/"

_Headers = list[tuple[bytes, bytes]]
_Message = TypeVar("_Message", h11.InformationalResponse, h11.Response)


class HttpRefused(WireError):
    """A request that is not served, with the HTTP `code` that says so."""

    def __init__(self, code: int, what: str, hint: str = "") -> None:
        super().__init__(what, hint)
        self.code = code


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What is wanted: a tunnel to `target` (`exchange` is None), or a plain request to it through `exchange`.

    `wants_end_mark`: the program at a tunnel understands the mark of a clean end (END_MARK_FIELD).
    """

    target: Target
    exchange: HttpExchange | None
    wants_end_mark: bool = False


class HttpFront:
    """Reads one request head; `credentials` (user, password) make Proxy-Authorization: Basic mandatory."""

    def __init__(self, credentials: tuple[str, str] | None = None) -> None:
        self._credentials = credentials
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._is_head = False

    def receive(self, data: bytes) -> HttpRequest | None:
        """Take `data`; the request once its head is complete. Raises HttpRefused: send `refusal` of it and close."""
        if not data:
            return None
        try:
            self._http.receive_data(data)
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            hint = "only HTTP/1.1 with plain framing is served" if error.error_status_hint == 501 else ""
            raise HttpRefused(error.error_status_hint, f"a broken HTTP request: {error}", hint) from None
        if not isinstance(event, h11.Request):
            return None
        self._is_head = event.method == b"HEAD"
        self._check(event)
        if event.method == b"CONNECT":
            wants_end_mark = any(name == END_MARK_FIELD for name, _value in event.headers)
            return HttpRequest(_authority(event.target, None), None, wants_end_mark)
        target, rewritten = _rewrite_request(event)
        return HttpRequest(target, HttpExchange(self._http, rewritten))

    @property
    def leftover(self) -> bytes:
        """After a CONNECT: bytes that came behind its head, the first of the program's own."""
        return self._http.trailing_data[0]

    def refusal(self, error: PvpnError, status: Status = Status.INTERNAL) -> bytes:
        """The complete answer that says `error` in one line of plain text; the connection is to be closed after it.

        The code comes from an HttpRefused itself, else from `status`.
        """
        if isinstance(error, HttpRefused):
            return _refusal(error.code, str(error), "", self._is_head)
        code, token = HTTP_REPLIES[status]
        return _refusal(code, str(error), token, self._is_head)

    def _check(self, request: h11.Request) -> None:
        size = len(request.method) + len(request.target) + sum(len(n) + len(v) + 4 for n, v in request.headers)
        if size > MAX_HEAD_BYTES:
            raise HttpRefused(431, f"the head of the HTTP request is over {MAX_HEAD_BYTES} bytes")
        names = [name for name, _value in request.headers]
        chunked, sized = b"transfer-encoding" in names, b"content-length" in names
        if (chunked and (sized or request.http_version != b"1.1")) or (
            request.method == b"CONNECT" and (chunked or sized)
        ):
            raise HttpRefused(400, "an HTTP request whose length can be read in two ways")
        if self._credentials is not None:
            self._check_password(request)

    def _check_password(self, request: h11.Request) -> None:
        wanted = ":".join(self._credentials or ()).encode()
        for name, value in request.headers:
            scheme, _space, token = value.partition(b" ")
            if name == b"proxy-authorization" and scheme.lower() == b"basic":
                try:
                    given = base64.b64decode(token.strip(), validate=True)
                except binascii.Error:
                    given = b""
                if hmac.compare_digest(given, wanted):
                    return
        raise HttpRefused(407, "this proxy wants a user and a password", "write http://USER:PASSWORD@HOST:PORT")


class HttpExchange:
    """One plain request and its answer: what each side sends, rewritten for the other. Its methods raise WireError.

    `upstream` bytes go to the server, `downstream` bytes to the client. After `downstream_ended` nothing more of the
    server's is passed on: the client's connection is to be ended.
    """

    def __init__(self, client: h11.Connection, request: h11.Request) -> None:
        self._client = client
        self._server = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._head = self._server.send(request) or b""
        self._is_head = request.method == b"HEAD"
        self._answer_start = b""
        self.answered = False

    @property
    def downstream_ended(self) -> bool:
        """Whether the answer is complete."""
        return self._client.our_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)

    def start(self) -> bytes:
        """The first upstream bytes: the rewritten head, and the body as far as it came with it."""
        head, self._head = self._head, b""
        return head + self.receive_request(b"")

    def receive_request(self, data: bytes) -> bytes:
        """The client's bytes -> upstream bytes. What follows a complete request is dropped."""
        try:
            if self._client.their_state is not h11.SEND_BODY:
                return b""
            if data:
                self._client.receive_data(data)
            return b"".join(self._request_events())
        except h11.ProtocolError as error:
            raise HttpRefused(400, f"a broken HTTP request: {error}") from None

    def end_request(self) -> None:
        """The client ended its direction: raises WireError when its request is not complete."""
        if self._client.their_state is h11.SEND_BODY:
            raise WireError("the HTTP client ended in the middle of its request")

    def receive_answer(self, data: bytes) -> bytes:
        """The server's bytes -> downstream bytes; b"" for data says that it ended its direction."""
        if self.downstream_ended:
            return b""
        # A server that greets first (ssh, smtp) would otherwise be waited for until it hangs up.
        self._answer_start += data[: len(_ANSWER_START) - len(self._answer_start)]
        if not _ANSWER_START.startswith(self._answer_start):
            raise WireError("the server's answer is not HTTP", "is this the right port?")
        try:
            self._server.receive_data(data)
            return b"".join(self._answer_events())
        except h11.ProtocolError as error:
            raise WireError(f"the server's answer is not HTTP: {error}") from None

    def refusal(self, error: PvpnError) -> bytes:
        """A complete answer in place of the server's; only while not `answered`."""
        if isinstance(error, HttpRefused):
            return _refusal(error.code, str(error), "", self._is_head)
        return _refusal(502, str(error), "http_protocol_error", self._is_head)

    def _request_events(self) -> Iterable[bytes]:
        while True:
            event = self._client.next_event()
            if isinstance(event, h11.Data):
                yield self._server.send(h11.Data(data=bytes(event.data))) or b""
            elif isinstance(event, h11.EndOfMessage):
                yield self._server.send(h11.EndOfMessage()) or b""
                return
            else:
                return

    def _answer_events(self) -> Iterable[bytes]:
        while True:
            event = self._server.next_event()
            if isinstance(event, h11.InformationalResponse):
                yield self._client.send(_rewrite_answer(event)) or b""
            elif isinstance(event, h11.Response):
                self.answered = True
                yield self._client.send(_rewrite_answer(event)) or b""
            elif isinstance(event, h11.Data):
                yield self._client.send(h11.Data(data=bytes(event.data))) or b""
            elif isinstance(event, h11.EndOfMessage):
                yield self._client.send(h11.EndOfMessage()) or b""
                return
            else:
                return


def _rewrite_request(request: h11.Request) -> tuple[Target, h11.Request]:
    match = _ABSOLUTE.fullmatch(request.target)
    if match is None:
        if request.target[:1] in (b"/", b"*"):
            raise HttpRefused(400, "an HTTP request to the proxy itself", _USE_AS_PROXY)
        raise HttpRefused(400, f"{request.target[:64]!r} is nothing this proxy can fetch", "use http:// or CONNECT")
    target = _authority(match[1], 80)
    path = match[2]
    if not path.startswith(b"/"):
        path = b"*" if request.method == b"OPTIONS" and not path else b"/" + path
    headers = [(name, value) for name, value in _end_to_end(request) if name.lower() != b"host"]
    headers = [(b"Host", match[1]), *headers, (b"Connection", b"close")]
    return target, h11.Request(method=request.method, target=path, headers=headers)


def _rewrite_answer(answer: _Message) -> _Message:
    headers = _end_to_end(answer)
    if isinstance(answer, h11.Response):
        headers.append((b"Connection", b"close"))
    return type(answer)(status_code=answer.status_code, headers=headers, reason=answer.reason)


def _end_to_end(message: h11.Request | h11.InformationalResponse | h11.Response) -> _Headers:
    """Without hop-by-hop fields, and without those the Connection field names (framing and Host can't be named)."""
    drop = set(_HOP_BY_HOP)
    for name, value in message.headers:
        if name == b"connection":
            drop.update(token.strip().lower() for token in value.split(b","))
    drop -= {b"content-length", b"transfer-encoding", b"host"}
    return [(raw, value) for raw, value in message.headers.raw_items() if raw.lower() not in drop]


def _authority(text: bytes, default_port: int | None) -> Target:
    match = _AUTHORITY.fullmatch(text)
    port = default_port
    if match is not None and match[3] is not None:
        port = int(match[3])
    if match is None or port is None or not 0 < port < 65536 or (match[2] and b":" in match[2]):
        raise HttpRefused(400, f"{text[:64]!r} is not HOST:PORT")
    try:
        return Target(parse_host(match[1] or match[2] or b""), port)
    except WireError as error:
        raise HttpRefused(400, error.what, error.hint) from None


def _refusal(code: int, text: str, token: str, is_head: bool) -> bytes:
    body = f"pvpn: {text}\n".encode("ascii", "backslashreplace")
    lines = [
        f"HTTP/1.1 {code} {_REASONS.get(code, 'Error')}",
        "Content-Type: text/plain; charset=us-ascii",
        f"Content-Length: {len(body)}",
        "X-Content-Type-Options: nosniff",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    if code == 407:
        lines.append('Proxy-Authenticate: Basic realm="pvpn"')
    if token:
        lines.append(f"Proxy-Status: pvpn; error={token}")
    head = "\r\n".join(lines).encode() + b"\r\n\r\n"
    return head if is_head else head + body
