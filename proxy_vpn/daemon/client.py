"""The control API's blocking client, for the CLI: http.client on a Unix socket, no event loop, quick to import."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar
from urllib.parse import urlencode

import msgspec

from proxy_vpn.daemon import messages
from proxy_vpn.daemon.findings import DoctorReply
from proxy_vpn.daemon.pcap import CAPTURE_HEADER, SNAP_LIMIT_BYTES
from proxy_vpn.daemon.private import check_private
from proxy_vpn.daemon.status import SCHEMA, DaemonStatus, ExposeStatus, ForwardStatus, PeersReply
from proxy_vpn.doors.stdio import not_running
from proxy_vpn.errors import ControlError, PvpnError, UsageError

CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 30.0
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
MAX_LINE_BYTES: Final = 64 * 1024
CAPTURE_READ_BYTES: Final = 1 << 20

_T = TypeVar("_T", bound=msgspec.Struct)


class Refused(ControlError):
    """The running process said no; `status` is the kind of its ErrorReply."""

    def __init__(self, what: str, hint: str, status: str) -> None:
        super().__init__(what, hint)
        self.status = status


class ControlClient:
    """Requests to the process that listens at `path`; each raises ControlError, or UsageError for what was asked."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def status(self, net: str = "") -> DaemonStatus:
        return self._ask("GET", _of_network("/v1/status", net), DaemonStatus)

    def peers(self, net: str = "") -> PeersReply:
        return self._ask("GET", _of_network("/v1/peers", net), PeersReply)

    def doctor(self) -> DoctorReply:
        return self._ask("GET", "/v1/doctor", DoctorReply)

    def ping(self, peer: str, net: str = "") -> messages.PingReply:
        return self._ask("POST", "/v1/ping", messages.PingReply, messages.PingRequest(peer=peer, net=net))

    def forwards(self) -> tuple[ForwardStatus, ...]:
        return self._ask("GET", "/v1/forwards", messages.ForwardsReply).forwards

    def add_forward(self, spec: str) -> str:
        """Add a forward that stays; the answer is the spec with the port that was picked."""
        return self._ask("POST", "/v1/forwards", messages.ForwardReply, messages.ForwardRequest(spec=spec)).spec

    def hold_forward(self, spec: str) -> HeldForward:
        """Add a forward that lives until the answer is closed, or this process ends in whatever way."""
        request = messages.ForwardRequest(spec=spec, hold=True)
        connection, response = self._open("POST", "/v1/forwards", request)
        try:
            with _speaking():
                line = response.readline(MAX_LINE_BYTES)
            reply = _decode(line, messages.ForwardReply)
        except BaseException:
            connection.close()
            raise
        connection.sock.settimeout(None)
        return HeldForward(reply.spec, connection, response)

    def remove_forward(self, spec: str) -> None:
        self._ask("DELETE", "/v1/forwards", messages.ForwardReply, messages.ForwardRequest(spec=spec))

    def expose(self, spec: str) -> ExposeStatus:
        return self._ask("POST", "/v1/expose", messages.ExposeReply, messages.ExposeRequest(spec=spec)).expose

    def forget(self, peer: str, net: str = "") -> messages.ForgetReply:
        return self._ask("POST", "/v1/forget", messages.ForgetReply, messages.ForgetRequest(peer=peer, net=net))

    def capture(self, peer: str = "", net: str = "", snap_bytes: int = SNAP_LIMIT_BYTES) -> HeldCapture:
        """Begin to watch flows; the answer's stream is a pcap file's."""
        query = urlencode({"peer": peer, "net": net, "snaplen": snap_bytes})
        connection, response = self._open("GET", f"/v1/capture?{query}")
        connection.sock.settimeout(None)
        return HeldCapture(self, connection, response)

    def end_capture(self, number: str) -> int:
        """See nothing more; how many packets that capture has dropped."""
        query = urlencode({"id": number})
        return self._ask("DELETE", f"/v1/capture?{query}", messages.CaptureReply).dropped

    def _ask(self, method: str, path: str, kind: type[_T], body: msgspec.Struct | None = None) -> _T:
        connection, response = self._open(method, path, body)
        try:
            return _decode(_read(response), kind)
        finally:
            connection.close()

    def _open(
        self, method: str, path: str, body: msgspec.Struct | None = None
    ) -> tuple[_UnixConnection, http.client.HTTPResponse]:
        """Send a request and read the answer's head; an ErrorReply is raised."""
        connection = _UnixConnection(self._path)
        headers = {"Content-Type": "application/json"}
        try:
            with _speaking():
                connection.request(method, path, None if body is None else msgspec.json.encode(body), headers)
                response = connection.getresponse()
                if response.status < 400:
                    return connection, response
                raise _error(_read(response), response.status)
        except BaseException:
            connection.close()
            raise


