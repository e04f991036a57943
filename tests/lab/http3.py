"""HTTP/3 over aioquic: `serve PORT DIRECTORY` answers every GET with `hello over h3`, `get HOST PORT` prints it."""

from __future__ import annotations

import asyncio
import ssl
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ANSWER_S = 15.0
BODY = b"hello over h3"


class Http3(QuicConnectionProtocol):
    """One end of a connection; the server's answers, the client's collects."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.http = H3Connection(self._quic)
        self.body = b""
        self.ended = asyncio.Event()

    def quic_event_received(self, event: QuicEvent) -> None:
        for each in self.http.handle_event(event):
            self.http_event_received(each)

    def http_event_received(self, event: H3Event) -> None:
        if isinstance(event, HeadersReceived) and not self._quic.configuration.is_client:
            self.http.send_headers(event.stream_id, [(b":status", b"200")])
            self.http.send_data(event.stream_id, BODY, end_stream=True)
            self.transmit()
        elif isinstance(event, DataReceived):
            self.body += event.data
            if event.stream_ended:
                self.ended.set()


def certify(directory: Path) -> tuple[Path, Path]:
    """A certificate for nobody in particular, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "peer-b")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = (
        builder.serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    )
    certificate = builder.sign(key, hashes.SHA256())
    paths = directory / "h3.crt", directory / "h3.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    paths[1].write_bytes(key.private_bytes(*form))
    return paths


async def run_server(port: int, directory: Path) -> None:
    configuration = QuicConfiguration(alpn_protocols=H3_ALPN, is_client=False)
    configuration.load_cert_chain(*certify(directory))
    await serve("::", port, configuration=configuration, create_protocol=Http3)
    print("serving", flush=True)
    await asyncio.Event().wait()


async def get(host: str, port: int) -> None:
    configuration = QuicConfiguration(alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE)
    async with connect(host, port, configuration=configuration, create_protocol=Http3) as client:
        assert isinstance(client, Http3)
        stream_id = client._quic.get_next_available_stream_id()
        head = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", host.encode()), (b":path", b"/")]
        client.http.send_headers(stream_id, head, end_stream=True)
        client.transmit()
        async with asyncio.timeout(ANSWER_S):
            await client.ended.wait()
        print(client.body.decode(), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(run_server(int(sys.argv[2]), Path(sys.argv[3])))
    else:
        asyncio.run(get(sys.argv[2], int(sys.argv[3])))
