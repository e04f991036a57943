"""`pvpn run` and `pvpn demo`: the commands that are a process of their own."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy_vpn.cli.options import StatePath, option

if TYPE_CHECKING:
    from proxy_vpn.config import Expose, Settings

_LISTEN = "[HOST:]PORT"
_PEER_EXAMPLE = "192.0.2.1:41641"
_ROUTER_EXAMPLE = "router.example:6881"


class _KeyFiles(click.Path):
    """Key files; in their variable apart by colons, as paths are, or by spaces, as other values are."""

    def split_envvar_value(self, rv: str) -> list[str]:
        parts = [part for part in rv.split(os.pathsep) if part]
        # A file may have a space in its name.
        return [word for part in parts for word in ([part] if os.path.exists(part) else part.split())]


@click.command()
@click.argument("keys", nargs=-1, type=_KeyFiles(path_type=Path), envvar="PVPN_KEYS")
@option("--name", metavar="NAME", help="What peers call this machine; the host's name unless given.")
@option("--socks", multiple=True, metavar=_LISTEN, help="Serve SOCKS4a/5 and HTTP proxying here; loopback if no HOST.")
@option("--http", multiple=True, metavar=_LISTEN, help="The same as --socks: one port speaks both.")
@option("--forward", "forwards", multiple=True, metavar="SPEC", help="Such as 2222:peer-b:22; see pvpn forward --help.")
@option(
    "--expose", multiple=True, metavar="SPEC", help="Let peers reach 8000 or 9000-9010; none: nothing else; all: all."
)
@option("--tun", is_flag=True, help="Make a network interface for programs that know no proxy; needs root.")
@option("--no-lan", is_flag=True, help="Neither announce this machine on the LAN nor look for peers there.")
@option("--no-port-mapping", is_flag=True, help="Do not ask the router to open a port (UPnP, NAT-PMP, PCP).")
@option("--no-relay", is_flag=True, help="Carry nothing between other members that can't reach each other.")
@option("--no-direct", is_flag=True, help="Refuse names that are no peer's, instead of going there directly.")
@option("--route", "routes", multiple=True, metavar="NETWORK", help="Lead peers that accept it to 192.168.7.0/24.")
@option("--accept-routes", is_flag=True, help="Reach the networks that peers lead to (their --route).")
@option("--offer-exit", is_flag=True, help="Lead peers to the internet, if they choose this machine as their --exit.")
@option("--exit", "exit_name", metavar="PEER", help="Reach the internet through this peer, or not at all.")
@option("--listen", multiple=True, metavar="[ADDR:]PORT", help="The UDP endpoint; a port chosen once, unless given.")
@option("--peer", "peers", multiple=True, metavar="HOST:PORT", help="Look for a peer here first.")
@option("--no-dht", is_flag=True, help="Stay away from the DHT.")
@option("--dht-serve", is_flag=True, help="Answer other nodes of the DHT too; silent unless given.")
@option("--dht-bootstrap", multiple=True, metavar="HOST:PORT", help="Enter the DHT here, not at the public routers.")
@option("--engine", type=click.Choice(["qh3", "aioquic"]), help="The QUIC engine; the best one unless given.")
@option("--state", type=StatePath(path_type=Path), metavar="DIR", help="Where to keep identities and known peers.")
@option("--verbose", "-v", "verbosity", count=True, help="Say more; twice: everything.")
@click.option("--until-eof", is_flag=True, hidden=True, help="Stop when standard input ends, with whoever holds it.")
def run(keys: tuple[Path, ...], until_eof: bool, **flags: object) -> int:
    """Join networks and stay until Ctrl-C. KEYS (PVPN_KEYS) are their key files, one or more.

    Options that may be given several times take several values, apart by spaces, from their variable; so does
    PVPN_KEYS, and apart by colons.
    """
    checked = settings(keys, **flags)  # type: ignore[arg-type]
    if until_eof:
        from proxy_vpn.daemon.lifeline import stop_with_stdin

        stop_with_stdin()
    from proxy_vpn.daemon.node import run as run_node

    return run_node(checked)


@click.command()
def demo() -> int:
    """Show the main job on this machine alone.

    A private DHT, two peers, and a web service on one of them that is fetched through the other.
    """
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
    tun: bool = False,
    no_lan: bool = False,
    no_port_mapping: bool = False,
    no_relay: bool = False,
    no_direct: bool = False,
    routes: tuple[str, ...] = (),
    accept_routes: bool = False,
    offer_exit: bool = False,
    exit_name: str | None = None,
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
    from proxy_vpn.ranges import parse_route

    proxies = tuple(dict.fromkeys(config.parse_proxy(text) for text in (*socks, *http)))
    return config.Settings(
        keys=config.load_keys(keys),
        name=name or config.default_name(socket.gethostname()),
        proxies=proxies,
        forwards=tuple(ForwardSpec.parse(text) for text in forwards),
        expose=_expose(expose),
        direct=not no_direct,
        tun=tun,
        routes=tuple(dict.fromkeys(parse_route(text) for text in routes)),
        accept_routes=accept_routes,
        offer_exit=offer_exit,
        exit=(exit_name or "").lower().removesuffix(".pvpn"),
        relay=not no_relay,
        lan=not no_lan,
        port_mapping=not no_port_mapping,
        listen=tuple(address for text in listen for address in config.parse_listen(text)),
        peers=tuple(Target.parse(text, _PEER_EXAMPLE) for text in peers),
        dht=not no_dht,
        dht_serve=dht_serve,
        dht_bootstrap=tuple(Target.parse(text, _ROUTER_EXAMPLE) for text in dht_bootstrap) or config.DHT_ROUTERS,
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
