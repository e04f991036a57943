"""KRPC, the datagrams of the Mainline DHT (BEP 5, 32, 42, 43), to typed messages and back.

A datagram is one bencoded dictionary. `decode` accepts only the strict form and only the whole datagram;
`encode` writes `t` and `v` as they are given (4 bytes each, the only size every node parses).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bencode2 import bdecode, bencode

from proxy_vpn.addresses import Address
from proxy_vpn.errors import WireError

ID_BYTES = 20
TID_BYTES = 4
MIN_DATAGRAM_BYTES = 20
MAX_DATAGRAM_BYTES = 4096
MAX_TID_BYTES = 32
MAX_TOKEN_BYTES = 128
MAX_NODES = 32
MAX_VALUES = 200
MAX_WANT = 4
MAX_TEXT_CHARS = 100

_NODE4_BYTES = ID_BYTES + 6
_NODE6_BYTES = ID_BYTES + 18


class NodeInfo(NamedTuple):
    """A node as others describe it: its 20-byte id and its endpoint."""

    id: bytes
    address: Address


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there?"""


@dataclass(frozen=True, slots=True)
class FindNode:
    """Which nodes are closest to `target` (20 bytes)? `want`: the address families asked for, 4 and 6 (BEP 32)."""

    target: bytes
    want: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GetPeers:
    """Who announced `info_hash` (20 bytes)?"""

    info_hash: bytes
    want: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AnnouncePeer:
    """The sender can be reached at `port`, or at its UDP source port when `implied_port`."""

    info_hash: bytes
    port: int
    token: bytes
    implied_port: bool = False


@dataclass(frozen=True, slots=True)
class UnknownCall:
    """A query by a name that is not spoken here; answered with error 204 at most."""

    name: bytes


Call = Ping | FindNode | GetPeers | AnnouncePeer | UnknownCall


@dataclass(frozen=True, slots=True)
class Query:
    """`call`, asked by the node with id `sender`; `read_only` nodes are not to be put into tables (BEP 43)."""

    tid: bytes
    sender: bytes
    call: Call
    read_only: bool = False
    version: bytes = b""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer from the node with id `sender`; `ip` is the asker's address as that node sees it (BEP 42)."""

    tid: bytes
    sender: bytes
    nodes: tuple[NodeInfo, ...] | None = None
    values: tuple[Address, ...] = ()
    token: bytes | None = None
    ip: Address | None = None
    version: bytes = b""


@dataclass(frozen=True, slots=True)
class Failure:
    """A KRPC error: 201 generic, 202 server, 203 protocol, 204 unknown method."""

    tid: bytes
    code: int
    text: str = ""


Message = Query | Reply | Failure


def looks_like_krpc(datagram: bytes) -> bool:
    """Whether the frame of a datagram is KRPC's; the strict check of everything inside is `decode`'s."""
    return (
        datagram[:1] == b"d"
        and datagram[1:2].isdigit()
        and MIN_DATAGRAM_BYTES <= len(datagram) <= MAX_DATAGRAM_BYTES
        and datagram[-1:] == b"e"
    )


def is_query_shaped(datagram: bytes) -> bool:
    """Whether it ends as queries do (`y` is the last key), told without decoding."""
    return datagram.endswith(b"1:y1:qe")


def pack_nodes(nodes: Sequence[NodeInfo]) -> bytes:
    """Compact node info: 26 bytes each for IPv4, 38 for IPv6."""
    return b"".join(node.id + node.address.packed() for node in nodes)


def unpack_nodes(data: bytes, node_bytes: int = _NODE4_BYTES) -> tuple[NodeInfo, ...]:
    """The first MAX_NODES of a compact list of 26-byte or 38-byte entries; raises WireError."""
    if len(data) % node_bytes:
        raise WireError(f"a compact node list of {len(data)} bytes")
    end = min(len(data), MAX_NODES * node_bytes)
    return tuple(
        NodeInfo(data[at : at + ID_BYTES], Address.from_packed(data[at + ID_BYTES : at + node_bytes]))
        for at in range(0, end, node_bytes)
    )


def encode(message: Message) -> bytes:
    """The datagram for a message."""
    if isinstance(message, Failure):
        return bencode({b"t": message.tid, b"y": b"e", b"e": [message.code, message.text.encode()]})
    body: dict[bytes, Any] = {b"t": message.tid}
    if message.version:
        body[b"v"] = message.version
    if isinstance(message, Query):
        name, arguments = _call_fields(message.call)
        body |= {b"y": b"q", b"q": name, b"a": {b"id": message.sender, **arguments}}
        if message.read_only:
            body[b"ro"] = 1
    else:
        body |= {b"y": b"r", b"r": _reply_fields(message)}
        if message.ip is not None:
            body[b"ip"] = message.ip.packed()
    return bencode(body)


def decode(datagram: bytes) -> Message:
    """A message from a whole datagram; raises WireError. Lists are cut at their limits."""
    if not looks_like_krpc(datagram):
        raise WireError("not a KRPC datagram")
    try:
        body = bdecode(datagram)
    except (ValueError, RecursionError) as error:
        raise WireError("not strict bencode") from error
    if not isinstance(body, dict):
        raise WireError("a KRPC message is a dictionary")
    kind, tid = body.get(b"y"), _bytes(body, b"t", 1, MAX_TID_BYTES)
    if kind == b"q":
        return _decode_query(tid, body)
    if kind == b"r":
        return _decode_reply(tid, body)
    if kind == b"e":
        return _decode_failure(tid, body)
    raise WireError("a KRPC message is a query, a reply or an error")


