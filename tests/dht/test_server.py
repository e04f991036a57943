from __future__ import annotations

import os

from proxy_vpn.addresses import Address
from proxy_vpn.dht.half import Half
from proxy_vpn.dht.server import Server
from proxy_vpn.wire.krpc import (
    AnnouncePeer,
    Call,
    Failure,
    FindNode,
    GetPeers,
    Ping,
    Query,
    Reply,
    UnknownCall,
    encode,
)

HASH = b"h" * 20
ASKER = Address("10.3.0.1", 4000)


class Asked:
    """A server with some contacts."""

    def __init__(self) -> None:
        self.server = Server(os.urandom, 0.0)
        self.halves = {family: Half(family, os.urandom, 0.0) for family in (4, 6)}
        for number in range(1, 20):
            self.halves[4].heard(os.urandom(20), Address(f"10.0.{number}.1", 6881), 0.0, None)
            self.halves[6].heard(os.urandom(20), Address(f"fd00:{number}::1", 6881), 0.0, None)

    def __call__(self, call: Call, source: Address = ASKER) -> Reply | Failure:
        answer = self.server.answer(Query(b"tttt", b"q" * 20, call), source, self.halves, 1.0)
        assert answer.tid == b"tttt"
        return answer

    def reply(self, call: Call, source: Address = ASKER) -> Reply:
        answer = self(call, source)
        assert isinstance(answer, Reply)
        assert answer.ip == source
        return answer


def test_ping_and_find_node() -> None:
    ask = Asked()
    assert ask.reply(Ping()).sender == ask.halves[4].id
    assert ask.reply(Ping(), Address("fd00::9", 1)).sender == ask.halves[6].id
    four = ask.reply(FindNode(HASH)).nodes or ()
    six = ask.reply(FindNode(HASH, want=(6,))).nodes or ()
    both = ask.reply(FindNode(HASH, want=(4, 6))).nodes or ()
    assert len(four) == 8
    assert not any(":" in node.address.ip for node in four)
    assert all(":" in node.address.ip for node in six)
    assert set(both) == {*four, *six}


def test_announce_with_a_token_then_get() -> None:
    ask = Asked()
    empty = ask.reply(GetPeers(HASH))
    assert empty.values == ()
    assert len(empty.nodes or ()) == 8
    assert empty.token is not None
    ask.reply(AnnouncePeer(HASH, 7, empty.token, implied_port=True))
    ask.reply(AnnouncePeer(HASH, 4321, empty.token))
    assert ask.reply(GetPeers(HASH)).values == (ASKER, Address(ASKER.ip, 4321))
    assert ask.reply(GetPeers(HASH), Address("fd00::9", 1)).values == ()
    for refused in (AnnouncePeer(HASH, 4321, b"wrong"), AnnouncePeer(HASH, 0, empty.token)):
        answer = ask(refused)
        assert isinstance(answer, Failure)
        assert answer.code == 203
    stolen = ask(AnnouncePeer(HASH, 4321, empty.token), Address("10.3.0.2", 4000))
    assert isinstance(stolen, Failure)


def test_private_peers_and_nodes_stay_in_private_networks() -> None:
    ask = Asked()
    token = ask.reply(GetPeers(HASH)).token or b""
    ask.reply(AnnouncePeer(HASH, 4321, token))
    outside = ask.reply(GetPeers(HASH), Address("9.9.9.9", 4000))
    assert outside.values == ()
    assert outside.nodes == ()


def test_unknown_methods_and_the_size_of_replies() -> None:
    ask = Asked()
    answer = ask(UnknownCall(b"get"))
    assert isinstance(answer, Failure)
    assert answer.code == 204
    for number in range(100):
        source = Address(f"10.3.{number}.1", 4000)
        token = ask.reply(GetPeers(HASH), source).token or b""
        ask.reply(AnnouncePeer(HASH, 4000, token), source)
    assert len(encode(ask(GetPeers(HASH, want=(4, 6))))) < 1000
