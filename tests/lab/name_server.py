"""A name server that knows everything: each name has the one IPv4 address, and much text that only TCP can carry.

Run as `python -m tests.lab.name_server LISTEN_IP IP`; prints `asked NAME TYPE` for each query.
"""

from __future__ import annotations

import socketserver
import sys
import threading

from scapy.layers.dns import DNS, DNSRR

PORT = 53
DATAGRAM_BYTES = 512
STREAM_BYTES = 65536
A, TXT = 1, 16
MUCH = [b"x" * 250] * 12


def respond(data: bytes, most: int) -> bytes:
    """The response, or one that says that it is too large."""
    query = DNS(data)
    asked = query.qd[0]
    print("asked", asked.qname.decode(), asked.qtype, flush=True)
    one = {"type": A, "rdata": sys.argv[2]} if asked.qtype == A else {"type": TXT, "rdata": MUCH}
    said = bytes(DNS(id=query.id, qr=1, rd=1, ra=1, qd=query.qd, an=[DNSRR(rrname=asked.qname, **one)]))
    return said if len(said) < most else bytes(DNS(id=query.id, qr=1, rd=1, ra=1, tc=1, qd=query.qd))


class Datagrams(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request[1].sendto(respond(self.request[0], DATAGRAM_BYTES), self.client_address)


class Streams(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while size := self.rfile.read(2):
            said = respond(self.rfile.read(int.from_bytes(size, "big")), STREAM_BYTES)
            self.wfile.write(len(said).to_bytes(2, "big") + said)


def main() -> None:
    streams = socketserver.ThreadingTCPServer((sys.argv[1], PORT), Streams)
    threading.Thread(target=streams.serve_forever, daemon=True).start()
    server = socketserver.UDPServer((sys.argv[1], PORT), Datagrams)
    print("serving", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
