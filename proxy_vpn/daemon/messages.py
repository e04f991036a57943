"""The control API's messages: bodies of requests and answers, shared by its server and its client.

    GET    /v1/status[?net=N]     -> status.DaemonStatus
    GET    /v1/peers[?net=N]      -> status.PeersReply
    GET    /v1/doctor             -> findings.DoctorReply
    POST   /v1/ping               PingRequest    -> PingReply
    GET    /v1/forwards           -> ForwardsReply
    POST   /v1/forwards           ForwardRequest -> ForwardReply; with `hold` one line, then open until either side ends
    DELETE /v1/forwards           ForwardRequest -> ForwardReply
    POST   /v1/expose             ExposeRequest  -> ExposeReply
    POST   /v1/forget             ForgetRequest  -> ForgetReply
    GET    /v1/capture[?peer=P&net=N&snaplen=B] -> pcap until either side ends; the header Pvpn-Capture is its id
    DELETE /v1/capture?id=I       -> CaptureReply; the stream delivers what was seen, and ends
    GET    /readyz                -> 200 Ready, or 503 with what is missing

Anything else, and every failure, is answered by an ErrorReply.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from proxy_vpn.daemon.status import SCHEMA, ExposeStatus, ForwardStatus

MAX_BODY_BYTES: Final = 64 * 1024
MAX_TEXT_CHARS: Final = 1024

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TEXT_CHARS)]
Net = Annotated[str, msgspec.Meta(max_length=64)]
ErrorStatus = Literal[
    "usage", "state", "control", "key", "policy", "refused", "timeout", "unreachable", "no_such_name", "limit",
    "internal", "lost", "not_found", "method", "too_large",
]  # fmt: skip


class PingRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    peer: Text
    net: Net = ""


class PingReply(msgspec.Struct, frozen=True, kw_only=True):
    """One round trip to a peer and the path it took."""

    schema: int = SCHEMA
    peer: str
    network: str
    rtt_ms: float
    path: str


class ForwardRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`spec` as on the command line; `hold`: the forward lives as long as the answer's connection."""

    spec: Text
    hold: bool = False


class ForwardReply(msgspec.Struct, frozen=True, kw_only=True):
    """The forward as it listens: a port 0 is replaced by the one picked."""

    schema: int = SCHEMA
    spec: str


class ForwardsReply(msgspec.Struct, frozen=True, kw_only=True):
    schema: int = SCHEMA
    forwards: tuple[ForwardStatus, ...] = ()


class ExposeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    spec: Text


class ExposeReply(msgspec.Struct, frozen=True, kw_only=True):
    schema: int = SCHEMA
    expose: ExposeStatus


class ForgetRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    peer: Text
    net: Net = ""


class ForgetReply(msgspec.Struct, frozen=True, kw_only=True):
    """What was forgotten: the name, and the id (hexadecimal) that it was pinned to."""

    schema: int = SCHEMA
    peer: str
    network: str
    id: str


class CaptureReply(msgspec.Struct, frozen=True, kw_only=True):
    """How many packets a capture could not hold because its reader was slow."""

    schema: int = SCHEMA
    dropped: int


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    schema: int = SCHEMA
    ready: bool
    reason: str = ""


class ErrorReply(msgspec.Struct, frozen=True, kw_only=True):
    """A failure: what happened, what to do about it, and whose kind it is."""

    error: str
    hint: str = ""
    status: str = "internal"
