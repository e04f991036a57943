"""What a serving node keeps for others: announced peers for half an hour, and the tokens that allow announcing."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from hmac import compare_digest

from proxy_vpn.addresses import Address
from proxy_vpn.dht.ids import Entropy, family_of, host

MAX_HASHES = 2_000
MAX_PEERS_PER_HASH = 200
MAX_PEERS_PER_HOST = 8
MAX_VALUES_PER_REPLY = 25
PEER_LIFE_S = 35 * 60.0
SECRET_LIFE_S = 5 * 60.0
SECRET_BYTES = 16
TOKEN_BYTES = 8


class PeerStore:
    """Peers by info_hash; the least recently announced hash goes first when there are too many."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self._hashes: OrderedDict[bytes, OrderedDict[Address, float]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(peers) for peers in self._hashes.values())

    def add(self, info_hash: bytes, peer: Address, now: float) -> None:
        """Keep or renew a peer."""
        peers = self._hashes.setdefault(info_hash, OrderedDict())
        self._hashes.move_to_end(info_hash)
        _expire(peers, now)
        peers[peer] = now
        peers.move_to_end(peer)
        neighbours = [other for other in peers if host(other.ip) == host(peer.ip)]
        if len(neighbours) > MAX_PEERS_PER_HOST:
            del peers[neighbours[0]]
        if len(peers) > MAX_PEERS_PER_HASH:
            peers.popitem(last=False)
        if len(self._hashes) > MAX_HASHES:
            self._hashes.popitem(last=False)

    def get(self, info_hash: bytes, family: int, now: float) -> tuple[Address, ...]:
        """Up to MAX_VALUES_PER_REPLY peers of one family (4 or 6), a random choice of those known."""
        peers = self._hashes.get(info_hash)
        if peers is None:
            return ()
        _expire(peers, now)
        if not peers:
            del self._hashes[info_hash]
            return ()
        fitting = [peer for peer in peers if family_of(peer) == family]
        if len(fitting) <= MAX_VALUES_PER_REPLY:
            return tuple(fitting)
        seed = self._entropy(SECRET_BYTES)
        fitting.sort(key=lambda peer: blake2b(peer.packed(), key=seed, digest_size=8).digest())
        return tuple(fitting[:MAX_VALUES_PER_REPLY])


class Tokens:
    """Tokens bound to an IP and an info_hash, good for 5 to 10 minutes."""

    def __init__(self, entropy: Entropy, now: float) -> None:
        self._entropy = entropy
        self._secrets = [entropy(SECRET_BYTES)]
        self._since = now

    def make(self, ip: str, info_hash: bytes, now: float) -> bytes:
        """The token for whoever asks about `info_hash` from `ip`."""
        self._rotate(now)
        return self._token(self._secrets[0], ip, info_hash)

    def accept(self, token: bytes, ip: str, info_hash: bytes, now: float) -> bool:
        """Whether it was made for this IP and info_hash recently."""
        self._rotate(now)
        return any(compare_digest(token, self._token(secret, ip, info_hash)) for secret in self._secrets)

    def _rotate(self, now: float) -> None:
        age = now - self._since
        if age >= SECRET_LIFE_S:
            older = self._secrets[:1] if age < 2 * SECRET_LIFE_S else []
            self._secrets = [self._entropy(SECRET_BYTES), *older]
            self._since = now

    @staticmethod
    def _token(secret: bytes, ip: str, info_hash: bytes) -> bytes:
        return blake2b(ip.encode() + b"|" + info_hash, key=secret, digest_size=TOKEN_BYTES).digest()


def _expire(peers: OrderedDict[Address, float], now: float) -> None:
    while peers and now - next(iter(peers.values())) > PEER_LIFE_S:
        peers.popitem(last=False)
