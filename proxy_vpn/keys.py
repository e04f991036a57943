"""Keys: a NetworkKey is membership (a file, or a join token), an Identity is one device in one network.

    root    = KDF(secret, "pvpn1 root", network id | mode | admin public key | generation)
    K_x(..) = KDF(root, "pvpn1 x", ..)     KDF = keyed BLAKE2b, person = label, every field length-prefixed

The name is this machine's own label for the network: no key depends on it, so it may be changed in the file.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import os
import shlex
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import nacl.utils
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from proxy_vpn.addresses import shown, valid_name
from proxy_vpn.errors import KeyFileError

KEY_BYTES: Final = 32
NETWORK_ID_BYTES: Final = 16
DEVICE_ID_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
TOPIC_BYTES: Final = 20
EPOCH_S: Final = 24 * 3600
EPOCH_OVERLAP_S: Final = 3600
MAX_GENERATION: Final = 2**32 - 1
MAX_KEY_FILE_BYTES: Final = 16 * 1024
MAX_TOKEN_CHARS: Final = 1024
CHECKSUM_BYTES: Final = 4

FILE_VERSION: Final = "1"
TOKEN_PREFIX: Final = "pvpn1:"
MODES: Final = ("open",)

Entropy = Callable[[int], bytes]


def kdf(key: bytes, label: str, *fields: bytes) -> bytes:
    """32 bytes from `key` (at most 64), a label (at most 16 ASCII bytes) and any number of fields."""
    data = b"".join(len(item).to_bytes(4, "big") + item for item in fields)
    return hashlib.blake2b(data, digest_size=KEY_BYTES, key=key, person=label.encode("ascii")).digest()


@dataclass(frozen=True)
class NetworkKey:
    """Membership of one network: whoever holds it is in. Raises KeyFileError for parts that make no key."""

    name: str
    network_id: bytes
    secret: bytes = field(repr=False)
    generation: int = 1
    mode: str = "open"
    admin_public_key: bytes = b""

    def __post_init__(self) -> None:
        if not valid_name(self.name):
            raise KeyFileError(f"{self.name!a} can't be a network's name", "use 1 to 32 of a-z, 0-9 and -")
        if len(self.network_id) != NETWORK_ID_BYTES or len(self.secret) != KEY_BYTES:
            raise KeyFileError("the network id or the secret has the wrong length", "copy the key again")
        if not 1 <= self.generation <= MAX_GENERATION:
            raise KeyFileError(f"generation {self.generation} is out of range", "copy the key again")
        if self.mode not in MODES or self.admin_public_key:
            raise KeyFileError(f"networks of mode {self.mode!a} are not known here", "update pvpn")

    @classmethod
    def generate(cls, name: str, entropy: Entropy = nacl.utils.random) -> NetworkKey:
        """A new network that nobody else is in."""
        return cls(name, entropy(NETWORK_ID_BYTES), entropy(KEY_BYTES))

    @cached_property
    def root(self) -> bytes:
        generation = self.generation.to_bytes(8, "big")
        return kdf(
            self.secret, "pvpn1 root", self.network_id, self.mode.encode("ascii"), self.admin_public_key, generation
        )

    def derive(self, label: str, *fields: bytes) -> bytes:
        """32 bytes under the root, for one purpose named by `label` ("pvpn1 ...", at most 16 bytes)."""
        return kdf(self.root, label, *fields)

    @cached_property
    def auth_key(self) -> bytes:
        """K_auth: the MAC key of the handshake's proof of membership."""
        return self.derive("pvpn1 auth")

    def discovery_key(self, epoch: int) -> bytes:
        """K_disc(e): probes to a device whose identity is not known yet."""
        return self.derive("pvpn1 disc", _epoch_field(epoch))

    def device_key(self, identity: bytes) -> bytes:
        """K_to(id): datagrams to the device with this public key."""
        return self.derive("pvpn1 to", identity)

    def reply_key(self, tx: bytes) -> bytes:
        """K_rep(tx): replies to the probe (or the cookie) that carried these bytes."""
        return self.derive("pvpn1 rep", tx)

    @cached_property
    def _phase_s(self) -> int:
        return int.from_bytes(self.derive("pvpn1 phase")[:8], "big") % EPOCH_S

    def epochs(self, unix_time: float) -> list[int]:
        """The current epoch first, and its neighbour while a boundary is less than an hour away."""
        epoch, since_s = divmod(unix_time + self._phase_s, EPOCH_S)
        current = int(epoch)
        if since_s < EPOCH_OVERLAP_S:
            return [current, current - 1]
        if since_s > EPOCH_S - EPOCH_OVERLAP_S:
            return [current, current + 1]
        return [current]

    def dht_topic(self, epoch: int) -> bytes:
        """The 20-byte info-hash under which members announce themselves in this epoch."""
        return self.derive("pvpn1 dht", _epoch_field(epoch))[:TOPIC_BYTES]

    def dht_topics(self, unix_time: float) -> list[bytes]:
        return [self.dht_topic(epoch) for epoch in self.epochs(unix_time)]

    def lan_tags(self, unix_time: float) -> list[str]:
        """What members announce on a LAN now: 26 characters that tell nothing about the network."""
        return [_base32(self.derive("pvpn1 lan", _epoch_field(epoch))[:16]) for epoch in self.epochs(unix_time)]

    @cached_property
    def fingerprint(self) -> str:
        """16 characters to compare by eye; tells nothing about the secret."""
        text = _base32(self.derive("pvpn1 print")[:10])
        return "-".join(text[at : at + 4] for at in range(0, len(text), 4))

    def token(self) -> str:
        """The whole key as one line, `pvpn1:...`: as secret as the file."""
        body = bytes([MODES.index(self.mode)]) + self.generation.to_bytes(4, "big") + self.network_id + self.secret
        body += self.name.encode("ascii")
        return TOKEN_PREFIX + _base32(body + _checksum(body))

    @classmethod
    def from_token(cls, text: str) -> NetworkKey:
        """The inverse of `token`; upper case and white space are forgiven. Raises KeyFileError."""
        again = "copy it again, whole: it starts with pvpn1:"
        compact = "".join(text[: 2 * MAX_TOKEN_CHARS].split()).lower()
        if not compact.startswith(TOKEN_PREFIX):
            newer = compact.startswith("pvpn") and ":" in compact[:8]
            raise KeyFileError("this join token was made by a newer pvpn" if newer else "this is no join token", again)
        data = _from_base32(compact.removeprefix(TOKEN_PREFIX))
        body, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
        fixed = 1 + 4 + NETWORK_ID_BYTES + KEY_BYTES
        if len(compact) > MAX_TOKEN_CHARS or len(body) <= fixed or _checksum(body) != checksum:
            raise KeyFileError("this join token is damaged: its checksum does not fit", again)
        if body[0] >= len(MODES):
            raise KeyFileError("this join token was made by a newer pvpn", "update pvpn on this machine")
        network_id, secret = body[5 : 5 + NETWORK_ID_BYTES], body[5 + NETWORK_ID_BYTES : fixed]
        name = body[fixed:].decode("ascii", "backslashreplace")
        return cls(name, network_id, secret, int.from_bytes(body[1:5], "big"), MODES[body[0]])


