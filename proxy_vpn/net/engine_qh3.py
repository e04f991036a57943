"""The qh3 engine: a native core; the default.

What is absorbed here (each was reproduced): its core's constructor takes the peer's address as not validated
(an aioquic client then makes it raise); it allows 100 streams; half of its send cost is logging that runs
without a logger; it tells a client's peer to send no packets over 1472 bytes; its congestion window grows
unused and outlives a change of paths (net.window).

Worst, it takes frames of up to 16 streams at once from their queues and puts aside what no packet had room for while
the congestion window was full. While some are aside, reporting that their stream has finished makes it forget the
stream, and sending them then breaks the connection or loses the ends of others; and it sends no acknowledgements, so
that two such ends wait for each other. So its events are held back while frames may be aside, and stream data is
given to it only as the window has room (`room`).

Not absorbed: each probe doubles the MAX_STREAMS frames that were not acknowledged, so that minutes on a line that loses
half of all datagrams may end with megabytes of them.
"""

from __future__ import annotations

from typing import Any

from qh3._hazmat import Buffer, QuicConnectionCore
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection
from qh3.quic.packet import pull_quic_transport_parameters, push_quic_transport_parameters
from qh3.quic.tls_bridge import QuicTlsBridge

from proxy_vpn.net.engine import (
    DATAGRAM_BURST_BYTES,
    LONG_HEADER_BIT,
    PEER_ADDRESS,
    STREAMS_LIMIT,
    Engine,
    EngineHandler,
    configure,
    room_within,
)
from proxy_vpn.net.tls import SecretsLog, certificate
from proxy_vpn.net.window import ProvenWindow

_QUIC_V1 = 1
_ACCEPTED = 2  # of the core's report: (datagrams, bytes, accepted, duplicates, dropped, ...)
_STREAM_OVERHEAD_BYTES = 64
_ACK_DELAY_EXPONENT = 3
_MAX_ACK_DELAY_S = 0.025
_UNI_STREAMS_LIMIT = 0
_PAYLOAD_LIMIT_BYTES = 65527  # it would allow 1472, though it takes any
_TRANSPORT_PARAMETERS_BYTES = 4096
_UNPACED_TIMERS = ("idle", "loss_detection")  # the earliest timer: so the pacer holds nothing back
_ACK_TIMER, _PACING_TIMER = "ack_application", "pacing"
_SMALL_ACK_DELAY_S = 0.004  # past the core's own millisecond; the peer allows 25 (RFC 9000, section 18.2)
_LOSSY_S = 2.0
_STREAMS_A_PACKET = 16
_SHORT_BYTES = 1024


class _Bridge(QuicTlsBridge):
    """TLS that tells the peer of our own stream limits."""

    def serialize_transport_parameters(self) -> bytes:
        parameters = pull_quic_transport_parameters(Buffer(data=super().serialize_transport_parameters()))
        parameters.initial_max_streams_bidi = STREAMS_LIMIT
        parameters.initial_max_streams_uni = _UNI_STREAMS_LIMIT
        parameters.max_udp_payload_size = _PAYLOAD_LIMIT_BYTES
        buffer = Buffer(capacity=_TRANSPORT_PARAMETERS_BYTES)
        push_quic_transport_parameters(buffer, parameters)
        return bytes(buffer.data)


class _Frames:
    """Whether the core may have put frames aside, and whether it is worth while to poll it.

    It takes them from streams only when polled with room for a datagram in the congestion window or with a probe due,
    and sends what it holds as long as there is room. So none is aside after polls that ended with room, nor if no
    stream had anything to send, or to send again, since.
    """

    def __init__(self, core: Any) -> None:
        self.aside = False
        self.is_due = True
        self._core = core
        self._work = False
        self._added = 0
        self._resends = False
        self._lost = (0, 0)

    def added(self) -> None:
        """A stream has something to send."""
        self._work = True
        self._added += 1

    def polling(self) -> bool:
        """The core is about to be polled; whether it has found losses, or thinks of some, since the last time."""
        lost = (self._core.loss_total, self._core.pto_total)
        if lost == self._lost:
            return False
        self._lost = lost
        self._work = self._resends = True
        return True

    def all_in(self, datagram: bytes) -> bool:
        """Whether it can tell from the last datagram that there is no other: a short one took all there was."""
        return (
            len(datagram) < _SHORT_BYTES
            and not self._resends
            and self._added <= _STREAMS_A_PACKET
            and not datagram[0] & LONG_HEADER_BIT
            and not self._core.get_send_buffer_size(None)
        )

    def polled(self, size: int, *, all_in: bool) -> None:
        """The core has no more to send now, in datagrams of `size` bytes; it said so unless we knew (`all_in`)."""
        core = self._core
        self._added = 0
        timer = core.get_timer()
        kind = timer[0] if timer is not None else ""
        unsent = core.get_send_buffer_size(None) > 0
        if self._work:
            self.aside = core.congestion_window < core.bytes_in_flight + size and core.state == "connected"
            self._work = all_in or self.aside or unsent or kind not in _UNPACED_TIMERS
            self._resends = self._resends and self._work
        self.is_due = self.aside or unsent or kind == _PACING_TIMER


