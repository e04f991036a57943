from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.addresses import Address
from proxy_vpn.dht.saved import MAX_NODES, Saved, dump, load, pack, unpack
from proxy_vpn.wire.krpc import NodeInfo

NODES = [NodeInfo(b"a" * 20, Address("192.0.2.1", 6881)), NodeInfo(b"b" * 20, Address("2001:db8::1", 6881))]


def test_a_memory_survives_msgpack() -> None:
    saved = Saved(nodes=pack(NODES), closest=[(b"h" * 20, pack(NODES[:1]))], ids=[(4, b"i" * 20)])
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(dump(saved)))
    again = load(plain)
    assert again == saved
    assert again.known_nodes() == NODES
    assert again.closest_sets() == {b"h" * 20: NODES[:1]}
    assert again.own_id(4) == b"i" * 20
    assert again.own_id(6) is None


def test_what_makes_no_sense_is_left_out() -> None:
    bad = [b"", b"short", b"n" * 27, *pack([NodeInfo(b"a" * 20, Address("192.0.2.1", 0))])]
    assert unpack([*bad, *pack(NODES)]) == NODES
    assert Saved(closest=[(b"short", pack(NODES))], ids=[(4, b"short")]).closest_sets() == {}
    assert Saved(ids=[(4, b"short")]).own_id(4) is None
    assert len(Saved(nodes=pack(NODES[:1]) * 1000).known_nodes()) == MAX_NODES


@given(
    st.recursive(
        st.none() | st.integers() | st.binary(max_size=40) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["nodes", "closest", "ids"]), inner)
        ),
        max_leaves=8,
    )
)
@settings(max_examples=60)
def test_any_state_is_survived(plain: object) -> None:
    saved = load(plain)
    saved.known_nodes()
    saved.closest_sets()
    saved.own_id(4)
