from __future__ import annotations

import os

from proxy_vpn.addresses import Address
from proxy_vpn.dht.store import (
    MAX_HASHES,
    MAX_PEERS_PER_HASH,
    MAX_PEERS_PER_HOST,
    MAX_VALUES_PER_REPLY,
    PEER_LIFE_S,
    SECRET_LIFE_S,
    PeerStore,
    Tokens,
)

HASH, OTHER = b"h" * 20, b"o" * 20


def peer(number: int, port: int = 5000) -> Address:
    return Address(f"10.{number >> 8}.{number & 255}.1", port)


def test_peers_come_back_until_they_expire() -> None:
    store = PeerStore(os.urandom)
    store.add(HASH, peer(1), 0.0)
    store.add(HASH, peer(2), 100.0)
    store.add(HASH, Address("fd00::1", 5000), 100.0)
    assert store.get(HASH, 4, 100.0) == (peer(1), peer(2))
    assert store.get(HASH, 6, 100.0) == (Address("fd00::1", 5000),)
    assert store.get(OTHER, 4, 100.0) == ()
    assert store.get(HASH, 4, PEER_LIFE_S + 1) == (peer(2),)
    store.add(HASH, peer(2), PEER_LIFE_S)
    assert store.get(HASH, 4, 2 * PEER_LIFE_S) == (peer(2),)
    assert store.get(HASH, 4, 3 * PEER_LIFE_S) == ()
    assert len(store) == 0


def test_replies_hold_few_values_and_not_always_the_same() -> None:
    store = PeerStore(os.urandom)
    for number in range(100):
        store.add(HASH, peer(number), 0.0)
    answers = [store.get(HASH, 4, 1.0) for _ in range(20)]
    assert all(len(set(answer)) == MAX_VALUES_PER_REPLY for answer in answers)
    assert len({value for answer in answers for value in answer}) > 2 * MAX_VALUES_PER_REPLY


def test_bounds() -> None:
    store = PeerStore(os.urandom)
    for port in range(1, 100):
        store.add(HASH, peer(1, port), 0.0)
    assert len(store) == MAX_PEERS_PER_HOST
    for number in range(2 * MAX_PEERS_PER_HASH):
        store.add(HASH, peer(number), 1.0)
    assert len(store) == MAX_PEERS_PER_HASH
    for number in range(MAX_HASHES + 50):
        store.add(number.to_bytes(20, "big"), peer(1), 2.0)
    assert len(store) == MAX_HASHES
    assert store.get(HASH, 4, 2.0) == ()


def test_tokens() -> None:
    tokens = Tokens(os.urandom, 0.0)
    token = tokens.make("10.0.0.1", HASH, 10.0)
    assert tokens.accept(token, "10.0.0.1", HASH, 10.0)
    assert tokens.accept(token, "10.0.0.1", HASH, SECRET_LIFE_S + 1)
    assert not tokens.accept(token, "10.0.0.2", HASH, 10.0)
    assert not tokens.accept(token, "10.0.0.1", OTHER, 10.0)
    assert not tokens.accept(b"", "10.0.0.1", HASH, 10.0)
    assert not tokens.accept(token, "10.0.0.1", HASH, 2 * SECRET_LIFE_S + 2)


def test_old_secrets_do_not_survive_a_long_pause() -> None:
    tokens = Tokens(os.urandom, 0.0)
    token = tokens.make("10.0.0.1", HASH, 0.0)
    assert not tokens.accept(token, "10.0.0.1", HASH, 5 * SECRET_LIFE_S)
