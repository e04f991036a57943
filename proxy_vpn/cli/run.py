"""`pvpn run` and `pvpn demo`: the commands that are a process of their own."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy_vpn.cli.options import option

if TYPE_CHECKING:
    from proxy_vpn.config import Expose, Settings

_LISTEN = "[HOST:]PORT"


@click.command()
@click.argument("keys", nargs=-1, type=click.Path(path_type=Path), envvar="PVPN_KEYS")
@option("--name", metavar="NAME", help="What peers call this machine; the host's name unless given.")
@option("--socks", multiple=True, metavar=_LISTEN, help="Serve SOCKS4a/5 and HTTP proxying here; loopback if no HOST.")
@option("--http", multiple=True, metavar=_LISTEN, help="The same as --socks: one port speaks both.")
@option("--forward", "forwards", multiple=True, metavar="SPEC", help="Such as 2222:peer-b:22; see pvpn forward --help.")
@option(
    "--expose", multiple=True, metavar="SPEC", help="Let peers reach 8000 or 9000-9010; none: nothing else; all: all."
)
@option("--no-direct", is_flag=True, help="Refuse names that are no peer's, instead of going there directly.")
@option("--listen", multiple=True, metavar="[ADDR:]PORT", help="The UDP endpoint; a port chosen once, unless given.")
@option("--peer", "peers", multiple=True, metavar="HOST:PORT", help="Look for a peer here first.")
@option("--no-dht", is_flag=True, help="Stay away from the DHT.")
@option("--dht-serve", is_flag=True, help="Answer other nodes of the DHT too; silent unless given.")
@option("--dht-bootstrap", multiple=True, metavar="HOST:PORT", help="Enter the DHT here, not at the public routers.")
@option("--engine", type=click.Choice(["qh3", "aioquic"]), help="The QUIC engine; the best one unless given.")
@option("--state", type=click.Path(path_type=Path), metavar="DIR", help="Where to keep identities and known peers.")
@option("--verbose", "-v", "verbosity", count=True, help="Say more; twice: everything.")
def run(keys: tuple[Path, ...], **flags: object) -> int:
    """Join the networks of one or more KEYS files (PVPN_KEYS) and stay until Ctrl-C.

    Options that may be given several times take several values, apart by spaces, from their variable.
    """
    from proxy_vpn.daemon.node import run as run_node

    return run_node(settings(keys, **flags))  # type: ignore[arg-type]


@click.command()
def demo() -> int:
    """Show it on this machine alone: a private DHT, two peers, a web service fetched through them."""
    from proxy_vpn.daemon.demo import run as run_demo

    return int(run_demo())


def settings(
    keys: tuple[Path, ...],
    *,
    name: str | None = None,
    socks: tuple[str, ...] = (),
    http: tuple[str, ...] = (),
    forwards: tuple[str, ...] = (),
    expose: tuple[str, ...] = (),
    no_direct: bool = False,
    listen: tuple[str, ...] = (),
    peers: tuple[str, ...] = (),
    no_dht: bool = False,
    dht_serve: bool = False,
    dht_bootstrap: tuple[str, ...] = (),
    engine: str | None = None,
    state: Path | None = None,
    verbosity: int = 0,
) -> Settings:
    """The flags as typed values; raises UsageError and KeyFileError before anything has started."""
    from proxy_vpn import config
    from proxy_vpn.addresses import ForwardSpec, Target

    proxies = tuple(dict.fromkeys(config.parse_proxy(text) for text in (*socks, *http)))
    return config.Settings(
        keys=config.load_keys(keys),
        name=name or config.default_name(socket.gethostname()),
        proxies=proxies,
        forwards=tuple(ForwardSpec.parse(text) for text in forwards),
        expose=_expose(expose),
        direct=not no_direct,
        listen=tuple(address for text in listen for address in config.parse_listen(text)),
        peers=tuple(Target.parse(text) for text in peers),
        dht=not no_dht,
        dht_serve=dht_serve,
        dht_bootstrap=tuple(Target.parse(text) for text in dht_bootstrap) or config.DHT_ROUTERS,
        engine=next((known for known in config.ENGINES if known == engine), None),
        state=state,
        verbosity=verbosity,
    )


def _expose(specs: tuple[str, ...]) -> Expose:
    from proxy_vpn.config import Expose

    rules = Expose()
    for spec in specs:
        rules = rules.extended(spec)
    return rules