def _call_fields(call: Call) -> tuple[bytes, dict[bytes, Any]]:
    if isinstance(call, FindNode):
        return b"find_node", {b"target": call.target, **_want_field(call.want)}
    if isinstance(call, GetPeers):
        return b"get_peers", {b"info_hash": call.info_hash, **_want_field(call.want)}
    if isinstance(call, AnnouncePeer):
        return b"announce_peer", {
            b"info_hash": call.info_hash,
            b"port": call.port,
            b"token": call.token,
            **({b"implied_port": 1} if call.implied_port else {}),
        }
    return (call.name if isinstance(call, UnknownCall) else b"ping"), {}


def _want_field(want: tuple[int, ...]) -> dict[bytes, Any]:
    return {b"want": [b"n%d" % family for family in want]} if want else {}


def _reply_fields(reply: Reply) -> dict[bytes, Any]:
    fields: dict[bytes, Any] = {b"id": reply.sender}
    if reply.nodes is not None:
        fields[b"nodes"] = pack_nodes([node for node in reply.nodes if ":" not in node.address.ip])
        if nodes6 := pack_nodes([node for node in reply.nodes if ":" in node.address.ip]):
            fields[b"nodes6"] = nodes6
    if reply.values:
        fields[b"values"] = [value.packed() for value in reply.values]
    if reply.token is not None:
        fields[b"token"] = reply.token
    return fields


def _decode_query(tid: bytes, body: dict[bytes, Any]) -> Query:
    arguments = _dict(body, b"a")
    name = _bytes(body, b"q", 1, MAX_TEXT_CHARS)
    call: Call
    if name == b"ping":
        call = Ping()
    elif name == b"find_node":
        call = FindNode(_id(arguments, b"target"), _want(arguments))
    elif name == b"get_peers":
        call = GetPeers(_id(arguments, b"info_hash"), _want(arguments))
    elif name == b"announce_peer":
        call = AnnouncePeer(
            _id(arguments, b"info_hash"),
            _int(arguments, b"port", 65535),
            _bytes(arguments, b"token", 0, MAX_TOKEN_BYTES),
            bool(_int(arguments, b"implied_port", 1, default=0)),
        )
    else:
        call = UnknownCall(name)
    return Query(tid, _id(arguments, b"id"), call, body.get(b"ro") == 1, _version(body))


def _decode_reply(tid: bytes, body: dict[bytes, Any]) -> Reply:
    fields = _dict(body, b"r")
    nodes = None
    if b"nodes" in fields or b"nodes6" in fields:
        nodes = unpack_nodes(_bytes(fields, b"nodes", default=b"")) + unpack_nodes(
            _bytes(fields, b"nodes6", default=b""), _NODE6_BYTES
        )
    token = _bytes(fields, b"token", 0, MAX_TOKEN_BYTES) if b"token" in fields else None
    return Reply(tid, _id(fields, b"id"), nodes, _values(fields), token, _own_address(body), _version(body))


def _decode_failure(tid: bytes, body: dict[bytes, Any]) -> Failure:
    error = body.get(b"e")
    if not isinstance(error, list) or not error or not isinstance(error[0], int):
        raise WireError("a KRPC error is a list of a code and a text")
    text = error[1] if len(error) > 1 and isinstance(error[1], bytes) else b""
    return Failure(tid, error[0], text[:MAX_TEXT_CHARS].decode(errors="replace"))


def _values(fields: dict[bytes, Any]) -> tuple[Address, ...]:
    values = fields.get(b"values", [])
    if not isinstance(values, list):
        raise WireError("the values of a KRPC reply are a list")
    # Nodes pass on whatever was announced to them, so one odd entry doesn't spoil the others.
    fitting = (value for value in values[:MAX_VALUES] if isinstance(value, bytes) and len(value) in (6, 18))
    return tuple(Address.from_packed(value) for value in fitting)


def _own_address(body: dict[bytes, Any]) -> Address | None:
    ip = body.get(b"ip")
    return Address.from_packed(ip) if isinstance(ip, bytes) and len(ip) in (6, 18) else None


def _want(arguments: dict[bytes, Any]) -> tuple[int, ...]:
    want = arguments.get(b"want", [])
    known = {b"n4": 4, b"n6": 6}
    if not isinstance(want, list):
        raise WireError("want is a list")
    names = [name for name in want[:MAX_WANT] if isinstance(name, bytes)]
    return tuple(dict.fromkeys(known[name] for name in names if name in known))


def _version(body: dict[bytes, Any]) -> bytes:
    version = body.get(b"v", b"")
    return version[:MAX_TID_BYTES] if isinstance(version, bytes) else b""


def _dict(body: dict[bytes, Any], key: bytes) -> dict[bytes, Any]:
    value = body.get(key)
    if not isinstance(value, dict):
        raise WireError(f"{key!r} must be a dictionary")
    return value


def _id(fields: dict[bytes, Any], key: bytes) -> bytes:
    return _bytes(fields, key, ID_BYTES, ID_BYTES)


def _bytes(
    fields: dict[bytes, Any],
    key: bytes,
    shortest: int = 0,
    longest: int = MAX_DATAGRAM_BYTES,
    default: bytes | None = None,
) -> bytes:
    value = fields.get(key, default)
    if not isinstance(value, bytes) or not shortest <= len(value) <= longest:
        raise WireError(f"{key!r} must be {shortest} to {longest} bytes")
    return value


def _int(fields: dict[bytes, Any], key: bytes, highest: int, default: int | None = None) -> int:
    value = fields.get(key, default)
    if not isinstance(value, int) or not 0 <= value <= highest:
        raise WireError(f"{key!r} must be a number up to {highest}")
    return value
