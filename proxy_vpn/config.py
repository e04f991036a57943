"""Settings: everything `pvpn run` was told, parsed once into typed values; no module looks at flags again."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from proxy_vpn.addresses import (
    Address,
    ForwardSpec,
    Target,
    listen_ip,
    parse_port,
    shown,
    split_host_port,
    valid_name,
)
from proxy_vpn.errors import UsageError
from proxy_vpn.keys import NetworkKey, load_key_file
from proxy_vpn.ranges import Network

Engine = Literal["qh3", "aioquic"]
ENGINES: Final[tuple[Engine, ...]] = get_args(Engine)
ExposeMode = Literal["default", "none", "all"]

MAX_NAME_CHARS: Final = 32
MAX_NETWORKS: Final = 64
MAX_ROUTES: Final = 64
MAX_PORT_CHARS: Final = 5
FALLBACK_NAME: Final = "peer"

DHT_ROUTERS: Final = (
    Target("router.bittorrent.com", 6881),
    Target("router.utorrent.com", 6881),
    Target("dht.transmissionbt.com", 6881),
    Target("dht.libtorrent.org", 25401),
    Target("dht.aelitis.com", 6881),
    Target("router.silotis.us", 6881),
)


class Expose(msgspec.Struct, frozen=True):
    """What peers may reach on this host.

    `default`: what listens on every address of the host, and `ports`; `none`: `ports` alone; `all`: every port,
    those bound to loopback too. A port stands for TCP and UDP.
    """

    mode: ExposeMode = "default"
    ports: frozenset[int] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Expose:
        """From `none`, `all`, `default`, `8000`, `8000,9000-9010` or `none,8000`; raises UsageError."""
        return cls().extended(text)

    def extended(self, text: str) -> Expose:
        """These rules and one more spec: ports are added, a mode replaces the mode; `none` also drops all ports."""
        mode, ports = self.mode, self.ports
        for part in text.lower().split(","):
            word = part.strip()
            if word == "none":
                mode, ports = "none", frozenset()
            elif word == "default":
                mode = "default"
            elif word == "all":
                mode = "all"
            else:
                ports = ports.union(_port_range(word, text))
        return Expose(mode, ports)

    def __str__(self) -> str:
        """As `parse` takes it: the mode is always named, because ports come on top of it."""
        return ",".join([self.mode, *_runs(sorted(self.ports))])


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What one process runs: its networks, its doors, and how it looks for peers.

    `proxies`: where SOCKS and HTTP are served (port 0 picks one); `tun`: make a network interface; `listen`: UDP
    endpoints, none given means every address at the remembered port; `routes` and `offer_exit`: what peers are led to;
    `accept_routes` and `exit` (a peer's name): where other peers lead us; `peers`: where to look for peers first;
    `engine`: None is the best one installed; `state`: None is the platform's directory; `verbosity`: 0 lines for
    people, 1 more, 2 everything.
    """

    keys: tuple[NetworkKey, ...]
    name: str
    proxies: tuple[Target, ...] = ()
    forwards: tuple[ForwardSpec, ...] = ()
    expose: Expose = Expose()
    direct: bool = True
    tun: bool = False
    routes: tuple[Network, ...] = ()
    accept_routes: bool = False
    offer_exit: bool = False
    exit: str = ""
    relay: bool = True
    lan: bool = True
    port_mapping: bool = True
    listen: tuple[Address, ...] = ()
    peers: tuple[Target, ...] = ()
    dht: bool = True
    dht_serve: bool = False
    dht_bootstrap: tuple[Target, ...] = DHT_ROUTERS
    engine: Engine | None = None
    state: Path | None = None
    verbosity: int = 0

    def __post_init__(self) -> None:
        if not self.keys:
            raise UsageError("no key file given", "make one with pvpn keygen home.key, then: pvpn run home.key")
        if not valid_name(self.name):
            raise UsageError(f"{self.name!a} can't be a peer's name", "use 1 to 32 of a-z, 0-9 and - with --name")
        if len(self.routes) > MAX_ROUTES:
            raise UsageError(f"more than {MAX_ROUTES} routes", "offer larger networks")
        if self.exit and not all(valid_name(label) for label in self.exit.split(".", 1)):
            raise UsageError(f"{self.exit!a} can't be a peer's name", "give the name of a peer with --exit")
        if self.exit and self.offer_exit:
            hint = "leave one of them out: two that are each other's exit would lead in a circle"
            raise UsageError("--exit and --offer-exit exclude each other", hint)
        if self.dht_serve and not self.dht:
            raise UsageError("--dht-serve and --no-dht exclude each other", "leave one of them out")


def load_keys(paths: Iterable[str | Path]) -> tuple[NetworkKey, ...]:
    """The networks of several key files; raises KeyFileError, and UsageError for two that can't be told apart."""
    keys: list[NetworkKey] = []
    for path in paths:
        key = load_key_file(path)
        for other in keys:
            if other.network_id == key.network_id:
                raise UsageError(f"{shown(path)} is a network that was already given", "give each key file once")
            if other.name == key.name:
                hint = "change the line `name` in one of the files"
                raise UsageError(f"two networks are called {key.name}", hint)
        keys.append(key)
        if len(keys) > MAX_NETWORKS:
            raise UsageError(f"more than {MAX_NETWORKS} networks", "run a second pvpn with its own --state")
    return tuple(keys)


def default_name(host_name: str, fallback: str = FALLBACK_NAME) -> str:
    """A valid name as close to the host's (or file's) own as can be: `Anna's Mac.local` becomes `anna-s-mac`."""
    name = re.sub(r"[^a-z0-9-]+", "-", host_name.split(".")[0].lower())[:MAX_NAME_CHARS].strip("-")
    return name if valid_name(name) else fallback


def parse_proxy(text: str) -> Target:
    """Where a proxy listens: `1080`, `127.0.0.1:1080`, `localhost:1080` or `[::1]:0`; loopback unless it says more."""
    if _is_port(text):
        return Target("127.0.0.1", parse_port(text, lowest=0))
    address = _numeric(text, "write 1080 or 127.0.0.1:1080")
    return Target(address.ip, address.port)


def parse_listen(text: str) -> tuple[Address, ...]:
    """UDP endpoints: `41641` is every IPv4 and IPv6 address, `192.0.2.1:41641` or `[::1]:0` that one."""
    if _is_port(text):
        port = parse_port(text, lowest=0)
        return Address("0.0.0.0", port), Address("::", port)
    return (_numeric(text, "write 41641, 192.0.2.1:41641 or [::1]:41641"),)


def _is_port(text: str) -> bool:
    return text.isdecimal() and len(text) <= MAX_PORT_CHARS


def _numeric(text: str, hint: str) -> Address:
    try:
        host, port = split_host_port(text, lowest_port=0)
        return Address(listen_ip(host), port)
    except UsageError:
        raise UsageError(f"{text!a} is not an address to listen at", hint) from None


def _port_range(part: str, text: str) -> range:
    first, dash, last = part.partition("-")
    try:
        low = parse_port(first)
        high = parse_port(last) if dash else low
    except UsageError:
        low, high = 1, 0
    if low > high:
        raise UsageError(f"{text!a} can't be exposed", "write none, all, default, 8000 or 8000,9000-9010")
    return range(low, high + 1)


def _runs(ports: list[int]) -> list[str]:
    """Sorted ports as `8000` and `9000-9010`."""
    runs: list[list[int]] = []
    for port in ports:
        if runs and runs[-1][1] == port - 1:
            runs[-1][1] = port
        else:
            runs.append([port, port])
    return [str(low) if low == high else f"{low}-{high}" for low, high in runs]
