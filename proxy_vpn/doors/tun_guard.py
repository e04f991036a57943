"""The guard of a TUN interface: its own addresses, and its peers' as sources, come in through it alone (Linux).

Linux takes packets for any of its addresses on every interface, and asks where their sources belong only with
rp_filter, which IPv6 has not. So a table of nftables drops, before anything else sees them, packets from other
interfaces that are for our addresses or claim to come from the virtual networks. What this host forwards to peers, a
container's packets whose source it translates, passes: the door takes only what has an address of ours as its source.

The table is owned by a netlink socket: nobody else can change or flush it, and the kernel removes it with the socket,
also after kill -9. The socket needs no capability once the table is made.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

from pyroute2.netlink import (
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NLMSG_ERROR,
)
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFPROTO_INET,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWTABLE,
    nft_chain_msg,
    nft_rule_msg,
    nft_table_msg,
)
from pyroute2.nftables.expressions import genex, verdict

from proxy_vpn.ranges import IP, Network

ANSWER_S: Final = 5.0
_LOOPBACK: Final = 1  # the index of `lo`, where what this host sends to itself comes in
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_TABLE_OWNED: Final = 2  # NFT_TABLE_F_OWNER
_CHAIN: Final = "prerouting"
_PREROUTING, _BEFORE_TRACKING = 0, -300
_DROP, _ACCEPT = 0, 1
_REGISTER, _EQUAL = 1, 0
_INPUT_INDEX, _FAMILY = 4, 15  # what `meta` loads
_NETWORK_HEADER: Final = 1  # where `payload` begins
_SOURCE, _TARGET = {4: 12, 6: 8}, {4: 16, 6: 24}  # where the headers of the IP versions have them
_FAMILIES: Final = {4: NFPROTO_IPV4, 6: NFPROTO_IPV6}
_HEADER: Final = struct.Struct("=IHHIIi")  # of a message, and the error number that follows in an NLMSG_ERROR
_RECEIVE_BYTES: Final = 1 << 16


def guard(name: str, addresses: Iterable[IP], networks: Iterable[Network]) -> socket.socket:
    """Guard the interface `name` until the socket that is returned is closed; blocking.

    `addresses` are this host's own there, and whoever has one of `networks` is behind it; their prefixes are whole
    bytes. Raises OSError where the kernel has no nf_tables, or none with owned tables (before 5.12), or does not let
    this process use it. The table has the interface's name.
    """
    rules = [_accept_from(index) for index in (socket.if_nametoindex(name), _LOOPBACK)]
    rules += [_drop(_TARGET, ip.version, ip.packed) for ip in addresses]
    rules += [_drop(_SOURCE, net.version, net.network_address.packed[: net.prefixlen // 8]) for net in networks]
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    try:
        sock.settimeout(ANSWER_S)
        sock.bind((0, 0))
        _transact(sock, _table(name, rules))
    except BaseException:
        sock.close()
        raise
    return sock


def _transact(sock: socket.socket, messages: Sequence[Any]) -> None:
    """All of them or none; raises OSError."""
    batch = [_message(_BATCH_BEGIN, nfgen_msg()), *messages, _message(_BATCH_END, nfgen_msg())]
    batch[-2]["header"]["flags"] |= NLM_F_ACK  # answered when all is done; what fails is answered in any case
    for number, message in enumerate(batch):
        message["header"]["sequence_number"] = number
        message.encode()
    sock.sendall(b"".join(message.data for message in batch))
    while True:
        _, kind, _, number, _, error = _HEADER.unpack_from(sock.recv(_RECEIVE_BYTES))
        if kind == NLMSG_ERROR and error:
            raise OSError(-error, os.strerror(-error))
        if kind == NLMSG_ERROR and number == len(batch) - 2:
            return


def _table(name: str, rules: Iterable[list[object]]) -> list[Any]:
    """The messages that make it."""
    table, chain, rule = (
        NFNL_SUBSYS_NFTABLES << 8 | kind for kind in (NFT_MSG_NEWTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE)
    )
    hook = {"attrs": [("NFTA_HOOK_HOOKNUM", _PREROUTING), ("NFTA_HOOK_PRIORITY", _BEFORE_TRACKING)]}
    return [
        _message(table, nft_table_msg(), NLM_F_EXCL, name=name, flags=_TABLE_OWNED),
        _message(chain, nft_chain_msg(), table=name, name=_CHAIN, hook=hook, type="filter"),
        *(_message(rule, nft_rule_msg(), NLM_F_APPEND, table=name, chain=_CHAIN, expressions=each) for each in rules),
    ]


def _message(kind: int, made: Any, flags: int = 0, /, **attributes: object) -> Any:
    made["header"]["type"] = kind
    made["header"]["flags"] = NLM_F_REQUEST | (NLM_F_CREATE | flags if attributes else 0)
    if attributes:
        made["nfgen_family"] = NFPROTO_INET
        made["attrs"] = [(made.name2nla(key), value) for key, value in attributes.items()]
    else:
        made["res_id"] = NFNL_SUBSYS_NFTABLES  # the beginning or the end of a transaction
    return made


def _accept_from(index: int) -> list[object]:
    """A rule; it ends this chain only, and other tables have their say."""
    return [*_if_is(index.to_bytes(4, sys.byteorder), "meta", key=_INPUT_INDEX), *verdict(_ACCEPT)]


def _drop(offsets: dict[int, int], version: int, start: bytes) -> list[object]:
    """A rule for packets of this IP version whose address at one of `offsets` begins so."""
    place = {"base": _NETWORK_HEADER, "offset": offsets[version], "len": len(start)}
    family = bytes((_FAMILIES[version],))
    return [
        *_if_is(family, "meta", key=_FAMILY),
        *_if_is(start, "payload", **place),
        genex("counter", {}),
        *verdict(_DROP),
    ]


def _if_is(value: bytes, load: str, **what: int) -> list[object]:
    data = {"attrs": [("NFTA_DATA_VALUE", value)]}
    compared = {"sreg": _REGISTER, "op": _EQUAL, "data": data}
    return [genex(load, {"dreg": _REGISTER, **what}), genex("cmp", compared)]