@dataclass(frozen=True)
class Identity:
    """One device in one network: an Ed25519 key pair, made from a 32-byte seed."""

    seed: bytes = field(repr=False)

    @classmethod
    def generate(cls, entropy: Entropy = nacl.utils.random) -> Identity:
        return cls(entropy(KEY_BYTES))

    def __post_init__(self) -> None:
        if len(self.seed) != KEY_BYTES:
            raise KeyFileError(f"an identity's seed has {KEY_BYTES} bytes, not {len(self.seed)}")

    @cached_property
    def _signing_key(self) -> SigningKey:
        return SigningKey(self.seed)

    @cached_property
    def id(self) -> bytes:
        """The 32-byte public key: what peers know this device by."""
        return bytes(self._signing_key.verify_key)

    def sign(self, message: bytes) -> bytes:
        """A detached signature of 64 bytes."""
        return self._signing_key.sign(message).signature


def verify(identity: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the device with this public key signed `message`; False for anything malformed."""
    if len(identity) != DEVICE_ID_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        VerifyKey(identity).verify(message, signature)
    except (BadSignatureError, ValueError):
        return False
    return True


def short_id(identity: bytes) -> str:
    """Four hexadecimal characters, to tell two devices of one name apart: `laptop-ab12`."""
    return identity[:2].hex()


def load_key_file(path: str | os.PathLike[str]) -> NetworkKey:
    """Read and check a key file; raises KeyFileError with what to do about it."""
    name, quoted = shown(path), shlex.quote(shown(path))
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except FileNotFoundError:
        raise KeyFileError(f"there is no key file {name}", f"make one with: pvpn keygen {quoted}") from None
    except IsADirectoryError:
        raise KeyFileError(f"{name} is a directory", "give the key file itself") from None
    except OSError as error:
        raise KeyFileError(f"can't read the key file {name}: {error.strerror}", "check its owner and path") from None
    if len(data) > MAX_KEY_FILE_BYTES:
        raise KeyFileError(f"{name} is too large for a key file", "give a file that pvpn keygen made")
    _key_lines(data, name)  # nobody is told to chmod a file that is something else
    if stat.S_IMODE(mode) & 0o077:
        raise KeyFileError(f"others on this machine can read the key file {name}", f"run: chmod 600 {quoted}")
    return parse_key_file(data, name)


def write_key_file(path: str | os.PathLike[str], key: NetworkKey) -> None:
    """Write a new key file, 0600 and flushed to disk; never overwrites. Raises KeyFileError."""
    name = shown(path)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise KeyFileError(f"{name} exists and is not overwritten", "choose another name, or move it away") from None
    except OSError as error:
        raise KeyFileError(f"can't write {name}: {error.strerror}", "choose a directory you may write to") from None
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(format_key_file(key))
            file.flush()
            os.fsync(descriptor)
        _sync_directory(Path(path).parent)
    except OSError as error:
        with suppress(OSError):
            os.unlink(path)
        raise KeyFileError(f"can't write {name}: {error.strerror}", "free some space, or choose another disk") from None


def format_key_file(key: NetworkKey) -> bytes:
    """The text of a key file."""
    checksum = _checksum(_checked_lines(key)).hex()
    return f"""\
# This is the key of the pvpn network "{key.name}".
# Whoever holds this file is in the network: copy it only to machines you trust, and
# keep it readable by you alone (chmod 600). The name may be changed, nothing else.
#
#   pvpn run FILE --socks 1080      on every machine that has it

pvpn-key {FILE_VERSION}
name {key.name}
{_checked_lines(key).decode()}checksum {checksum}
""".encode()


def parse_key_file(data: bytes, name: str = "this file") -> NetworkKey:
    """The inverse of `format_key_file`; raises KeyFileError. `name` is the file's in errors."""
    lines = _key_lines(data, name)
    if lines[0][1:] != [FILE_VERSION]:
        raise KeyFileError(f"{name} was made by a newer pvpn", "update pvpn on this machine")
    values = {line[0]: line[1] for line in lines[1:] if len(line) == 2}
    expected = ("name", "network", "secret", "generation", "mode", "checksum")
    if missing := [word for word in expected if word not in values]:
        raise KeyFileError(f"{name} is cut short: it has no line `{missing[0]}`", "copy it again")
    damaged = KeyFileError(f"{name} is damaged: its checksum does not fit", "copy it again from a machine that works")
    if len(lines) != len(expected) + 1 or not values["generation"].isdecimal() or len(values["generation"]) > 10:
        raise damaged
    checked = "".join(f"{word} {values[word]}\n" for word in expected[1:-1])
    if _checksum(checked.encode()).hex() != values["checksum"]:
        raise damaged
    try:
        network_id, secret = bytes.fromhex(values["network"]), bytes.fromhex(values["secret"])
    except ValueError:
        raise damaged from None
    return NetworkKey(values["name"], network_id, secret, int(values["generation"]), values["mode"])


def _key_lines(data: bytes, name: str) -> list[list[str]]:
    """The words of each line, comments aside; raises KeyFileError unless it begins as key files do."""
    text = data.decode("utf-8", "backslashreplace")
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines or lines[0][0] != "pvpn-key":
        raise KeyFileError(f"{name} is not a pvpn key file", "make one with pvpn keygen, or copy it again")
    return lines


def _checked_lines(key: NetworkKey) -> bytes:
    return (
        f"network {key.network_id.hex()}\nsecret {key.secret.hex()}\ngeneration {key.generation}\nmode {key.mode}\n"
    ).encode()


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=CHECKSUM_BYTES, person=b"pvpn1 checksum").digest()


def _epoch_field(epoch: int) -> bytes:
    return epoch.to_bytes(8, "big", signed=True)


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def _from_base32(text: str) -> bytes:
    """Decoded bytes, or none at all for text that is not base32."""
    try:
        return base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        return b""


def _sync_directory(path: Path) -> None:
    """Make the new name itself durable; some file systems can't, and need not."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EROFS):
            raise
    finally:
        os.close(descriptor)
