"""Probes before there is a connection: they find peers among candidates, measure paths and hand out cookies.

A PROBE is answered only if it opens under this network's keys, its time is within 120 s and its tx is new; so a
stranger, and a recorded probe sent again, get no byte back; in our first 120 s neither does one from before our
start, which costs a peer whose clock is behind a moment. Outside the time window (a clock that is wrong) a probe is
answered only under the device's own key, and while a peer is live only if its time lies ahead of ours and of all that
its sender ever sent here: no recording is like that. Of two clocks that differ, one probe is ahead: so both meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from proxy_vpn.errors import WireError
from proxy_vpn.keys import NetworkKey
from proxy_vpn.mesh.admission import CookieJar, RateLimit
from proxy_vpn.mesh.keyring import Keyring
from proxy_vpn.net.udp import Path
from proxy_vpn.wire.probe import TX_BYTES, Pong, Probe
from proxy_vpn.wire.seal import HINT_BYTES, NONCE_BYTES, SealKey

CLOCK_WINDOW_S = 120.0
CLOCK_SLACK_S = 1.0
ODD_CLOCKS_LIMIT = 64
AHEAD_LIMIT_S = 100 * 366 * 86400.0
AHEAD_CLOCKS_LIMIT = 1024
REPLAY_MEMORY_S = 300.0
REPLAYS_LIMIT = 1 << 16
FORGET_EVERY_S = 10.0
ANSWERS_PER_S, ANSWERS_BURST = 20.0, 100.0
PENDING_LIMIT = 1024
PONG_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Sent:
    """A probe on its way: where to, for whom (empty: whoever is there), when and how large."""

    path: Path
    wanted: bytes
    at: float
    size_bytes: int
    tx: bytes


class ProbeHandler(Protocol):
    """Who hears of probes: the mesh."""

    def pong_received(self, sent: Sent, pong: Pong, path: Path, rtt_s: float) -> None: ...

    def probe_received(self, sender: bytes, boot: bytes, path: Path) -> None: ...

    def own_address_found(self, sent: Sent) -> None: ...

    def clock_differs(self, sender: bytes, difference_s: float) -> None: ...

    def any_peer_live(self) -> bool: ...


class Prober:
    """Sends and answers probes of one network for one device."""

    def __init__(
        self,
        key: NetworkKey,
        identity: bytes,
        boot: bytes,
        *,
        keyring: Keyring,
        cookies: CookieJar,
        handler: ProbeHandler,
        send: Callable[[list[bytes], Path], None],
        entropy: Callable[[int], bytes],
        now: Callable[[], float],
        unix_time: Callable[[], float],
    ) -> None:
        self._key = key
        self._identity = identity
        self._boot = boot
        self._keyring = keyring
        self._cookies = cookies
        self._handler = handler
        self._send = send
        self._entropy = entropy
        self._now = now
        self._unix_time = unix_time
        self._pending: dict[bytes, Sent] = {}
        self._seen: dict[bytes, float] = {}
        self._sources = RateLimit(ANSWERS_PER_S, ANSWERS_BURST)
        self._forget_at = 0.0
        self._odd_clocks: dict[bytes, tuple[float, float]] = {}
        self._ahead: dict[bytes, float] = {}
        self._started = unix_time()
        self._own_key = probe_key(key, identity)
        self._discovery: dict[int, SealKey] = {}
        keyring.add_standing(self._standing)

    def probe(self, path: Path, wanted: bytes, size_bytes: int) -> None:
        """Send one probe of `size_bytes` on the wire."""
        if not path.remote.is_unicast or len(self._pending) >= PENDING_LIMIT:
            return
        tx = self._entropy(TX_BYTES)
        self._pending[tx[:HINT_BYTES]] = Sent(path, wanted, self._now(), size_bytes, tx)
        self._keyring.add_index(tx[:HINT_BYTES], self._open_pong)
        unix_time = self._unix_time()
        key = probe_key(self._key, wanted) if wanted else self._discovery_key(self._key.epochs(unix_time)[0])
        probe = Probe(tx, self._identity, self._boot, unix_time, size_bytes)
        self._send([key.seal(self._entropy(NONCE_BYTES), probe.encode())], path)

    def expire(self) -> None:
        """Forget probes that nobody answered and replays that are too old to matter."""
        now = self._now()
        for hint in [hint for hint, sent in self._pending.items() if now - sent.at > PONG_TIMEOUT_S]:
            self._forget(hint)
        if now >= self._forget_at:
            self._forget_at = now + FORGET_EVERY_S
            self._forget_seen(self._unix_time())

    def _forget_seen(self, unix_time: float) -> None:
        self._seen = {tx: until for tx, until in self._seen.items() if until > unix_time}

    def seen(self) -> dict[bytes, float]:
        """The probes already answered and until when (Unix seconds) to remember them, for the next start."""
        return dict(self._seen)

    def remember_seen(self, seen: dict[bytes, float]) -> None:
        """What `seen` said before this process started."""
        self._seen.update(list(seen.items())[:REPLAYS_LIMIT])

    def _forget(self, hint: bytes) -> Sent | None:
        self._keyring.remove_index(hint, self._open_pong)
        return self._pending.pop(hint, None)

    def _discovery_key(self, epoch: int) -> SealKey:
        if epoch not in self._discovery:
            if len(self._discovery) > 4:
                self._discovery.clear()
            self._discovery[epoch] = SealKey(self._key.derive("pvpn1 probe", self._key.discovery_key(epoch)))
        return self._discovery[epoch]

    def _standing(self) -> Iterable[tuple[SealKey, Callable[[bytes, Path], None]]]:
        yield self._own_key, self._open_direct
        for epoch in self._key.epochs(self._unix_time()):
            key = self._discovery_key(epoch)
            yield key, lambda datagram, path, key=key: self._open_probe(key, datagram, path)  # type: ignore[misc]

    def _open_direct(self, datagram: bytes, path: Path) -> None:
        self._open_probe(self._own_key, datagram, path)

    def _open_probe(self, key: SealKey, datagram: bytes, path: Path) -> None:
        try:
            probe = Probe.decode(key.open(datagram))
        except WireError:
            return
        unix_time = self._unix_time()
        difference_s = probe.time - unix_time
        if not abs(difference_s) <= CLOCK_WINDOW_S:
            self._note_clock(probe, unix_time, difference_s)
            if key is not self._own_key:
                return
            if not self._is_ahead(probe, difference_s) and self._handler.any_peer_live():
                return
        if probe.sender == self._identity:
            # Our own probe has come round: the address it went to is ourselves, or somebody sends it back to us.
            sent = self._pending.get(probe.tx[:HINT_BYTES])
            if sent is not None and sent.tx == probe.tx:
                self._handler.own_address_found(sent)
            return
        if unix_time - self._started < CLOCK_WINDOW_S and probe.time < self._started - CLOCK_SLACK_S:
            return  # from before our start: it never arrived here, or the memory of it was lost
        if probe.tx in self._seen or not self._sources.allow(path.remote.ip, self._now()):
            return
        if len(self._seen) >= REPLAYS_LIMIT:
            self._forget_seen(unix_time)
            if len(self._seen) >= REPLAYS_LIMIT:
                return
        self._seen[probe.tx] = unix_time + REPLAY_MEMORY_S
        cookie = self._cookies.cookie(path.remote, probe.size_bytes, self._now())
        pong = Pong(self._identity, self._boot, cookie, path.remote, probe.size_bytes)
        reply = SealKey(self._key.reply_key(probe.tx), probe.tx[:HINT_BYTES])
        self._send([reply.seal(self._entropy(NONCE_BYTES), pong.encode())], path)
        self._handler.probe_received(probe.sender, probe.boot, path)

    def _is_ahead(self, probe: Probe, difference_s: float) -> bool:
        """Whether its time lies in our future, and is the latest of its sender, which is noted."""
        latest = self._ahead.get(probe.sender)
        if latest is None and len(self._ahead) >= AHEAD_CLOCKS_LIMIT:
            return False
        if not 0.0 < difference_s <= AHEAD_LIMIT_S or (latest is not None and probe.time <= latest):
            return False
        self._ahead[probe.sender] = probe.time
        return True

    def _note_clock(self, probe: Probe, unix_time: float, difference_s: float) -> None:
        """Speak of a clock only when two different probes show it running: one recording proves nothing."""
        earlier = self._odd_clocks.get(probe.sender)
        if len(self._odd_clocks) >= ODD_CLOCKS_LIMIT:
            self._odd_clocks.clear()
        self._odd_clocks[probe.sender] = (probe.time, unix_time)
        if earlier is None:
            return
        ran_s, passed_s = probe.time - earlier[0], unix_time - earlier[1]
        if ran_s > 0 and abs(ran_s - passed_s) < CLOCK_SLACK_S:
            self._handler.clock_differs(probe.sender, difference_s)

    def _open_pong(self, datagram: bytes, path: Path) -> None:
        hint = datagram[NONCE_BYTES : NONCE_BYTES + HINT_BYTES]
        sent = self._pending.get(hint)
        if sent is None:
            return
        try:
            pong = Pong.decode(SealKey(self._key.reply_key(sent.tx), hint).open(datagram))
        except WireError:
            return
        self._forget(hint)
        if not sent.wanted or pong.responder == sent.wanted:
            self._handler.pong_received(sent, pong, path, self._now() - sent.at)


def probe_key(key: NetworkKey, identity: bytes) -> SealKey:
    """The key of probes to one device; derived apart from the handshake's."""
    return SealKey(key.derive("pvpn1 probe", key.device_key(identity)))


def handshake_key(key: NetworkKey, identity: bytes) -> SealKey:
    """The key of handshake datagrams to one device."""
    return SealKey(key.derive("pvpn1 hs", key.device_key(identity)))
