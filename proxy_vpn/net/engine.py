"""One QUIC connection as a state machine without I/O (RFC 9000), whichever package does the work.

An Engine never sees the network: it is created with one constant dummy peer address and the driver decides
where its packets go, so paths may change under it. Calls may raise whatever the package raises on hostile
input; the driver (net.quic) treats any exception as the end of that one connection.
"""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from proxy_vpn.errors import WireError
from proxy_vpn.net.tls import ALPN, SecretsLog

CONNECTION_ID_BYTES = 8
HANDSHAKE_DATAGRAM_BYTES = 1200
STREAMS_LIMIT = 1024
IDLE_TIMEOUT_S = 60.0
MAX_DATA_BYTES = 64 << 20
MAX_STREAM_DATA_BYTES = 32 << 20
DATAGRAM_FRAME_BYTES = 65535
BACKLOG_BYTES = 64 * 1024
DATAGRAM_BURST_BYTES = 256 * 1024
ROOM_LIMIT_BYTES = 1 << 20
ROOM_LEAST_BYTES = 1024
PEER_ADDRESS = ("192.0.2.1", 4433)
LONG_HEADER_BIT = 0x80


class EngineHandler(Protocol):
    """What an engine reports, in order, from `Engine.deliver`."""

    def handshake_completed(self) -> None: ...

    def stream_data_received(self, stream_id: int, data: bytes, end: bool) -> None: ...

    def stream_reset_received(self, stream_id: int, code: int) -> None: ...

    def stop_sending_received(self, stream_id: int, code: int) -> None: ...

    def datagram_received(self, data: bytes) -> None: ...

    def ping_acknowledged(self, number: int) -> None: ...

    def connection_id_issued(self, connection_id: bytes) -> None: ...

    def connection_id_retired(self, connection_id: bytes) -> None: ...

    def terminated(self, code: int, reason: str) -> None: ...


def configure(make: Callable[..., Any], is_client: bool, size: int, secrets: SecretsLog) -> Any:
    """A package's QuicConfiguration with what all our connections have; verification is off because AUTH does it."""
    configuration = make(
        is_client=is_client,
        alpn_protocols=[ALPN],
        connection_id_length=CONNECTION_ID_BYTES,
        idle_timeout=IDLE_TIMEOUT_S,
        max_data=MAX_DATA_BYTES,
        max_stream_data=MAX_STREAM_DATA_BYTES,
        max_datagram_size=size,
        max_datagram_frame_size=DATAGRAM_FRAME_BYTES,
        secrets_log_file=secrets,
    )
    if is_client:
        configuration.verify_mode = ssl.CERT_NONE
    return configuration


class StreamsExhausted(Exception):
    """The peer allows no further stream for now."""


