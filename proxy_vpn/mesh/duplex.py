"""The one interface at the edges: a Duplex is a two-way byte stream, a Sink is whoever it delivers to.

Bytes are paid for end to end. A Duplex delivers only so many bytes that its sink has not yet reported as
`consumed`; whatever is written to a Duplex is reported back by `Sink.written` once it left this process's
queues. Joining two of them (doors.pump) is then: data -> write, written -> consumed. No queue between them
can outgrow the source's window, so `write` never has to refuse.

    source --data_received--> splice --write--> target
    source <----consumed----- splice <-written-- target
"""

from __future__ import annotations

from typing import Protocol


class Sink(Protocol):
    """What a Duplex delivers to. Called on the event loop; must not raise and must not block."""

    def data_received(self, data: bytes) -> None:
        """Bytes arrived, in order. Each must be reported to the Duplex by `consumed` once it is dealt with."""

    def eof_received(self) -> None:
        """The far end finished its direction cleanly; every byte of it has been delivered before."""

    def written(self, size: int) -> None:
        """`size` more of the bytes given to `write` have left this process's queues."""

    def finished(self) -> None:
        """Both directions ended cleanly; at most one of `finished` and `lost` is called, once, as the last."""

    def lost(self, error: Exception) -> None:
        """The stream broke (reset, peer lost): bytes may be missing; nothing is called after this."""


class Duplex(Protocol):
    """A two-way byte stream with end-to-end backpressure and half-close."""

    def start(self, sink: Sink) -> None:
        """Deliver to `sink` from now on; called once. Bytes that arrived earlier are delivered first."""

    def write(self, data: bytes | memoryview) -> None:
        """Send `data`; ignored once the stream is lost or reset. The buffer is copied or kept, never changed."""

    def write_eof(self) -> None:
        """End the outgoing direction after all that was written; idempotent."""

    def consumed(self, size: int) -> None:
        """The sink has dealt with `size` more delivered bytes: room for as many new ones (not delivered within)."""

    def reset(self) -> None:
        """Break both directions at once (TCP RST, QUIC reset); idempotent; the sink hears nothing more.

        A direction that `write_eof` has ended is still delivered; only the other one is broken then.
        """
