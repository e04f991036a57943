"""A Link drives one QUIC connection: feed, collect, send, dispatch.

    receive()  feed:      datagrams go into the engine
    settle()   dispatch:  what the engine understood goes to the handler
               collect:   what the engine wants to send is taken from it
               send:      and leaves on the current path, sealed where it bears a long header

The path belongs to whoever drives the link (mesh.paths); the engine never sees it. Any exception out of an
engine ends that connection alone: hostile input makes the packages raise whatever they like.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

from proxy_vpn.net.demux import Demultiplexer
from proxy_vpn.net.engine import LONG_HEADER_BIT, Engine, EngineHandler
from proxy_vpn.net.engine_timer import HELD_PAUSE_S, PAUSE_S, EngineTimer
from proxy_vpn.net.supply import Supply
from proxy_vpn.net.trains import Trains
from proxy_vpn.net.udp import Path
from proxy_vpn.wire.seal import OVERHEAD_BYTES
from proxy_vpn.wire.segments import Segments
from proxy_vpn.wire.train import cut, train_id

KEY_UPDATE_PACKETS = 1 << 22
KEEPALIVE_S = 20.0
PROBE_TIMEOUT_LIMIT_S = 20.0
INTERNAL_ERROR = 0x104
OUR_MISTAKE = "an error of pvpn itself"
SEND_ROUNDS_LIMIT = 256
RESEND_FIRST_S = (0.2, 0.4)
ANSWERED_BYTES = 1200
ACK_DELAY_S = 0.001  # the least of what engines wait with an acknowledgement
LOSS_LEAST_S = 0.025  # and before they take a packet for lost (RFC 9002, section 6.2.1: the peer's own delay)
TOGETHER_S, TOGETHER_BYTES = 0.0001, 64 * 1024
_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class LinkHandler(EngineHandler, Protocol):
    """Who uses the connection: the engine's reports, room for more data, and the end."""

    def room_available(self) -> bool:
        """The engine has room for stream data: give it one more chunk; False if there is nothing to give."""

    @property
    def waits_for_room(self) -> bool:
        """Whether there is something to give it."""

    def path_heard(self, path: Path) -> None:
        """An authentic new datagram of this connection came from another `path` than the current one."""

    def link_closed(self, reason: str) -> None:
        """The connection is over; called once, nothing follows."""


