"""What crosses a connection after AUTH: control messages, the heads of flows, and DATAGRAM frames.

Control stream (stream 0): a 4-byte length and one msgpack message each; unknown tags are skipped, so a newer
peer may say more. A flow's stream begins with Open (2-byte length, msgpack) from its opener and one Status
byte back. A DATAGRAM frame is kind 1 B | stream id 8 B | payload, or for a fragment kind | stream id |
message 2 B | index 1 B | count 1 B | part. What a relay carries has kinds of its own and a tunnel's number in the
stream id's place.
"""

from __future__ import annotations

import struct
from typing import Annotated, TypeVar

import msgspec

from proxy_vpn.errors import WireError

MESSAGE_LIMIT_BYTES = 64 * 1024
OPEN_LIMIT_BYTES = 512
FRAGMENTS_LIMIT = 64
HOST_PEER, HOST_BEYOND = 0, 1
HOST_LIMIT_CHARS = 253
_DATAGRAM = struct.Struct("!BQ")
_FRAGMENT = struct.Struct("!BQHBB")
_KIND_WHOLE = 1
_KIND_FRAGMENT = 2
_KIND_RELAYED_WHOLE = 3
_KIND_RELAYED_FRAGMENT = 4
_WHOLE_KINDS = (_KIND_WHOLE, _KIND_RELAYED_WHOLE)
_FRAGMENT_KINDS = (_KIND_FRAGMENT, _KIND_RELAYED_FRAGMENT)
TUNNELS_LIMIT = 1 << 32
Tunnel = Annotated[int, msgspec.Meta(ge=0, lt=TUNNELS_LIMIT)]
_Message = TypeVar("_Message")


class Message(msgspec.Struct, frozen=True, tag_field="t"):
    """A control message; each subclass has its own tag."""


class Welcome(Message, frozen=True, tag="welcome"):
    """The first message each way: our name, software version, and the keys of our path probes."""

    name: str
    software: str
    engine: str
    path_key: bytes
    path_index: bytes


class Credit(Message, frozen=True, tag="credit"):
    """Each flow may be sent up to an absolute offset of its stream, head included: (stream id, limit) pairs."""

    limits: list[tuple[int, int]]


class Ended(Message, frozen=True, tag="ended"):
    """A stream's direction ends at an absolute offset; told beside its FIN, when that came after the last byte."""

    stream: int
    offset: int


class Repaired(Message, frozen=True, tag="repaired"):
    """How many datagrams of trains got lost on their way here so far, and did not have to be sent again."""

    count: int


class Peers(Message, frozen=True, tag="peers"):
    """Peer exchange: records signed by the devices they describe."""

    records: list[bytes]


class Bye(Message, frozen=True, tag="bye"):
    """No new flows from here; the sender closes once its flows have ended."""

    reason: str


class Reach(Message, frozen=True, tag="reach"):
    """How the sender is connected: the kind of its NAT (`none`, `cone`, `symmetric`, `unknown`) and its families."""

    nat: str
    ipv4: bool
    ipv6: bool


class Routes(Message, frozen=True, tag="routes"):
    """What the sender leads others to: networks such as `192.168.7.0/24`, and the internet if it is an `exit`."""

    networks: Annotated[list[Annotated[str, msgspec.Meta(max_length=43)]], msgspec.Meta(max_length=64)]
    exit: bool


class RelayOpen(Message, frozen=True, tag="relay-open"):
    """To a member that we both reach: carry sealed and QUIC datagrams between us and `target`, as this tunnel."""

    tunnel: Tunnel
    target: bytes


class RelayAccepted(Message, frozen=True, tag="relay-accepted"):
    """The relay carries this tunnel now."""

    tunnel: Tunnel


class RelayRefused(Message, frozen=True, tag="relay-refused"):
    """The relay does not carry it, and why, in words."""

    tunnel: Tunnel
    reason: str


class RelayIncoming(Message, frozen=True, tag="relay-incoming"):
    """From a relay: `sender` reaches us through it, as this tunnel."""

    tunnel: Tunnel
    sender: bytes


class RelayClose(Message, frozen=True, tag="relay-close"):
    """This tunnel has ended; from either side."""

    tunnel: Tunnel


class Record(msgspec.Struct, frozen=True, array_like=True):
    """What a device says of itself through others: where it can be reached until `expires` (Unix seconds)."""

    identity: bytes
    name: str
    addresses: list[bytes]
    issued: float
    expires: float


class SignedRecord(msgspec.Struct, frozen=True, array_like=True):
    """An encoded Record and its identity's signature over "pvpn1 record", the network id and the record."""

    record: bytes
    signature: bytes


class Open(msgspec.Struct, frozen=True, array_like=True):
    """The head of a flow: kind "tcp" or "udp", what the host means, the port, and for a host beyond the peer which."""

    kind: str
    host_kind: int
    port: int
    host: str = ""


RelayMessage = RelayOpen | RelayAccepted | RelayRefused | RelayIncoming | RelayClose
_ControlMessage = Welcome | Credit | Ended | Repaired | Peers | Bye | Reach | Routes | RelayMessage
_control_decoder = msgspec.msgpack.Decoder(_ControlMessage)
_encoder = msgspec.msgpack.Encoder()


class _Tagged(msgspec.Struct, frozen=True):
    t: str


_tag_decoder = msgspec.msgpack.Decoder(_Tagged)
_KNOWN_TAGS = frozenset(
    {
        "welcome", "credit", "ended", "repaired", "peers", "bye", "reach", "routes",
        "relay-open", "relay-accepted", "relay-refused", "relay-incoming", "relay-close",
    }
)  # fmt: skip


