"""What commands share: options with their environment variables, and the client of the running process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from proxy_vpn.daemon.client import ControlClient

_F = TypeVar("_F", bound=Callable[..., Any])


def option(*names: str, **settings: Any) -> Callable[[_F], _F]:
    """A click option that PVPN_... sets too (--dht-serve: PVPN_DHT_SERVE), as its help says."""
    long = next(name for name in names if name.startswith("--"))
    variable = "PVPN_" + long.removeprefix("--").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_envvar=True, **settings)


class StatePath(click.Path):
    """A directory, which an empty word is not: a shell variable that is unset must not mean this directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it names no directory; leave it out for the default one", param, ctx)
        return super().convert(value, param, ctx)


state_option = option(
    "--state",
    type=StatePath(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The process's state directory; each process has its own.",
)
net_option = option("--net", metavar="NAME", default="", help="Which network, where the process has several.")


def client(state: Path | None) -> ControlClient:
    """A client of the process with this state directory (None: the default one)."""
    from proxy_vpn.daemon.client import ControlClient
    from proxy_vpn.daemon.sockets import control_socket

    return ControlClient(control_socket(state))


def in_network(host: str, net: str) -> str:
    """A peer's name as it is understood in one network: `peer-b` becomes `peer-b.home.pvpn`."""
    from proxy_vpn.ranges import parse_ip

    if not net or parse_ip(host) is not None:
        return host
    return f"{host.lower().removesuffix('.pvpn').removesuffix(f'.{net}')}.{net}.pvpn"


def coloured() -> bool:
    """Whether stdout is a terminal that wants colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_json(value: object) -> None:
    """A msgspec Struct as indented JSON on stdout."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