class Link:
    """One QUIC connection on the network; `seal` wraps the datagrams that bear a long header."""

    def __init__(
        self,
        engine: Engine,
        demux: Demultiplexer,
        handler: LinkHandler,
        path: Path,
        seal: Callable[[bytes], bytes],
        datagram_bytes: int,
    ) -> None:
        self.engine = engine
        self._demux = demux
        self._handler = handler
        self._seal = seal
        self._loop = asyncio.get_running_loop()
        self.supply = Supply(engine, self._loop.time, path, datagram_bytes)
        self._ids: set[bytes] = set()
        self.trains = Trains(self)
        self._outbox: list[bytes] = []
        self._framed_bytes = 0
        self._sent_first = False
        self._lost = 0
        self._timer = EngineTimer(engine, self._timer_due)
        self._settling = self._flushing = False
        self._fed_bytes = 0
        self._has_news = False
        self._answer_until = 0.0
        self._flushed_at = 0.0
        self._paced: asyncio.TimerHandle | None = None
        self._wake: asyncio.Handle | None = None
        self._packets_since_update = 0
        self._unanswered_since = 0.0
        self._closed = False
        self.received_bytes = 0
        self.sent_bytes = 0
        self.received_at = self._pinged_at = self._loop.time()
        self.add_connection_id(engine.connection_id)

    def connect(self) -> None:
        """Begin the handshake and send its first flight."""
        self._guard(self.engine.connect, self._loop.time())
        self.settle()

    def add_connection_id(self, connection_id: bytes) -> None:
        """Datagrams that bear this ID are ours."""
        if not self._closed:
            self._ids.add(connection_id)
            self._demux.links[connection_id] = self
            self._demux.links[train_id(connection_id)] = self.trains

    def remove_connection_id(self, connection_id: bytes) -> None:
        """The peer retired this ID."""
        self._ids.discard(connection_id)
        if self._demux.links.get(connection_id) is self:
            del self._demux.links[connection_id]
            self._demux.links.pop(train_id(connection_id), None)

    def receive(self, segments: Segments, path: Path) -> None:
        """Feed; call `settle` once after all of a turn's datagrams."""
        if self._closed:
            return
        self.received_bytes += segments.size
        now = self._loop.time()
        try:
            fresh = self.engine.receive(segments.data, segments.segment_bytes, now)
        except Exception as error:
            # Both packages raise anything at all on malformed or unexpected input; it costs this connection.
            self._fail(error)
            return
        if fresh:
            self._fed_bytes += segments.size
            self.received_at = now
            self._unanswered_since = 0.0
            if path != self.path:
                self._handler.path_heard(path)

    def wake(self) -> None:
        """There is something to send or to say: settle at the end of this turn of the loop."""
        if self._settling:
            self._has_news = True  # it ends with a look at what there is
        elif not self._closed:
            self._wake_up()

    def _wake_up(self) -> None:
        self._wake = self._wake or self._loop.call_soon(self._woken)

    def flush(self) -> None:
        """Something was given to the engine: send it at once, and what follows soon together, after this turn."""
        now = self._loop.time()
        if self._settling or (now - self._flushed_at < TOGETHER_S and self.engine.backlog < TOGETHER_BYTES):
            self.wake()
            return
        self._flushed_at = now
        self._flushing = True
        try:
            self._send()
            self._timer.set(0.0 if self.engine.backlog else LOSS_LEAST_S)
        except Exception:
            # As in `settle`; whoever has just written goes on with its work first.
            _log.exception("a connection failed")
            self._loop.call_soon(self.close, INTERNAL_ERROR, OUR_MISTAKE)
        finally:
            self._flushing = False

    def _woken(self) -> None:
        self._wake = None
        self.settle()

    def settle(self) -> None:
        """Dispatch, collect and send until there is nothing left to do now, then set the timer."""
        if self._settling or self._closed:
            return
        self._settling = True
        try:
            self._settle()
        except Exception:
            # A mistake of ours in handling what this peer sent must not cost the other connections of this turn.
            _log.exception("a connection failed")
            self.close(INTERNAL_ERROR, OUR_MISTAKE)
        finally:
            self._settling = False

    def _settle(self) -> None:
        fed_bytes, self._fed_bytes = self._fed_bytes, 0
        self._has_news = False
        now = self._loop.time()
        self.engine.deliver(self._handler, now)
        if fed_bytes:
            self.supply.measure(now)
        lost = self.engine.lost
        if lost != self._lost:
            self._lost = lost
            if not self.supply.is_queued:
                self.trains.expect_losses(now)
        elif 0 < fed_bytes <= ANSWERED_BYTES and not self._has_something():
            self._answer_until = self._answer_until or now + ACK_DELAY_S
            self._timer.set(ACK_DELAY_S)
            return
        for _ in range(SEND_ROUNDS_LIMIT):
            # What waits in the engine leaves first; if nothing does, acknowledgements take the next chunk along.
            more = self._handler.waits_for_room and not self.engine.backlog and self._refill()
            if self._closed:
                return
            self._send()
            if not (more or self._refill()):
                break
        else:
            self._wake_up()
        # Who is held back can do nothing about what is due, and is settled as soon as that ends.
        self._timer.set(pause_s=PAUSE_S if self._can_send() else HELD_PAUSE_S)

    def _refill(self) -> bool:
        """Have the engine given one more chunk, if it may leave now; whether it got one."""
        if self._closed or self._paced is not None or not self._handler.waits_for_room:
            return False
        return self.supply.room > 0 and self._can_send() and self._in_time() and self._handler.room_available()

    def _has_something(self) -> bool:
        """Whether more than an acknowledgement may be sent now; that alone waits for an answer to go with, a while."""
        return self._has_news or self._closed or self._handler.waits_for_room or self.engine.backlog > 0

    def _in_time(self) -> bool:
        """Whether more stream data may leave now; if not, it is tried again when it may."""
        wait_s = self.supply.wait_s()
        if wait_s:
            self._paced = self._loop.call_later(wait_s, self._pace)
        return not wait_s

    def _pace(self) -> None:
        self._paced = None
        self.settle()

    def _can_send(self) -> bool:
        return self.path is not None and not self._demux.holds_back(self, self.path)

    def send_datagrams(self, frames: Sequence[bytes]) -> None:
        """Queue DATAGRAM frames (RFC 9221), each of at most `supply.frame_limit` bytes: all, or none without room.

        No two share a packet that is larger than a datagram: what gets lost on the way is to cost one of them.
        """
        if self._closed or sum(map(len, frames)) > self.engine.datagram_room:
            return
        for frame in frames:
            if self._framed_bytes + len(frame) > self.supply.frame_limit and self._framed_bytes and not self._settling:
                self._collect_apart()
            self._framed_bytes += len(frame)
            self.engine.send_datagram(frame)
        self.wake()

    def _collect_apart(self) -> None:
        if self._can_send():
            self._flushing = True
            self._collect()
            self._flushing = False

    def _collect(self) -> None:
        self._framed_bytes = 0
        self._outbox += self._guard(self.engine.transmit, self._loop.time()) or ()

    def _send(self, *, last: bool = False) -> None:
        path = self.path
        if not (self._can_send() or last):
            return
        self._answer_until = 0.0
        self._collect()
        if not self._outbox or path is None:
            return
        datagrams, self._outbox = self._outbox, []
        segment_bytes = 0
        self._packets_since_update += len(datagrams)
        if datagrams[0][0] & LONG_HEADER_BIT or datagrams[-1][0] & LONG_HEADER_BIT:
            datagrams = [part for d in datagrams for part in self._sealed(d)]
            if not self._sent_first:
                self._send_first(datagrams, path)
        elif max(map(len, datagrams)) > (datagram_bytes := self.supply.size):
            segment_bytes = datagram_bytes
            datagrams = self.trains.split(datagrams, segment_bytes, self._loop.time())
        size = sum(map(len, datagrams))
        self.sent_bytes += size
        self.supply.sent(size)
        self._unanswered_since = self._unanswered_since or self._loop.time()
        self._demux.send(datagrams, path, segment_bytes)

    def _sealed(self, datagram: bytes) -> Iterable[bytes]:
        if not datagram[0] & LONG_HEADER_BIT:
            return self._split(datagram, self.supply.size)
        return map(self._seal, self._split(datagram, self.supply.datagram_bytes - OVERHEAD_BYTES))

    def _split(self, packet: bytes, datagram_bytes: int) -> list[bytes]:
        return [
            each for train in self.trains.split([packet], datagram_bytes, 0.0) for each in cut(train, datagram_bytes)
        ]

    def _send_first(self, datagrams: Sequence[bytes], path: Path) -> None:
        """Send the first flight again if no answer comes; qh3 would take small packets for the connection's life."""
        self._sent_first, heard = True, self.received_bytes

        def again() -> None:
            if not self._closed and self.received_bytes == heard:
                self._demux.send(datagrams, path)

        for after_s in RESEND_FIRST_S:
            self._loop.call_later(after_s, again)

    def keep(self) -> None:
        """Called now and then: a PING before the engines' idle timeouts, a key update every 2^22 packets.

        What comes from the peer, its PING too, has kept both ends.

        AES-GCM wants the update by 2^23 packets (RFC 9001, section 6.6).
        """
        now = self._loop.time()
        if now >= self.keep_due:
            self._pinged_at = now
            self._guard(self.engine.ping, 0)
            self.wake()
        if self._packets_since_update >= KEY_UPDATE_PACKETS:
            # An engine refuses while an earlier update is not answered yet: then the next call tries again.
            with suppress(Exception):
                self.engine.update_keys()
                self._packets_since_update = 0

    @property
    def keep_due(self) -> float:
        """When `keep` has something to do, if nothing is sent before."""
        return max(self._pinged_at, self.received_at) + KEEPALIVE_S

    @property
    def awaits_answer(self) -> bool:
        """Whether something was sent since the peer was last heard."""
        return self._unanswered_since > 0

    def silence_s(self, heard_at: float) -> float:
        """How long we have been sending without an answer; `heard_at`: when the peer was last heard past the engine."""
        if heard_at >= self._unanswered_since:
            self._unanswered_since = 0.0
        return self._loop.time() - self._unanswered_since if self._unanswered_since else 0.0

    def move(self, path: Path | None) -> None:
        """Use this path from now on; None: send nothing until there is one."""
        self.supply.move(path)

    @property
    def path(self) -> Path | None:
        """The path that is used."""
        return self.supply.path

    def kick(self) -> None:
        """The path changed or came back: probe at once instead of after the engine's backed-off timeout."""
        self._guard(self.engine.ping, 0)
        self._send()
        now, timer = self._loop.time(), None if self._closed else self.engine.timer()
        # Only with something unacknowledged is the timer a probe timeout; else it is the end of the connection.
        if timer is not None and timer - now < PROBE_TIMEOUT_LIMIT_S:
            self._guard(self.engine.handle_timer, max(timer, now))
        self.settle()

    def resize(self, datagram_bytes: int) -> None:
        """Use datagrams of this size from now on, also for what is missing."""
        self.supply.datagram_bytes = datagram_bytes
        self.kick()

    def close(self, code: int, reason: str) -> None:
        """Say goodbye in one packet and end; unsent data is dropped."""
        if not self._closed:
            self._guard(self.engine.close, code, reason)
            self._send(last=True)
            self._end(reason)

    def _guard(self, call: Callable[..., _Result], *args: object) -> _Result | None:
        """What a call of the engine returns; None if it failed."""
        try:
            return call(*args)
        except Exception as error:
            # As above: whatever an engine raises is the end of this one connection.
            if self._flushing:  # not amid the work of a flow that has just written
                self._loop.call_soon(self._fail, error)
            else:
                self._fail(error)
            return None

    def _fail(self, error: Exception) -> None:
        _log.debug("engine %s failed: %r", self.engine.name, error)
        self._end(f"engine error {type(error).__name__}")

    def _end(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        for connection_id in tuple(self._ids):
            self.remove_connection_id(connection_id)
        self._timer.close()
        for handle in (self._wake, self._paced):
            if handle is not None:
                handle.cancel()
        self._handler.link_closed(reason)

    def ended(self, reason: str) -> None:
        """The engine reported the end of the connection."""
        self._end(reason)

    @property
    def closed(self) -> bool:
        return self._closed

    def _timer_due(self, at: float | None) -> None:
        wait_s = self._answer_until - self._loop.time()
        if wait_s > 0 and not self._has_something():
            self._timer.set(wait_s)  # it was meant for what has left since
            return
        if at is not None:
            self._guard(self.engine.handle_timer, at)
        self.settle()