class _Connection(QuicConnection):
    """qh3's connection with a validated peer, our limits and no logging."""

    def _create_core(self, remote_addr: Any, initial_dcid: bytes, now: float) -> None:
        configuration = self._configuration
        self._core = QuicConnectionCore(
            self._is_client,
            _QUIC_V1,
            ("0.0.0.0", 0),
            remote_addr,
            self.host_cid,
            initial_dcid,
            True,  # our cookie validated the peer's address before the first QUIC byte
            configuration.active_connection_id_limit or (2 if self._is_client else 8),
            configuration.max_datagram_size,
            False,
            configuration.idle_timeout,
            _ACK_DELAY_EXPONENT,
            configuration.max_datagram_frame_size,
            None,
            configuration.max_data,
            0,
            configuration.max_stream_data,
            0,
            0,
            0,
            configuration.max_stream_data,
            STREAMS_LIMIT,
            _UNI_STREAMS_LIMIT,
            0,
            0,
            configuration.initial_rtt,
            _MAX_ACK_DELAY_S,
            now,
        )
        self._applied_transport_parameters = None
        self._pre_handshake_state_replayed = False
        self.frames = _Frames(self._core)
        self._heard_small = False
        self.lossy_until = 0.0
        self.proven = ProvenWindow(self._core.congestion_window, configuration.max_datagram_size)

    def _create_tls(self, remote_source_cid: bytes | None) -> QuicTlsBridge:
        self._tls = _Bridge(
            self._configuration,
            version=_QUIC_V1,
            local_initial_source_connection_id=self.host_cid,
            remote_initial_source_connection_id=remote_source_cid,
            original_destination_connection_id=self._original_destination_connection_id,
            retry_source_connection_id=None,
            session_ticket_fetcher=None,
            session_ticket_handler=None,
            quic_logger=None,
            version_change_handler=self._set_version,
        )
        return self._tls

    def _call_core(self, operation: Any, *args: Any) -> Any:
        """Whatever is asked of the core comes through here, and may leave it something to send."""
        self.frames.is_due = True
        return super()._call_core(operation, *args)

    @property
    def next_timer(self) -> tuple[str, float] | None:
        """What the core wants to be called for, and when."""
        timer: tuple[str, float] | None = None if self._core is None else self._core.get_timer()
        return timer

    def get_timer(self) -> float | None:
        """When the core is to be called; what acknowledges a small datagram waits longer, for something to go with.

        But nothing larger, and not while the line loses datagrams: there bulk waits for acknowledgements, and for the
        timers of losses behind this one.
        """
        timer = self.next_timer
        if timer is None:
            return None
        kind, at = timer
        waits = kind == _ACK_TIMER and self._heard_small and at > self.lossy_until
        return at + _SMALL_ACK_DELAY_S if waits else at

    def handle_timer(self, now: float) -> None:
        timer = self.next_timer
        if timer is not None and timer[0] == _ACK_TIMER:
            # Polling sends acknowledgements that are due; those which its timer queues would wait for the pacer.
            self.frames.is_due = True
        else:
            super().handle_timer(now)
            self._prove()

    def _prove(self) -> None:
        if (core := self._core) is not None and (in_flight := core.bytes_in_flight) != self.proven.in_flight:
            self.proven.heard(core.congestion_window, in_flight)

    def _log_datagram(self, event: str, data: bytes) -> None:
        pass

    def _log_packets(self, event: str, data: bytes) -> None:
        pass

    def _drain_core(self) -> None:
        if not self._handshake_complete or not self.frames.aside:
            super()._drain_core()

    def receive_segments(self, data: bytes, segment_bytes: int, now: float) -> bool:
        """GRO buffers go to the native core whole; True if it accepted a packet."""
        self._heard_small = len(data) <= _SHORT_BYTES
        report = self._require_core().receive_gro_buffer(data, segment_bytes, PEER_ADDRESS, now)
        self._prove()
        self.frames.is_due = True
        self._drain_core()
        return report[_ACCEPTED] > 0

    @property
    def is_established(self) -> bool:
        return bool(self._handshake_complete)


