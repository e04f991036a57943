"""What a process remembers between runs: one locked directory, 0700.

    lock                          flock; holds the process id
    process.json                  how often it was started, the UDP port it chose
    dht.json                      verified DHT nodes, so that a restart needs no bootstrap host
    control.sock proxy.sock       see sockets; exec.sock too
    networks/<network id>/
        identity                  this device's seed, 0600
        peers.json                known peers with their last addresses, and pins (name to identity)

Every method that writes blocks on the disk (fsync): call it from a thread once the loop runs.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from shlex import quote
from types import TracebackType
from typing import Annotated, Any, Final

import msgspec

from proxy_vpn.addresses import Address, shown, valid_name
from proxy_vpn.daemon import files, sockets
from proxy_vpn.daemon.private import MARK, make_private
from proxy_vpn.dht.saved import Saved, dump, load
from proxy_vpn.errors import StateError
from proxy_vpn.keys import Identity

FILE_VERSION: Final = 1
MAX_KNOWN_PEERS: Final = 4096
MAX_ADDRESSES_PER_PEER: Final = 64
MAX_PINS: Final = 4096
MAX_SEEN: Final = 65536
MAX_IDENTITY_BYTES: Final = 1024

Id = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class KnownPeer(msgspec.Struct, frozen=True, kw_only=True):
    """A peer that was live once, and where; `last_seen` in Unix seconds, `place` of its virtual IPv4 address."""

    name: str
    id: Id
    addresses: tuple[Address, ...] = ()
    last_seen: float = 0.0
    place: Annotated[int, msgspec.Meta(ge=-1, lt=65536)] = -1

    def __post_init__(self) -> None:
        if not valid_name(self.name):
            raise ValueError("not a peer's name")
        for address in self.addresses:
            ip_address(address.ip)
            if "%" in address.ip or not 0 < address.port <= 65535:
                raise ValueError("not an address")


class NetworkMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one network.

    `pins`: which identity a name belongs to; `seen`: probes already answered, and until when (Unix seconds) to refuse
    them again, so that a restart opens no door to replays.
    """

    version: int = FILE_VERSION
    peers: tuple[KnownPeer, ...] = ()
    pins: dict[str, Id] = {}
    seen: dict[bytes, float] = {}

    def bounded(self) -> NetworkMemory:
        """The part within the bounds: the peers and addresses seen last."""
        recent = sorted(self.peers, key=lambda peer: peer.last_seen, reverse=True)[:MAX_KNOWN_PEERS]
        peers = tuple(msgspec.structs.replace(p, addresses=p.addresses[:MAX_ADDRESSES_PER_PEER]) for p in recent)
        newest = sorted(self.seen.items(), key=lambda item: item[1])[-MAX_SEEN:]
        # Many new names must not push out the owner of an old one who is still about.
        last_seen = {peer.id: peer.last_seen for peer in self.peers}
        pins = sorted(self.pins.items(), key=lambda pin: last_seen.get(pin[1], 0.0))[-MAX_PINS:]
        return NetworkMemory(peers=peers, pins=dict(pins), seen=dict(newest))


class ProcessMemory(msgspec.Struct, frozen=True, kw_only=True):
    """How often a process ran here, and its UDP port (0: none chosen yet)."""

    version: int = FILE_VERSION
    starts: int = 0
    udp_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