class HeldForward:
    """A forward that lives as long as this: `spec` says where it listens."""

    def __init__(self, spec: str, connection: _UnixConnection, response: http.client.HTTPResponse) -> None:
        self.spec = spec
        self._connection = connection
        self._response = response

    def wait(self) -> None:
        """Block until the process ends the forward; that it did is a ControlError."""
        while True:
            try:
                if not self._response.read(1):
                    break
            except (OSError, http.client.HTTPException):
                break
        raise ControlError("the forward ended: it was removed, or the running pvpn stopped", "see 'pvpn status'")

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> HeldForward:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class HeldCapture:
    """A capture that runs; close it (or end `with`) to stop it at once, or `end` it and read the rest."""

    def __init__(
        self, client: ControlClient, connection: http.client.HTTPConnection, response: http.client.HTTPResponse
    ) -> None:
        self.dropped: int | None = None
        self._client = client
        self._connection = connection
        self._response = response

    def end(self) -> None:
        """Let the stream end after what was seen; `dropped` is then known. Raises ControlError."""
        self.dropped = self._client.end_capture(self._response.headers[CAPTURE_HEADER] or "")

    def read(self) -> bytes:
        """What has come of the stream, waiting for some; empty at its end, whoever ended it."""
        try:
            return self._response.read1(CAPTURE_READ_BYTES)
        except (OSError, http.client.HTTPException):
            return b""

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> HeldCapture:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("pvpn", timeout=ANSWER_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        check_private(self._path.parent)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(CONNECT_TIMEOUT_S)
            self.sock.connect(str(self._path))
            self.sock.settimeout(ANSWER_TIMEOUT_S)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise not_running(str(self._path)) from None
        except OSError as error:
            what = f"can't ask the pvpn at {str(self._path)!r}: {error.strerror or error}"
            raise ControlError(what, "run this as the user who started it") from None


@contextmanager
def _speaking() -> Iterator[None]:
    """Whatever breaks the conversation is a ControlError."""
    try:
        yield
    except TimeoutError:
        raise ControlError("the running pvpn did not answer in time", "see its log") from None
    except (OSError, http.client.HTTPException):
        raise ControlError("the running pvpn hung up before it answered", "it may have stopped: see its log") from None


def _read(response: http.client.HTTPResponse) -> bytes:
    with _speaking():
        data = response.read(MAX_ANSWER_BYTES + 1)
    if len(data) > MAX_ANSWER_BYTES:
        raise ControlError("the running pvpn answered far too much", "see its log")
    return data


def _decode(data: bytes, kind: type[_T]) -> _T:
    try:
        reply = msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError):
        raise ControlError("the running pvpn gave no answer that makes sense", "see its log; restart it") from None
    if getattr(reply, "schema", SCHEMA) != SCHEMA:
        raise ControlError("the running pvpn is of another version", "restart it")
    return reply


def _error(data: bytes, status: int) -> PvpnError:
    try:
        reply = msgspec.json.decode(data, type=messages.ErrorReply)
    except (ValueError, RecursionError):
        return ControlError(f"the running pvpn answered {status}", "restart it")
    if reply.status == "usage":
        return UsageError(reply.error, reply.hint)
    return Refused(reply.error, reply.hint, reply.status)


def _of_network(path: str, net: str) -> str:
    return f"{path}?{urlencode({'net': net})}" if net else path