class Qh3Engine(Engine):
    """A connection on qh3's native core."""

    name = "qh3"
    frame_overhead_bytes = 30

    def __init__(self, is_client: bool, size: int, destination: bytes = b"") -> None:
        secrets = SecretsLog()
        configuration = configure(QuicConfiguration, is_client, size, secrets)
        configuration.probe_datagram_size = False
        if not is_client:
            own = certificate()
            configuration.load_cert_chain(own.certificate_pem, own.key_pem)
        quic = _Connection(
            configuration=configuration, original_destination_connection_id=None if is_client else destination
        )
        super().__init__(quic, secrets, size)
        self._drained: list[bytes] = []
        self._datagrams_queued = 0

    def receive(self, data: bytes, segment_bytes: int, now: float) -> bool:
        if self._quic.is_established:
            fresh: bool = self._quic.receive_segments(data, segment_bytes, now)
            return fresh
        for start in range(0, len(data), segment_bytes):
            self._quic.receive_datagram(data[start : start + segment_bytes], PEER_ADDRESS, now)
        return False

    def deliver(self, handler: EngineHandler, now: float) -> None:
        quic = self._quic
        if quic._core is not None and quic.frames.aside:
            self._drained += self._poll(now)
            quic._drain_core()
        super().deliver(handler, now)

    def send_datagram(self, frame: bytes) -> None:
        super().send_datagram(frame)
        self._datagrams_queued += min(len(frame), max(self.datagram_room, 0))

    @property
    def datagram_room(self) -> int:
        return self._window_room + DATAGRAM_BURST_BYTES - self._datagrams_queued

    @property
    def window(self) -> int:
        quic = self._quic
        return 0 if quic._core is None else int(quic.proven.bytes)

    @property
    def _window_room(self) -> int:
        """How much more the congestion window lets out now."""
        quic = self._quic
        return 0 if quic._core is None else int(quic.proven.limit - quic._core.bytes_in_flight)

    def moved(self, now: float) -> None:
        if self._quic._core is not None:
            self._quic.proven.move()

    def transmit(self, now: float) -> list[bytes]:
        self._datagrams_queued = 0
        if self._drained:
            drained, self._drained = self._drained, []
            return drained + self._poll(now)
        return self._poll(now)

    def _poll(self, now: float) -> list[bytes]:
        quic = self._quic
        if quic._core is None or not quic.frames.is_due:
            return []
        poll, frames = quic._core.poll_transmit, quic.frames
        datagrams, all_in = [], False
        if frames.polling():
            quic.lossy_until = now + _LOSSY_S
        while not all_in and (transmit := poll(now)) is not None:
            datagrams.append(transmit[0])
            all_in = frames.all_in(transmit[0])
        frames.polled(self.size, all_in=all_in)
        quic.proven.sent(quic._core.congestion_window, quic._core.bytes_in_flight)
        return datagrams

    def send(self, stream_id: int, data: bytes | memoryview, end: bool = False) -> None:
        self._quic.frames.added()
        super().send(stream_id, data, end)

    def abort(self, stream_id: int, code: int) -> None:
        self._quic.frames.added()
        super().abort(stream_id, code)

    def refuse(self, stream_id: int, code: int) -> None:
        self._quic.frames.added()
        super().refuse(stream_id, code)

    @property
    def _streams_allowed(self) -> int:
        count: int = self._quic.max_concurrent_bidi_streams
        return count

    @property
    def backlog(self) -> int:
        # What get_send_buffer_size tells, without its checks.
        quic = self._quic
        if quic._core is None or quic._close_event is not None or not quic._pre_handshake_state_replayed:
            return int(quic.get_send_buffer_size())
        return int(quic._core.get_send_buffer_size(None))

    @property
    def room(self) -> int:
        # One datagram less than the window has room for: then it never ends full, and nothing is put aside.
        window = (self._window_room - self.size) * (self.size - _STREAM_OVERHEAD_BYTES) // self.size
        return room_within(window, self.backlog)

    @property
    def pace(self) -> tuple[int, float | None, bool] | None:
        # Its own pacer lets a whole window out at once.
        core = self._quic._core
        return None if core is None else (self.window, core.smoothed_rtt, self._quic.proven.is_starting)

    @property
    def unacknowledged(self) -> int:
        core = self._quic._core
        return self.backlog + (0 if core is None else int(core.bytes_in_flight))

    @property
    def lost(self) -> int:
        core = self._quic._core
        return 0 if core is None else int(core.loss_total)

    @property
    def rtt_s(self) -> float | None:
        core = self._quic._core
        rtt_s: float | None = None if core is None else core.smoothed_rtt
        return rtt_s

    @property
    def latest_rtt_s(self) -> float | None:
        core = self._quic._core
        rtt_s: float | None = None if core is None else core.latest_rtt
        return rtt_s
