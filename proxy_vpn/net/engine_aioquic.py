"""The aioquic engine: pure Python; used where qh3 has no wheel, and by `--engine aioquic`.

What is absorbed here: it announces 128 streams; its send backlog is private; its datagram size is a plain
attribute that must stay at 1200 until the handshake is done; one DATAGRAM that is too large blocks the rest.
"""

from __future__ import annotations

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.tls import Epoch

from proxy_vpn.net import reno
from proxy_vpn.net.engine import (
    DATAGRAM_BURST_BYTES,
    HANDSHAKE_DATAGRAM_BYTES,
    PEER_ADDRESS,
    STREAMS_LIMIT,
    Engine,
    configure,
)
from proxy_vpn.net.tls import SecretsLog, certificate


class AioquicEngine(Engine):
    """A connection on aioquic's state machine."""

    name = "aioquic"
    frame_overhead_bytes = 50

    def __init__(self, is_client: bool, size: int, destination: bytes = b"") -> None:
        secrets = SecretsLog()
        configuration = configure(QuicConfiguration, is_client, HANDSHAKE_DATAGRAM_BYTES, secrets)
        if not is_client:
            own = certificate()
            configuration.certificate, configuration.private_key = own.certificate, own.key
        configuration.congestion_control_algorithm = reno.NAME
        quic = QuicConnection(
            configuration=configuration, original_destination_connection_id=None if is_client else destination
        )
        quic._local_max_streams_bidi.value = STREAMS_LIMIT
        quic._local_max_streams_uni.value = 0
        super().__init__(quic, secrets, size)
        self._written: set[int] = set()

    @property
    def _control(self) -> reno.Reno:
        control: reno.Reno = self._quic._loss._cc
        return control

    @property
    def lost(self) -> int:
        return self._control.lost

    def moved(self, now: float) -> None:
        self._control.move(now)

    def receive(self, data: bytes, segment_bytes: int, now: float) -> bool:
        before = self._largest_received
        for start in range(0, len(data), segment_bytes):
            self._quic.receive_datagram(data[start : start + segment_bytes], PEER_ADDRESS, now)
        if self._quic._handshake_confirmed:  # no datagram bears a long header any more
            self._quic._max_datagram_size = self.size
        return self._largest_received > before

    @property
    def _largest_received(self) -> int:
        """The largest packet number of the application space so far."""
        space = self._quic._spaces.get(Epoch.ONE_RTT)
        return space.largest_received_packet if space is not None else -1

    def transmit(self, now: float) -> list[bytes]:
        if not self._quic._network_paths:
            return []
        return [data for data, _ in self._quic.datagrams_to_send(now)]

    @property
    def _streams_allowed(self) -> int:
        count: int = self._quic._remote_max_streams_bidi
        return count

    def send(self, stream_id: int, data: bytes | memoryview, end: bool = False) -> None:
        self._quic.send_stream_data(stream_id, bytes(data), end)
        self._written.add(stream_id)

    @property
    def datagram_room(self) -> int:
        return DATAGRAM_BURST_BYTES - sum(map(len, self._quic._datagrams_pending))

    @property
    def window(self) -> int:
        return int(self._quic._loss.congestion_window)

    @property
    def backlog(self) -> int:
        total = 0
        for stream_id in tuple(self._written):
            stream = self._quic._streams.get(stream_id)
            unsent = 0
            if stream is not None and not stream.sender.is_finished and stream.sender._reset_error_code is None:
                unsent = stream.sender._buffer_stop - stream.sender.highest_offset
            if unsent > 0:
                total += unsent
            else:
                self._written.discard(stream_id)
        return total

    @property
    def unacknowledged(self) -> int:
        return self.backlog + int(self._quic._loss.bytes_in_flight)

    @property
    def rtt_s(self) -> float | None:
        loss = self._quic._loss
        return loss._rtt_smoothed if loss._rtt_initialized else None

    @property
    def latest_rtt_s(self) -> float | None:
        loss = self._quic._loss
        return loss._rtt_latest if loss._rtt_initialized else None
