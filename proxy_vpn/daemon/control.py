"""Control: the process answers requests over HTTP on a Unix socket (0600, in a 0700 directory).

    curl --unix-socket STATE/control.sock http://pvpn/v1/status

What it serves is listed in `messages`. It asks the Daemon, turns PvpnErrors into JSON, and holds a forward for as
long as the connection that asked for it: a killed CLI leaves nothing behind. aiohttp, which takes 15 MB and a fifth of
a second, is loaded for the first who asks: many a daemon is never asked.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import msgspec

from proxy_vpn.addresses import ForwardSpec
from proxy_vpn.daemon import sockets
from proxy_vpn.daemon.capture import Captures
from proxy_vpn.daemon.findings import DoctorReply
from proxy_vpn.daemon.messages import (
    MAX_BODY_BYTES,
    CaptureReply,
    ErrorReply,
    ErrorStatus,
    ExposeReply,
    ExposeRequest,
    ForgetReply,
    ForgetRequest,
    ForwardReply,
    ForwardRequest,
    ForwardsReply,
    PingReply,
    PingRequest,
    Ready,
)
from proxy_vpn.daemon.pcap import CAPTURE_HEADER, PCAP_TYPE, SNAP_LIMIT_BYTES
from proxy_vpn.daemon.status import DaemonStatus, ExposeStatus, ForwardStatus, PeersReply
from proxy_vpn.errors import ControlError, FlowError, FlowLost, KeyFileError, PvpnError, StateError, Status, UsageError

if TYPE_CHECKING:
    from aiohttp import web

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)

MAX_WAITING_CLIENTS: Final = 128
SHUTDOWN_S: Final = 2.0
MAX_DIGITS: Final = 16

_T = TypeVar("_T")

_FLOW_ERRORS: Final[dict[Status, tuple[ErrorStatus, int]]] = {
    Status.POLICY: ("policy", 403),
    Status.REFUSED: ("refused", 502),
    Status.TIMEOUT: ("timeout", 504),
    Status.UNREACHABLE: ("unreachable", 503),
    Status.NO_SUCH_NAME: ("no_such_name", 404),
    Status.LIMIT: ("limit", 429),
}
_ERRORS: Final[dict[type[PvpnError], tuple[ErrorStatus, int]]] = {
    UsageError: ("usage", 400),
    KeyFileError: ("key", 409),
    StateError: ("state", 409),
    ControlError: ("control", 409),
    FlowLost: ("lost", 502),
}


class Daemon(Protocol):
    """The running process as the control API sees it. Every method may raise PvpnError and may be cancelled."""

    def status(self) -> DaemonStatus:
        """Everything, at once; called often, so cheap."""

    def doctor(self) -> DoctorReply:
        """What stands between this host and its peers."""

    def unready(self) -> str:
        """Why the process can't serve its user yet, in a few words; empty once it can."""

    async def ping(self, name: str, net: str) -> PingReply:
        """One round trip to a peer; `net` empty: whichever network knows the name."""

    async def add_forward(self, spec: ForwardSpec, *, held: bool) -> ForwardSpec:
        """Listen; the answer says where. Cancelled: nothing listens. `held` is only shown."""

    def remove_forward(self, spec: ForwardSpec) -> None:
        """Stop listening there at once; raises UsageError when no forward is like this."""

    def forwards(self) -> tuple[ForwardStatus, ...]: ...

    async def expose(self, spec: str) -> ExposeStatus:
        """Add a rule as `--expose` takes it (config.Expose.extended); open flows stay."""

    async def forget(self, name: str, net: str) -> ForgetReply:
        """Drop the pin of a name, so that another device may bear it."""


