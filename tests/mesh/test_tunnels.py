"""The parts of tunnels that need no network: made-up addresses, numbers, and the pieces of datagrams."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy_vpn.mesh.tunnels import DATAGRAM_LIMIT_BYTES, Parts, relay_address
from proxy_vpn.wire.messages import datagram_frames, is_relayed, split_datagram

identities = st.binary(min_size=32, max_size=32)


@given(relay=identities, peer=identities)
def test_addresses_are_made_up_and_tell_ways_apart(relay: bytes, peer: bytes) -> None:
    address = relay_address(relay, peer)
    assert address.relayed and address == relay_address(relay, peer)
    assert (relay == peer) or address != relay_address(peer, relay)


@given(payload=st.binary(min_size=1, max_size=DATAGRAM_LIMIT_BYTES), limit=st.integers(200, 1500))
def test_datagrams_are_split_and_joined(payload: bytes, limit: int) -> None:
    frames = datagram_frames(7, 1, payload, limit, relayed=True)
    assert all(is_relayed(frame) and len(frame) <= limit for frame in frames)
    parts = Parts()
    joined = [parts.join(split_datagram(frame), 1.0) for frame in frames]
    assert joined[-1] == payload and not any(joined[:-1])


def test_what_no_path_could_carry_is_dropped() -> None:
    parts = Parts()
    frames = datagram_frames(7, 1, bytes(DATAGRAM_LIMIT_BYTES + 1), 1000, relayed=True)
    assert [parts.join(split_datagram(frame), 1.0) for frame in frames] == [None] * len(frames)