class StateDirectory:
    """The state of one process, locked from `open` to `close`; `first_run`: none has counted a start before it."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._memory = files.read_json(path / MARK, ProcessMemory) or ProcessMemory()
        self.first_run = not self._memory.starts

    @classmethod
    def open(cls, path: Path | None = None) -> StateDirectory:
        """Make and lock the directory (None: the default one); raises StateError when another process has it."""
        directory = Path(os.path.realpath(path or sockets.default_state_directory()))
        make_private(directory)
        lock = _lock(directory)
        try:
            files.sweep(directory)
            return cls(directory, lock)
        except BaseException:
            os.close(lock)
            raise

    def close(self) -> None:
        """Give the directory free; idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> StateDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def starts(self) -> int:
        """How often a process was started here, this one included once it has counted."""
        return self._memory.starts

    def count_start(self) -> None:
        """This process has really started: a failed start leaves the first run to the next one."""
        self._memory = msgspec.structs.replace(self._memory, starts=self._memory.starts + 1)
        files.write_json(self.path / MARK, self._memory)

    @property
    def udp_port(self) -> int:
        """The UDP port of earlier runs; 0 when none was chosen yet."""
        return self._memory.udp_port

    def save_udp_port(self, port: int) -> None:
        self._memory = msgspec.structs.replace(self._memory, udp_port=port)
        files.write_json(self.path / MARK, self._memory)

    @property
    def control_socket(self) -> Path:
        return sockets.control_socket(self.path)

    @property
    def proxy_socket(self) -> Path:
        return sockets.proxy_socket(self.path)

    @property
    def exec_socket(self) -> Path:
        return sockets.exec_socket(self.path)

    def load_dht(self) -> dict[str, Any]:
        """What the DHT exported last (see dht.saved), as it takes it."""
        return dump(files.read_json(self.path / "dht.json", Saved) or Saved())

    def save_dht(self, exported: Mapping[str, Any]) -> None:
        files.write_json(self.path / "dht.json", load(exported))

    def network(self, network_id: bytes) -> NetworkState:
        """The files of one network, made when there are none."""
        path = self.path / "networks" / network_id.hex()
        make_private(path.parent)
        make_private(path)
        files.sweep(path)
        return NetworkState(path)


class NetworkState:
    """The files of one network in a locked state directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def identity(self) -> Identity:
        """This device in this network, made at the first call. Raises StateError for a damaged one."""
        path = self.path / "identity"
        data = files.read_bounded(path)
        if data is None:
            identity = Identity.generate()
            text = f"pvpn-identity 1\n# Secret: this device's own key in one network. Never copy it.\n{_line(identity)}"
            files.write_atomic(path, text.encode())
            return identity
        return _parse_identity(path, data)

    def load(self) -> NetworkMemory:
        """What was saved last; empty when nothing was, or it was damaged (then it is set aside, with a warning)."""
        return files.read_json(self.path / "peers.json", NetworkMemory) or NetworkMemory()

    def save(self, memory: NetworkMemory) -> None:
        files.write_json(self.path / "peers.json", memory.bounded())


def _lock(directory: Path) -> int:
    """A descriptor that holds the directory's lock; closing it, or dying, gives it free."""
    try:
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(f"can't use {shown(directory)}: {error.strerror}", "give another --state") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        return lock
    except BlockingIOError:
        pid = ""
        with suppress(OSError):
            pid = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
        os.close(lock)
        who = f" (process {pid})" if pid.isdecimal() else ""
        what = f"another pvpn{who} uses {shown(directory)}"
        raise StateError(what, "stop it, or give this one its own directory with --state") from None
    except OSError as error:
        os.close(lock)
        raise StateError(f"can't lock {shown(directory)}: {error.strerror}", "give another --state") from None


def _line(identity: Identity) -> str:
    return f"seed {identity.seed.hex()}\nid {identity.id.hex()}\n"


def _parse_identity(path: Path, data: bytes) -> Identity:
    if path.stat().st_mode & 0o077:
        raise StateError(f"others can read this device's key {shown(path)}", f"run: chmod 600 {quote(shown(path))}")
    text = data[:MAX_IDENTITY_BYTES].decode("ascii", "replace")
    match = re.search(r"^seed ([0-9a-f]{64})$", text, re.MULTILINE)
    if text.startswith("pvpn-identity 1\n") and match:
        identity = Identity(bytes.fromhex(match[1]))
        if text.endswith("\n" + _line(identity)):
            return identity
    hint = "restore it, or move it away to become a new device: peers then need pvpn forget with this host's name"
    raise StateError(f"this device's key {shown(path)} is damaged", hint)