class ControlServer:
    """The control API of one daemon, from `start` to `close`."""

    def __init__(self, daemon: Daemon, path: Path, captures: Captures | None = None) -> None:
        self.path = path
        self._daemon = daemon
        self._captures = captures
        self._listener: socket.socket | None = None
        self._serving: asyncio.Task[None] | None = None
        self._held: dict[ForwardSpec, asyncio.Event] = {}

    async def start(self) -> None:
        """Listen; only for the holder of the state's lock. Raises StateError."""
        self._listener = _listen(self.path)
        asyncio.get_running_loop().add_reader(self._listener, self._first_comes, self._listener)

    def _first_comes(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        self._serving = loop.create_task(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        await asyncio.to_thread(importlib.import_module, "aiohttp.web")
        from aiohttp import web

        # handler_cancellation: who hangs up no longer waits, and a held forward ends with its connection.
        app = self._application()
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S)
        try:
            await runner.setup()
            await web.SockSite(runner, listener, backlog=MAX_WAITING_CLIENTS).start()
            await asyncio.Event().wait()  # until it is closed
        except Exception:  # the edge: nobody can be answered, and the process lives on
            log.exception("control requests can't be answered")
        finally:
            await runner.cleanup()

    def _application(self) -> web.Application:
        from aiohttp import web

        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[web.middleware(_answer_errors)])
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/v1/peers", self._peers)
        app.router.add_get("/v1/doctor", self._doctor)
        app.router.add_post("/v1/ping", self._ping)
        app.router.add_get("/v1/forwards", self._forwards)
        app.router.add_post("/v1/forwards", self._add_forward)
        app.router.add_delete("/v1/forwards", self._remove_forward)
        app.router.add_post("/v1/expose", self._expose)
        app.router.add_post("/v1/forget", self._forget)
        if self._captures is not None:
            app.router.add_get("/v1/capture", self._capture, allow_head=False)
            app.router.add_delete("/v1/capture", self._end_capture)
        app.router.add_get("/readyz", self._readyz)
        return app

    async def close(self) -> None:
        """End every request, held forwards too, and remove the socket; idempotent."""
        for ended in self._held.values():
            ended.set()
        if self._captures is not None:
            self._captures.close()
        listener, self._listener = self._listener, None
        if listener is None:
            return
        if self._serving is None:
            asyncio.get_running_loop().remove_reader(listener)
        else:
            self._serving.cancel()
            await asyncio.wait((self._serving,))
        listener.close()
        with suppress(OSError):
            self.path.unlink()

    async def _status(self, request: web.Request) -> web.StreamResponse:
        return _json(_of_network(self._daemon.status(), request.query.get("net", "")))

    async def _peers(self, request: web.Request) -> web.StreamResponse:
        status = _of_network(self._daemon.status(), request.query.get("net", ""))
        return _json(PeersReply(peers=status.peers, unanswered=status.unanswered))

    async def _doctor(self, request: web.Request) -> web.StreamResponse:
        return _json(self._daemon.doctor())

    async def _ping(self, request: web.Request) -> web.StreamResponse:
        wanted = await _body(request, PingRequest)
        return _json(await self._daemon.ping(wanted.peer, wanted.net))

    async def _forwards(self, request: web.Request) -> web.StreamResponse:
        return _json(ForwardsReply(forwards=self._daemon.forwards()))

    async def _add_forward(self, request: web.Request) -> web.StreamResponse:
        wanted = await _body(request, ForwardRequest)
        spec = await self._daemon.add_forward(ForwardSpec.parse(wanted.spec), held=wanted.hold)
        if not wanted.hold:
            return _json(ForwardReply(spec=str(spec)), status=201)
        ended = self._held[spec] = asyncio.Event()
        try:
            return await _hold(request, ForwardReply(spec=str(spec)), ended)
        finally:
            if self._held.pop(spec, None) is not None:
                self._daemon.remove_forward(spec)

    async def _remove_forward(self, request: web.Request) -> web.StreamResponse:
        wanted = await _body(request, ForwardRequest)
        spec = ForwardSpec.parse(wanted.spec)
        self._daemon.remove_forward(spec)
        if ended := self._held.pop(spec, None):
            ended.set()
        return _json(ForwardReply(spec=str(spec)))

    async def _expose(self, request: web.Request) -> web.StreamResponse:
        wanted = await _body(request, ExposeRequest)
        return _json(ExposeReply(expose=await self._daemon.expose(wanted.spec)))

    async def _forget(self, request: web.Request) -> web.StreamResponse:
        wanted = await _body(request, ForgetRequest)
        return _json(await self._daemon.forget(wanted.peer, wanted.net))

    async def _capture(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        assert self._captures is not None
        query = request.query
        snap_bytes = _number(query.get("snaplen", str(SNAP_LIMIT_BYTES)), "snap length")
        capture, chunks = await self._captures.start(query.get("peer", ""), query.get("net", ""), snap_bytes)
        try:
            response = web.StreamResponse(headers={"Content-Type": PCAP_TYPE, CAPTURE_HEADER: str(capture.number)})
            async with aclosing(chunks):
                with suppress(ConnectionResetError):  # the reader's ordinary end
                    await response.prepare(request)
                    async for chunk in chunks:
                        await response.write(chunk)
            return response
        finally:
            self._captures.stop(capture)

    async def _end_capture(self, request: web.Request) -> web.StreamResponse:
        assert self._captures is not None
        capture = self._captures.end(_number(request.query.get("id", ""), "capture"))
        return _json(CaptureReply(dropped=capture.dropped))

    async def _readyz(self, request: web.Request) -> web.StreamResponse:
        reason = self._daemon.unready()
        return _json(Ready(ready=not reason, reason=reason), status=503 if reason else 200)


async def _hold(request: web.Request, reply: ForwardReply, ended: asyncio.Event) -> web.StreamResponse:
    """Answer with one line and keep the answer open until `ended`, or until the other side hangs up."""
    from aiohttp import web

    response = web.StreamResponse(status=201, headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(msgspec.json.encode(reply) + b"\n")
    await ended.wait()
    return response


async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure as an ErrorReply: one line, a hint and a kind."""
    from aiohttp import web

    try:
        return await handler(request)
    except PvpnError as error:
        kind, status = classify(error)
        return _json(ErrorReply(error=error.what, hint=error.hint, status=kind), status=status)
    except web.HTTPRequestEntityTooLarge:
        return _json(ErrorReply(error="the request is too large", status="too_large"), status=413)
    except web.HTTPException as error:
        kind = "not_found" if error.status == 404 else "method" if error.status == 405 else "usage"
        what = f"there is no {request.method!a} {request.path!a} here: {error.reason}"
        return _json(ErrorReply(error=what, hint="see /v1/status", status=kind), status=error.status)
    except Exception as error:  # the edge: whatever broke, the caller gets an answer and the process lives on
        log.exception("a control request failed")
        what = f"the running process failed: {type(error).__name__}"
        return _json(ErrorReply(error=what, hint="its log says more"), status=500)


def classify(error: PvpnError) -> tuple[ErrorStatus, int]:
    """The error's kind in an ErrorReply and its HTTP status."""
    if isinstance(error, FlowError):
        return _FLOW_ERRORS.get(error.status, ("internal", 500))
    return next((found for kind, found in _ERRORS.items() if isinstance(error, kind)), ("internal", 500))


def _of_network(status: DaemonStatus, net: str) -> DaemonStatus:
    """The status of one network alone; of all for an empty name. Raises UsageError."""
    if not net:
        return status
    if net not in {network.name for network in status.networks}:
        known = ", ".join(network.name for network in status.networks)
        raise UsageError(f"this process is in no network {net!a}", f"it is in: {known}")
    return msgspec.structs.replace(
        status,
        networks=tuple(network for network in status.networks if network.name == net),
        peers=tuple(peer for peer in status.peers if peer.network == net),
    )


async def _body(request: web.Request, kind: type[_T]) -> _T:
    data = await request.read()
    try:
        return msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError) as error:
        fields = ", ".join(field.name for field in msgspec.structs.fields(kind))  # type: ignore[arg-type]
        raise UsageError(f"the request makes no sense: {error}", f"send JSON with: {fields}") from None


def _number(text: str, what: str) -> int:
    """A number of a query; raises UsageError."""
    if not (text.isascii() and text.isdigit() and len(text) < MAX_DIGITS):
        raise UsageError(f"{text!a} is no {what}", "give a number")
    return int(text)


def _json(reply: msgspec.Struct, status: int = 200) -> web.Response:
    from aiohttp import web

    return web.Response(body=msgspec.json.encode(reply) + b"\n", status=status, content_type="application/json")


def _listen(path: Path) -> socket.socket:
    """A Unix socket that only this user can connect to."""
    sockets.prepare(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(MAX_WAITING_CLIENTS)
        listener.setblocking(False)
        return listener
    except OSError as error:
        listener.close()
        raise StateError(f"can't listen on {str(path)!r}: {error.strerror}", "give another --state") from None
