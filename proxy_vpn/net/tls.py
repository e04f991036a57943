"""What TLS needs and we don't rely on: a throwaway certificate, and the secrets that bind AUTH to the session.

Verification is off in TLS because AUTH does it. P-256: qh3 clients don't accept Ed25519 certificates by default.
"""

from __future__ import annotations

import datetime
import io
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from proxy_vpn.errors import WireError

ALPN = "pvpn/1"
_NEVER = datetime.datetime(9999, 12, 31)
_LONG_AGO = datetime.datetime(1970, 1, 2)


class Certificate:
    """A self-signed certificate and its key, as objects and as PEM."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        builder = x509.CertificateBuilder(name, name, self.key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(_LONG_AGO).not_valid_after(_NEVER)
        self.certificate = builder.sign(self.key, hashes.SHA256())
        self.certificate_pem = self.certificate.public_bytes(Encoding.PEM)
        self.key_pem = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@cache
def certificate() -> Certificate:
    """This process's throwaway certificate, made at first use."""
    return Certificate()


class SecretsLog(io.TextIOBase):
    """Takes the lines an engine writes in NSS key log format and keeps the application traffic secrets."""

    def __init__(self) -> None:
        self._secrets: dict[str, bytes] = {}

    def write(self, text: str) -> int:
        for line in text.splitlines():
            label, _, rest = line.partition(" ")
            if label in ("CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"):
                self._secrets[label] = bytes.fromhex(rest.partition(" ")[2])
        return len(text)

    def take(self) -> tuple[bytes, bytes]:
        """The client's and the server's first application secret, forgotten here afterwards; raises WireError."""
        try:
            return self._secrets.pop("CLIENT_TRAFFIC_SECRET_0"), self._secrets.pop("SERVER_TRAFFIC_SECRET_0")
        except KeyError:
            raise WireError("the TLS handshake left no secrets") from None
