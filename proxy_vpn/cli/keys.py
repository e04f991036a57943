"""`pvpn keygen` and `pvpn key`: networks as files and as join tokens."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy_vpn.errors import UsageError

if TYPE_CHECKING:
    from proxy_vpn.keys import NetworkKey

MAX_TOKEN_INPUT_CHARS = 4096


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="The network's name; the file's own name unless given.")
@click.option("--from-token", "token", metavar="TOKEN", help="Write the key of a join token; `-` reads it from stdin.")
def keygen(file: Path, name: str | None, token: str | None) -> None:
    """Make a network: write a new key FILE. Whoever holds a copy of it is in.

    With --from-token, write the key of an existing network instead.
    """
    from proxy_vpn.addresses import shown
    from proxy_vpn.keys import NetworkKey, write_key_file

    if token is None:
        made = NetworkKey.generate(_checked(name) if name else _name_of(file))
    else:
        made = NetworkKey.from_token(_read_token() if token == "-" else token)
        made = _renamed(made, name) if name else made
    write_key_file(file, made)
    quoted = _readable(shlex.quote(shown(file)))
    click.echo(f"{_readable(shown(file))}: network {made.name}, fingerprint {made.fingerprint}")
    click.echo("Whoever holds this file is in the network. Copy it to another machine, over a way you trust:")
    click.echo(f"  scp {quoted} other-machine:")
    click.echo("and run on both:")
    click.echo(f"  pvpn run {quoted} --socks 1080")


@click.group()
def key() -> None:
    """Look at a key file."""


@key.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--qr", is_flag=True, help="Draw the join token as a QR code: whoever scans it is in the network.")
@click.option("--token", is_flag=True, help="Print the join token: whoever reads it is in the network.")
def show(file: Path, qr: bool, token: bool) -> None:
    """Print what a key FILE is: name, network id, fingerprint; never the secret, unless its token is asked for."""
    from proxy_vpn.keys import load_key_file

    loaded = load_key_file(file)
    if token:
        click.echo(loaded.token())
    if qr:
        _draw(loaded)
    if not token and not qr:
        click.echo(f"name         {loaded.name}")
        click.echo(f"network id   {loaded.network_id.hex()}")
        click.echo(f"fingerprint  {loaded.fingerprint}")
        click.echo(f"generation   {loaded.generation}")


def _draw(loaded: NetworkKey) -> None:
    import segno

    # Upper case is QR's dense alphanumeric mode; tokens are read in either.
    code = segno.make_qr(loaded.token().upper(), error="l")
    try:
        "▀▄█".encode(sys.stdout.encoding or "ascii")
        blocks = True
    except UnicodeEncodeError:
        blocks = False
    code.terminal(out=sys.stdout, border=2, compact=blocks)
    click.echo(f"The join token of {loaded.name}: whoever scans it is in the network.", err=True)
    click.echo("On the other machine: pvpn keygen home.key --from-token -", err=True)


def _readable(text: str) -> str:
    """The text as far as stdout's encoding has characters for it, the rest escaped."""
    encoding = sys.stdout.encoding or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _read_token() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("join token", hide_input=True, err=True))
    return sys.stdin.read(MAX_TOKEN_INPUT_CHARS)


def _checked(name: str) -> str:
    from proxy_vpn.addresses import valid_name

    if not valid_name(name):
        raise UsageError(f"{name!a} can't be a network's name", "use 1 to 32 of a-z, 0-9 and - with --name")
    return name


def _name_of(file: Path) -> str:
    """The file's own name made valid: `home.key` is `home`."""
    from proxy_vpn.config import default_name

    return default_name(file.name, fallback="home")


def _renamed(made: NetworkKey, name: str) -> NetworkKey:
    from dataclasses import replace

    return replace(made, name=_checked(name))