def encode_control(message: Message) -> bytes:
    """A control message with its length."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body


class ControlReader:
    """Cuts control messages out of stream 0; at most 64 KiB each."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[_ControlMessage]:
        """The messages completed by `data`, unknown ones left out; raises WireError."""
        self._buffer += data
        messages = []
        start, end = 0, len(self._buffer)
        while end - start >= 4:
            size = int.from_bytes(self._buffer[start : start + 4], "big")
            if size > MESSAGE_LIMIT_BYTES:
                raise WireError("a control message is longer than 64 KiB")
            if end - start < 4 + size:
                break
            message = _decode_control(bytes(self._buffer[start + 4 : start + 4 + size]))
            if message is not None:
                messages.append(message)
            start += 4 + size
        del self._buffer[:start]
        return messages


def _decode_control(body: bytes) -> _ControlMessage | None:
    try:
        message: _ControlMessage = _control_decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        try:
            tag = _tag_decoder.decode(body).t
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise WireError("a control message is malformed") from error
        if tag in _KNOWN_TAGS:
            raise WireError("a control message is malformed") from error
        return None
    return message


def encode_open(head: Open) -> bytes:
    """The first bytes of a flow's stream."""
    body = _encoder.encode(head)
    return len(body).to_bytes(2, "big") + body


def split_open(data: bytes | bytearray) -> tuple[Open, int] | None:
    """The head at the beginning of a flow and its size in bytes; None if incomplete; raises WireError."""
    if len(data) < 2:
        return None
    size = int.from_bytes(data[:2], "big")
    if size > OPEN_LIMIT_BYTES:
        raise WireError("the head of a flow is longer than 512 bytes")
    if len(data) < 2 + size:
        return None
    head = decode(bytes(data[2 : 2 + size]), Open)
    # A host beyond is a name or an address: ASCII, and no longer than DNS allows.
    host_fits = head.host.isascii() and head.host.isprintable() and len(head.host) <= HOST_LIMIT_CHARS
    known = head.host_kind == HOST_PEER or (head.host_kind == HOST_BEYOND and bool(head.host) and host_fits)
    if head.kind not in ("tcp", "udp") or not known or not 0 < head.port < 65536:
        raise WireError("the head of a flow asks for something unknown")
    return head, 2 + size


def encode(message: msgspec.Struct) -> bytes:
    """One message as msgpack."""
    return _encoder.encode(message)


def decode(data: bytes, kind: type[_Message]) -> _Message:
    """One msgpack message of a type; raises WireError."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise WireError(f"a {kind.__name__} is malformed") from None


def datagram_frames(
    stream_id: int, number: int, payload: bytes, limit_bytes: int, *, relayed: bool = False
) -> list[bytes]:
    """The DATAGRAM frames that carry a UDP payload, split where it exceeds the limit; `number` counts messages.

    `relayed`: the payload is a datagram of a tunnel, whose number is `stream_id`. Raises WireError for a payload that
    does not fit 64 fragments.
    """
    if _DATAGRAM.size + len(payload) <= limit_bytes:
        return [_DATAGRAM.pack(_WHOLE_KINDS[relayed], stream_id) + payload]
    room = limit_bytes - _FRAGMENT.size
    count = -(-len(payload) // room) if room > 0 else FRAGMENTS_LIMIT + 1
    if count > FRAGMENTS_LIMIT:
        raise WireError("a UDP payload is too large for this path")
    return [
        _FRAGMENT.pack(_FRAGMENT_KINDS[relayed], stream_id, number & 0xFFFF, index, count)
        + payload[index * room : (index + 1) * room]
        for index in range(count)
    ]


def is_relayed(frame: bytes) -> bool:
    """Whether a DATAGRAM frame belongs to a tunnel."""
    return frame[:1] in (b"\x03", b"\x04")


def split_datagram(frame: bytes) -> tuple[int, int, int, int, bytes]:
    """(stream id, message number, index, count, part) of a DATAGRAM frame; a whole payload is 1 of 1."""
    if len(frame) >= _DATAGRAM.size and frame[0] in _WHOLE_KINDS:
        return int.from_bytes(frame[1:9], "big"), 0, 0, 1, frame[_DATAGRAM.size :]
    if len(frame) >= _FRAGMENT.size and frame[0] in _FRAGMENT_KINDS:
        _, stream_id, number, index, count = _FRAGMENT.unpack_from(frame)
        if 1 < count <= FRAGMENTS_LIMIT and index < count:
            return stream_id, number, index, count, frame[_FRAGMENT.size :]
    raise WireError("a DATAGRAM frame is malformed")


class Reassembler:
    """Joins the fragments of one UDP flow: complete within `WITHIN_S`, at most 16 messages and 128 KiB pending."""

    WITHIN_S = 1.0
    PENDING_LIMIT = 16
    PENDING_BYTES = 128 * 1024

    def __init__(self) -> None:
        self._pending: dict[tuple[int, int], tuple[float, dict[int, bytes]]] = {}

    def feed(self, number: int, index: int, count: int, part: bytes, now: float) -> bytes | None:
        """The whole payload once its last part is there."""
        if count == 1:
            return part
        slot = (number, count)
        for stale in [key for key, (since, _) in self._pending.items() if now - since > self.WITHIN_S]:
            del self._pending[stale]
        if slot not in self._pending and len(self._pending) >= self.PENDING_LIMIT:
            self._pending.pop(next(iter(self._pending)))
        parts = self._pending.setdefault(slot, (now, {}))[1]
        parts[index] = part
        if len(parts) < count:
            while sum(len(held) for _, parts in self._pending.values() for held in parts.values()) > self.PENDING_BYTES:
                self._pending.pop(next(iter(self._pending)))
            return None
        del self._pending[slot]
        return b"".join(parts[i] for i in range(count))
