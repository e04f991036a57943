"""The commands that ask the running process: forward, connect, expose, forget, status, doctor, peers, ping."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy_vpn.addresses import ForwardSpec, Target, parse_port
from proxy_vpn.cli.options import client, coloured, in_network, net_option, print_json, state_option
from proxy_vpn.errors import ControlError, UsageError

if TYPE_CHECKING:
    from proxy_vpn.daemon.client import ControlClient

PING_INTERVAL_S = 1.0
MAX_PINGS = 1_000_000
LOST_PINGS = frozenset({"timeout", "unreachable", "lost"})


@click.command()
@click.argument("spec", required=False)
@click.option("--background", is_flag=True, help="Return at once; the forward stays until --remove.")
@click.option("--list", "listing", is_flag=True, help="Print the forwards there are.")
@click.option("--remove", is_flag=True, help="Remove the forward SPEC.")
@net_option
@state_option
def forward(spec: str | None, background: bool, listing: bool, remove: bool, net: str, state: Path | None) -> None:
    """Let a local port lead to a peer's, until Ctrl-C.

    \b
    SPEC is 2222:peer-b:22 (on 127.0.0.1), 127.0.0.1:0:peer-b:22 (picks a port),
    5353:peer-b:53/udp or unix:/path:peer-b:22.
    """
    ask = client(state)
    if background + listing + remove > 1:
        raise UsageError("--background, --list and --remove exclude each other", "give one of them")
    if listing:
        if spec:
            raise UsageError("--list takes no SPEC", "see 'pvpn forward --help'")
        for item in ask.forwards():
            click.echo(item.spec + ("  until its pvpn forward ends" if item.held else ""))
        return
    if spec is None:
        raise UsageError("no forward given", "write for example: pvpn forward 2222:peer-b:22")
    parsed = _meant(ForwardSpec.parse(spec), net)
    if remove:
        ask.remove_forward(str(parsed))
    elif background:
        _announce(ask.add_forward(str(parsed)))
    else:
        _hold(ask, str(parsed))


@click.command()
@click.argument("host")
@click.argument("port")
@net_option
@state_option
def connect(host: str, port: str, net: str, state: Path | None) -> int:
    """Join stdin and stdout to a peer's port.

    \b
      ssh -o ProxyCommand='pvpn connect %h %p' peer-b
    """
    from proxy_vpn.daemon.private import check_private
    from proxy_vpn.daemon.sockets import proxy_socket
    from proxy_vpn.doors.stdio import connect as copy

    path = proxy_socket(state)
    check_private(path.parent)
    return copy(str(path), Target(in_network(host, net), parse_port(port)))


@click.command()
@click.argument("spec", required=False)
@state_option
def expose(spec: str | None, state: Path | None) -> None:
    """Open ports to peers.

    SPEC is a port, 8000,9000-9010, none (close all), all (open loopback too) or default; it holds until the
    process ends. Without SPEC, list what peers can reach.
    """
    from proxy_vpn.config import Expose
    from proxy_vpn.daemon.status import render_expose

    if spec is None:
        click.echo("open " + render_expose(client(state).status().expose))
        return
    Expose.parse(spec)
    click.echo("open " + render_expose(client(state).expose(spec)))


@click.command()
@click.argument("name")
@net_option
@state_option
def forget(name: str, net: str, state: Path | None) -> None:
    """Forget which machine bears a NAME.

    For a machine that was installed anew: the next one of this name is accepted as the peer.
    """
    from proxy_vpn.daemon.status import printable

    reply = client(state).forget(name, net)
    click.echo(
        f"forgot {printable(reply.peer)} in {printable(reply.network)}: the next machine of this name is accepted"
    )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON; it carries a schema version.")
@net_option
@state_option
def status(as_json: bool, net: str, state: Path | None) -> None:
    """Show what the running process does.

    Its networks and doors, what it opens to peers, the DHT, and its peers.
    """
    from proxy_vpn.daemon.status import render_status

    answer = client(state).status(net)
    if as_json:
        print_json(answer)
    else:
        click.echo("\n".join(render_status(answer, time.time(), colour=coloured())))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON; it carries a schema version.")
@state_option
def doctor(as_json: bool, state: Path | None) -> int:
    """Say what keeps peers away, and what would mend it.

    UDP, addresses, the NAT, the DHT, clocks, and every peer that is relayed or not reached. The exit code is 1 if
    anything is bad.
    """
    from proxy_vpn.daemon.findings import render

    answer = client(state).doctor()
    if as_json:
        print_json(answer)
    else:
        click.echo("\n".join(render(answer, colour=coloured())))
    return int(any(check.state == "bad" for check in answer.checks))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON; it carries a schema version.")
@net_option
@state_option
def peers(as_json: bool, net: str, state: Path | None) -> None:
    """List peers, one line each.

    Name, path, round trip, traffic, and since when.
    """
    from proxy_vpn.daemon.status import render_peers

    answer = client(state).peers(net)
    if as_json:
        print_json(answer)
    else:
        lines = render_peers(answer.peers, time.time(), colour=coloured(), unanswered=answer.unanswered)
        click.echo("\n".join(lines))


@click.command()
@click.argument("peer")
@click.option(
    "--count", "-c", type=click.IntRange(1, MAX_PINGS), default=1, help="How many, one a second; 1 unless given."
)
@click.option("--until-direct", is_flag=True, help="Go on until the path is direct, or --count (10) is used up.")
@net_option
@state_option
@click.pass_context
def ping(context: click.Context, peer: str, count: int, until_direct: bool, net: str, state: Path | None) -> None:
    """Measure the round trip to a PEER, and say which way it goes."""
    if until_direct and context.get_parameter_source("count") is click.core.ParameterSource.DEFAULT:
        count = 10
    ask = client(state)
    answered = False
    for number in range(count):
        if number:
            time.sleep(PING_INTERVAL_S)
        path = _ping_once(ask, peer, net, last=number == count - 1 and not answered)
        answered = answered or bool(path)
        if until_direct and path and not path.startswith("relay"):
            return
    if until_direct:
        raise ControlError(f"the path to {peer!a} is not direct", "see 'pvpn status'")


def _ping_once(ask: ControlClient, peer: str, net: str, *, last: bool) -> str:
    """The path of one ping, printed; empty when it was lost. Unless it is the `last`, that is nothing to stop for."""
    from proxy_vpn.daemon.client import Refused
    from proxy_vpn.daemon.status import milliseconds, printable

    try:
        reply = ask.ping(peer, net)
    except Refused as error:
        if last or error.status not in LOST_PINGS:
            raise
        click.echo(f"pvpn: {error}", err=True)
        return ""
    where = f"{printable(reply.peer)} ({printable(reply.network)})"
    click.echo(f"pong from {where} via {printable(reply.path)} in {milliseconds(reply.rtt_ms)}")
    return reply.path


def _meant(spec: ForwardSpec, net: str) -> ForwardSpec:
    """The forward as the process must understand it: paths from this directory, names in that network."""
    path = os.path.abspath(spec.path) if spec.path else ""
    return replace(spec, path=path, target=Target(in_network(spec.target.host, net), spec.target.port))


def _announce(spec: str) -> None:
    from proxy_vpn.daemon.status import open_door

    parsed = ForwardSpec.parse(spec)
    where = f"unix:{parsed.path}" if parsed.path else str(Target(parsed.host, parsed.port))
    click.echo(f"{where}{' (udp)' if parsed.udp else ''} -> {parsed.target}")
    if warning := open_door(parsed, "forward"):
        click.echo(f"pvpn: {warning}", err=True)


def _hold(ask: ControlClient, spec: str) -> None:
    """Keep a forward until Ctrl-C, which is its ordinary end."""
    with ask.hold_forward(spec) as held, suppress(KeyboardInterrupt):
        _announce(held.spec)
        sys.stdout.flush()
        held.wait()
