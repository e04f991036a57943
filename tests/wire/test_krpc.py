from __future__ import annotations

import contextlib

import pytest
from bencode2 import bencode
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.addresses import Address
from proxy_vpn.errors import WireError
from proxy_vpn.wire.krpc import (
    MAX_NODES,
    MAX_VALUES,
    AnnouncePeer,
    Call,
    Failure,
    FindNode,
    GetPeers,
    Message,
    NodeInfo,
    Ping,
    Query,
    Reply,
    UnknownCall,
    decode,
    encode,
    is_query_shaped,
    looks_like_krpc,
    pack_nodes,
    unpack_nodes,
)

ONE = b"abcdefghij0123456789"
OTHER = b"mnopqrstuvwxyz123456"

ids = st.binary(min_size=20, max_size=20)
tids = st.binary(min_size=4, max_size=4)
ports = st.integers(0, 65535)
addresses4 = st.builds(Address, st.ip_addresses(v=4).map(str), ports)
addresses6 = st.builds(Address, st.ip_addresses(v=6).filter(lambda ip: not ip.ipv4_mapped).map(str), ports)
addresses = addresses4 | addresses6
nodes4 = st.builds(NodeInfo, ids, addresses4)
nodes6 = st.builds(NodeInfo, ids, addresses6)
wants = st.sampled_from([(), (4,), (6,), (4, 6)])
calls: st.SearchStrategy[Call] = st.one_of(
    st.just(Ping()),
    st.builds(FindNode, ids, wants),
    st.builds(GetPeers, ids, wants),
    st.builds(AnnouncePeer, ids, ports, st.binary(max_size=40), st.booleans()),
    st.just(UnknownCall(b"sample_infohashes")),
)
versions = st.sampled_from([b"", b"LT\x02\x01"])
queries = st.builds(Query, tids, ids, calls, st.booleans(), versions)
node_lists = st.none() | st.builds(
    lambda four, six: tuple(four + six), st.lists(nodes4, max_size=8), st.lists(nodes6, max_size=8)
)
replies = st.builds(
    Reply,
    tids,
    ids,
    node_lists,
    st.lists(addresses, max_size=30).map(tuple),
    st.none() | st.binary(max_size=20),
    st.none() | addresses,
    versions,
)
failures = st.builds(Failure, tids, st.integers(0, 999), st.text("abc ", max_size=30))
messages: st.SearchStrategy[Message] = st.one_of(queries, replies, failures)


@pytest.mark.parametrize(
    ("datagram", "message"),
    [
        (b"d1:ad2:id20:" + ONE + b"e1:q4:ping1:t2:aa1:y1:qe", Query(b"aa", ONE, Ping())),
        (
            b"d1:ad2:id20:" + ONE + b"6:target20:" + OTHER + b"e1:q9:find_node1:t2:aa1:y1:qe",
            Query(b"aa", ONE, FindNode(OTHER)),
        ),
        (
            b"d1:ad2:id20:" + ONE + b"9:info_hash20:" + OTHER + b"e1:q9:get_peers1:t2:aa1:y1:qe",
            Query(b"aa", ONE, GetPeers(OTHER)),
        ),
        (
            b"d1:ad2:id20:" + ONE + b"12:implied_porti1e9:info_hash20:" + OTHER + b"4:porti6881e5:token8:aoeusnth"
            b"e1:q13:announce_peer1:t2:aa1:y1:qe",
            Query(b"aa", ONE, AnnouncePeer(OTHER, 6881, b"aoeusnth", implied_port=True)),
        ),
        (b"d1:rd2:id20:" + OTHER + b"e1:t2:aa1:y1:re", Reply(b"aa", OTHER)),
        (
            b"d1:rd2:id20:" + ONE + b"5:token8:aoeusnth6:valuesl6:axje.u6:idhtnmee1:t2:aa1:y1:re",
            Reply(
                b"aa",
                ONE,
                values=(Address("97.120.106.101", 11893), Address("105.100.104.116", 28269)),
                token=b"aoeusnth",
            ),
        ),
        (b"d1:eli201e23:A Generic Error Ocurrede1:t2:aa1:y1:ee", Failure(b"aa", 201, "A Generic Error Ocurred")),
    ],
)
def test_the_examples_of_bep_5(datagram: bytes, message: Message) -> None:
    assert decode(datagram) == message
    assert encode(message) == datagram


