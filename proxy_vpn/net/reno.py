"""aioquic's NewReno (RFC 9002, appendix B), which counts losses, grows only while used, and starts anew elsewhere."""

from __future__ import annotations

from collections.abc import Iterable

from aioquic.quic.congestion.base import QuicRttMonitor, register_congestion_control
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.packet_builder import QuicSentPacket

from proxy_vpn.net.window import Usage

NAME = "pvpn"


class Reno(RenoCongestionControl):
    """The congestion control of one connection; see net.window for why it isn't aioquic's own."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self.lost = 0
        self._first_window = self.congestion_window
        self._usage = Usage(max_datagram_size)

    def on_packet_sent(self, *, packet: QuicSentPacket) -> None:
        super().on_packet_sent(packet=packet)
        self._usage.sent(self.bytes_in_flight)

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        window = self.congestion_window
        super().on_packet_acked(now=now, packet=packet)
        if not self._usage.arrived(packet.sent_bytes, self.bytes_in_flight, window):
            self.congestion_window = window

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        packets = list(packets)
        self.lost += len(packets)
        super().on_packets_lost(now=now, packets=packets)

    def move(self, now: float) -> None:
        """The path is another: what was sent before `now` says nothing about it."""
        self.congestion_window, self.ssthresh = self._first_window, None
        self._congestion_recovery_start_time = now
        self._congestion_stash = 0
        self._rtt_monitor = QuicRttMonitor()  # else the former path's shorter round trips would end slow start at once
        self._usage = Usage(self._max_datagram_size)


register_congestion_control(NAME, Reno)
