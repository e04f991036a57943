from __future__ import annotations

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.dht.screen import screened
from proxy_vpn.wire.krpc import NodeInfo, Reply

GLOBAL, PRIVATE, LOOPBACK = Address("9.9.9.9", 5000), Address("192.168.1.2", 5000), Address("127.0.3.1", 5000)
USELESS = (Address("9.9.9.9", 0), Address("224.0.0.1", 5000), Address("0.0.0.0", 5000), Address("9.9.9.9", 1023))


@pytest.mark.parametrize(
    ("source", "believed"),
    [
        (Address("8.8.8.8", 1), (GLOBAL,)),
        (Address("10.0.0.1", 1), (GLOBAL, PRIVATE)),
        (Address("127.0.0.1", 1), (GLOBAL, PRIVATE, LOOPBACK)),
        (Address("::1", 1), (GLOBAL, PRIVATE, LOOPBACK)),
        (Address("2606:4700::1", 1), (GLOBAL,)),
    ],
)
def test_scope_is_never_narrower_than_the_source(source: Address, believed: tuple[Address, ...]) -> None:
    addresses = (GLOBAL, PRIVATE, LOOPBACK)
    nodes = tuple(NodeInfo(b"n" * 20, address) for address in addresses)
    reply = screened(Reply(b"tttt", b"i" * 20, nodes, (*addresses, *USELESS)), source)
    assert reply.values == believed
    assert tuple(node.address for node in reply.nodes or ()) == believed


def test_no_nodes_stay_no_nodes() -> None:
    assert screened(Reply(b"tttt", b"i" * 20), GLOBAL).nodes is None