class Engine(ABC):
    """What both packages share (qh3 speaks aioquic's API); sizes in bytes, times in seconds of the loop's clock."""

    name: str
    frame_overhead_bytes: int  # of a packet with one DATAGRAM frame

    def __init__(self, quic: Any, secrets: SecretsLog, size: int) -> None:
        self.size = size  # of the largest packets
        self._quic = quic
        self._secrets = secrets
        self.connection_id: bytes = quic.host_cid

    def connect(self, now: float) -> None:
        """Begin the handshake (client only)."""
        self._quic.connect(PEER_ADDRESS, now)

    @abstractmethod
    def receive(self, data: bytes, segment_bytes: int, now: float) -> bool:
        """Take one or more datagrams of this connection, laid end to end; all but the last have `segment_bytes`.

        True if one of them was authentic and new: neither forged nor sent again by somebody else.
        """

    def deliver(self, handler: EngineHandler, now: float) -> None:
        """Report what happened since the last call."""
        next_event = self._quic.next_event
        while (event := next_event()) is not None:
            report = _REPORTS.get(type(event).__name__)
            if report is not None:
                report(handler, event)

    @abstractmethod
    def transmit(self, now: float) -> list[bytes]:
        """The datagrams to send now."""

    def timer(self) -> float | None:
        """When `handle_timer` is due."""
        at: float | None = self._quic.get_timer()
        return at

    def handle_timer(self, now: float) -> None:
        """The timer is due."""
        self._quic.handle_timer(now)

    def open_stream(self) -> int:
        """A new bidirectional stream; raises StreamsExhausted."""
        stream_id: int = self._quic.get_next_available_stream_id()
        if stream_id // 4 >= self._streams_allowed:
            raise StreamsExhausted
        return stream_id

    @property
    @abstractmethod
    def _streams_allowed(self) -> int:
        """How many bidirectional streams the peer lets us open in all."""

    def send(self, stream_id: int, data: bytes | memoryview, end: bool = False) -> None:
        """Queue bytes (copied) and perhaps the end of a stream."""
        self._quic.send_stream_data(stream_id, data, end)

    def abort(self, stream_id: int, code: int) -> None:
        """Reset our direction and refuse theirs; nothing happens on an ended stream."""
        # Both calls raise for a direction that has already ended; then there is nothing to break in it.
        with suppress(Exception):
            self._quic.reset_stream(stream_id, code)
        self.refuse(stream_id, code)

    def refuse(self, stream_id: int, code: int) -> None:
        """Take no more of a stream (STOP_SENDING); nothing happens on one that has ended."""
        with suppress(Exception):  # raises when the peer's direction has ended
            self._quic.stop_stream(stream_id, code)

    def send_datagram(self, frame: bytes) -> None:
        """Queue a DATAGRAM frame (RFC 9221), which must fit into a packet; dropped if there is no room.

        Neither package bounds them: qh3 sends them whatever its congestion window says, aioquic queues them for good.
        """
        if len(frame) <= self.datagram_room:
            with suppress(Exception):  # raises once the peer has closed, though the event that says so is on its way
                self._quic.send_datagram_frame(frame)

    @property
    @abstractmethod
    def datagram_room(self) -> int:
        """How many bytes of DATAGRAM frames may be queued: what the congestion window lets out, and a burst."""

    def ping(self, number: int) -> None:
        """Send a PING; its acknowledgement is reported with `number`."""
        self._quic.send_ping(number)

    def close(self, code: int, reason: str) -> None:
        """Close at once; unsent data is dropped."""
        self._quic.close(error_code=code, reason_phrase=reason)

    @property
    @abstractmethod
    def backlog(self) -> int:
        """Stream bytes queued and never sent yet."""

    @property
    def room(self) -> int:
        """How many more bytes of stream data may be queued now; below 0 if more are than can leave soon."""
        return room_within(ROOM_LIMIT_BYTES, self.backlog)

    @property
    @abstractmethod
    def window(self) -> int:
        """The congestion window in bytes."""

    @property
    def pace(self) -> tuple[int, float | None, bool] | None:
        """Congestion window in bytes, smoothed round trip and whether it is slow start; None if it paces itself."""
        return None

    @abstractmethod
    def moved(self, now: float) -> None:
        """What is sent from now on takes another path, of which nothing is known."""

    @property
    @abstractmethod
    def unacknowledged(self) -> int:
        """Bytes queued or in flight: 0 once all that was sent has arrived."""

    @property
    @abstractmethod
    def lost(self) -> int:
        """How many packets were found lost so far."""

    @property
    @abstractmethod
    def rtt_s(self) -> float | None:
        """The smoothed round trip."""

    @property
    @abstractmethod
    def latest_rtt_s(self) -> float | None:
        """The last round trip measured."""

    def secrets(self) -> tuple[bytes, bytes]:
        """The client's and the server's first application traffic secret, once; raises WireError."""
        return self._secrets.take()

    def update_keys(self) -> None:
        """Begin a key update (RFC 9001, section 6)."""
        self._quic.request_key_update()


def room_within(limit: int, backlog: int) -> int:
    """`Engine.room` while at most `limit` bytes may be unsent and `backlog` are: one large write, then no more."""
    room = limit - backlog
    return min(room, 0) if backlog >= BACKLOG_BYTES or room < ROOM_LEAST_BYTES else room


_REPORTS: dict[str, Callable[[EngineHandler, Any], None]] = {
    "StreamDataReceived": lambda to, event: to.stream_data_received(event.stream_id, event.data, event.end_stream),
    "DatagramFrameReceived": lambda to, event: to.datagram_received(event.data),
    "StreamReset": lambda to, event: to.stream_reset_received(event.stream_id, event.error_code),
    "StopSendingReceived": lambda to, event: to.stop_sending_received(event.stream_id, event.error_code),
    "PingAcknowledged": lambda to, event: to.ping_acknowledged(event.uid),
    "ConnectionIdIssued": lambda to, event: to.connection_id_issued(event.connection_id),
    "ConnectionIdRetired": lambda to, event: to.connection_id_retired(event.connection_id),
    "HandshakeCompleted": lambda to, event: to.handshake_completed(),
    "ConnectionTerminated": lambda to, event: to.terminated(event.error_code, event.reason_phrase),
}


class EngineFactory(Protocol):
    """Makes connections; its name says by which package."""

    name: str

    def __call__(self, is_client: bool, size: int, destination: bytes = b"") -> Engine:
        """`size`: of packets; `destination`: the original destination connection ID, for a server."""


def initial_destination(datagram: bytes) -> bytes:
    """The destination connection ID of a QUIC v1 Initial of at least 1200 bytes; raises WireError for others."""
    if len(datagram) < HANDSHAKE_DATAGRAM_BYTES or datagram[0] & 0xF0 != 0xC0 or datagram[1:5] != b"\0\0\0\1":
        raise WireError("not a QUIC v1 Initial")
    return long_destination(datagram)


def long_destination(datagram: bytes) -> bytes:
    """The destination connection ID of a long-header packet; raises WireError."""
    if len(datagram) < 7 or not datagram[0] & LONG_HEADER_BIT:
        raise WireError("not a QUIC long header")
    length = datagram[5]
    if not CONNECTION_ID_BYTES <= length <= 20 or len(datagram) < 6 + length:
        raise WireError("a connection ID of a wrong length")
    return datagram[6 : 6 + length]
