"""A kernel filter for UDP sockets: DHT queries nobody will answer are dropped before they cost us anything.

A read-only DHT node (BEP 43) answers no query, so while we are one, a datagram that begins with `d` and ends with
`1:y1:qe` is of no use. A datagram of QUIC fits with a chance of 2^-62.
"""

from __future__ import annotations

import socket

from proxy_vpn.net import bpf

_ENDING = b"1:y1:qe"
_PROGRAM = (
    (bpf.LOAD_BYTE, 0, 0, bpf.UDP_HEADER_BYTES),
    (bpf.IF_EQUAL, 0, 9, ord("d")),
    (bpf.LOAD_LENGTH, 0, 0, 0),
    (bpf.SUBTRACT, 0, 0, len(_ENDING)),
    (bpf.TO_INDEX, 0, 0, 0),
    (bpf.LOAD_WORD_X, 0, 0, 0),
    (bpf.IF_EQUAL, 0, 4, int.from_bytes(_ENDING[:4], "big")),
    (bpf.LOAD_HALF_X, 0, 0, 4),
    (bpf.IF_EQUAL, 0, 2, int.from_bytes(_ENDING[4:6], "big")),
    (bpf.LOAD_BYTE_X, 0, 0, 6),
    (bpf.IF_EQUAL, 1, 0, _ENDING[6]),
    (bpf.RETURN, 0, 0, bpf.PASS),
    (bpf.RETURN, 0, 0, bpf.DROP),
)


def drop_dht_queries(sock: socket.socket) -> bool:
    """Attach the filter; False where the system has none (then queries are dropped later)."""
    return bpf.attach(sock, _PROGRAM)