@given(messages)
@settings(max_examples=100)
def test_what_is_encoded_decodes(message: Message) -> None:
    datagram = encode(message)
    assert looks_like_krpc(datagram)
    assert is_query_shaped(datagram) == isinstance(message, Query)
    assert decode(datagram) == message


@given(messages, st.binary(min_size=1, max_size=4))
@settings(max_examples=50)
def test_a_tail_or_a_missing_end_is_refused(message: Message, tail: bytes) -> None:
    datagram = encode(message)
    for cut in range(0, len(datagram), 7):
        with pytest.raises(WireError):
            decode(datagram[:cut])
    for longer in (datagram + tail, datagram + b"e"):
        with pytest.raises(WireError):
            decode(longer)


@given(st.binary(max_size=200))
@settings(max_examples=100)
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(WireError):
        decode(noise)
    with pytest.raises(WireError):
        decode(b"d1:" + noise + b"e" * 20)


junk = st.recursive(
    st.integers(-5, 70000) | st.binary(max_size=30) | ids,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([b"id", b"target", b"info_hash", b"port", b"token", b"nodes"]), inner)
    ),
    max_leaves=10,
)


@given(
    st.fixed_dictionaries(
        {b"y": st.sampled_from([b"q", b"r", b"e", b"x"]) | junk},
        optional=dict.fromkeys((b"t", b"a", b"r", b"e", b"ip", b"v", b"ro"), junk)
        | {b"q": st.sampled_from([b"ping", b"find_node", b"get_peers", b"announce_peer"]) | junk},
    )
)
@settings(max_examples=100)
def test_wrong_types_raise_nothing_but_wire_errors(body: dict[bytes, object]) -> None:
    with contextlib.suppress(WireError):
        decode(bencode(body))


@pytest.mark.parametrize(
    "datagram",
    [
        b"d1:ad2:id20:" + ONE + b"e1:q4:ping1:y1:q1:t2:aae",  # keys out of order
        b"d1:ad2:id19:" + ONE[1:] + b"e1:q4:ping1:t2:aa1:y1:qe",
        b"d1:ad2:id20:" + ONE + b"9:info_hash20:" + OTHER + b"4:porti65536e5:token1:xe"
        b"1:q13:announce_peer1:t2:aa1:y1:qe",
        b"d1:rd2:id20:" + ONE + b"5:nodes25:" + b"n" * 25 + b"e1:t2:aa1:y1:re",
        b"d1:ali" + b"1" * 60 + b"ee1:y1:qe",
        b"d1:a" + b"l" * 1500 + b"e" * 1500 + b"1:y1:qe",
        b"d1:y1:re" + b"e" * 20,
        b"d1:" + b"e" * 5000,
    ],
)
def test_malformed(datagram: bytes) -> None:
    with pytest.raises(WireError):
        decode(datagram)


def test_an_error_may_carry_a_reply() -> None:
    datagram = bencode({b"t": b"aaaa", b"y": b"e", b"e": [203, b"bad token"], b"r": {b"id": ONE}})
    assert decode(datagram) == Failure(b"aaaa", 203, "bad token")


def test_values_may_be_empty_or_hold_an_odd_entry() -> None:
    for values, expected in (([], ()), ([b"short", b"axje.u", 7], (Address("97.120.106.101", 11893),))):
        reply = decode(bencode({b"t": b"aaaa", b"y": b"r", b"r": {b"id": ONE, b"values": values}}))
        assert isinstance(reply, Reply)
        assert reply.values == expected


def test_lists_are_cut_at_their_limits() -> None:
    nodes = [NodeInfo(ONE, Address("192.0.2.1", port)) for port in range(1, MAX_NODES + 9)]
    fields = {b"id": ONE, b"nodes": pack_nodes(nodes), b"values": [b"axje.u"] * (MAX_VALUES + 9)}
    reply = decode(bencode({b"t": b"aaaa", b"y": b"r", b"r": fields}))
    assert isinstance(reply, Reply)
    assert reply.nodes == tuple(nodes[:MAX_NODES])
    assert len(reply.values) == MAX_VALUES


def test_a_mapped_address_is_ipv4() -> None:
    packed = ONE + bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 1]) + b"\x1a\xe1"
    assert unpack_nodes(packed, 38) == (NodeInfo(ONE, Address("192.0.2.1", 6881)),)


@pytest.mark.parametrize("datagram", [b"", b"d", b"d1:y1:qe", b"\x64" + bytes(30), b"x" * 40, b"d1" + b"e" * 5000])
def test_what_does_not_look_like_krpc(datagram: bytes) -> None:
    assert not looks_like_krpc(datagram)
