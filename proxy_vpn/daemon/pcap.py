"""The pcap stream between the running process and `pvpn capture`: its bounds, and taking it apart into records."""

from __future__ import annotations

import struct
from typing import Final

from proxy_vpn.errors import ControlError

SNAP_MIN_BYTES: Final = 64
SNAP_LIMIT_BYTES: Final = 262_144
PCAP_TYPE: Final = "application/vnd.tcpdump.pcap"
CAPTURE_HEADER: Final = "Pvpn-Capture"  # of the HTTP answer: the capture's id
FILE_HEADER_BYTES: Final = 24
RECORD_HEADER: Final = struct.Struct("=8xI4x")  # the length of what follows


class Records:
    """A pcap stream taken apart: the file header first, then whole records."""

    def __init__(self) -> None:
        self.header = b""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The records that are complete now; raises ControlError for what is no pcap."""
        self._buffer += data
        at, records = 0, []
        if not self.header:
            if len(self._buffer) < FILE_HEADER_BYTES:
                return []
            self.header = bytes(self._buffer[:FILE_HEADER_BYTES])
            at = FILE_HEADER_BYTES
        while len(self._buffer) - at >= RECORD_HEADER.size:
            (size,) = RECORD_HEADER.unpack_from(self._buffer, at)
            if size > SNAP_LIMIT_BYTES:
                raise ControlError("the running pvpn sent no packets that make sense", "restart it")
            end = at + RECORD_HEADER.size + size
            if len(self._buffer) < end:
                break
            records.append(bytes(self._buffer[at:end]))
            at = end
        del self._buffer[:at]
        return records
