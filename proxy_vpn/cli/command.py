"""The command `pvpn`. Every command but keygen, key, run and demo is one request to the running process.

Whatever goes wrong ends as one line on stderr, `pvpn: what - what to do`, and an exit code: 1 for a failure,
2 for a command that makes no sense, 141 (SIGPIPE's) when nobody reads the output any more. Commands import what
they need when they run: a request takes no event loop.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from proxy_vpn import __version__
from proxy_vpn.cli.capture import capture
from proxy_vpn.cli.exec import exec_command
from proxy_vpn.cli.keys import key, keygen
from proxy_vpn.cli.requests import connect, doctor, expose, forget, forward, peers, ping, status
from proxy_vpn.cli.run import demo, run
from proxy_vpn.errors import PvpnError, UsageError

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_BROKEN_PIPE = 128 + 13


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click would make a plain failure of it
            return _unread()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pvpn", message="%(prog)s %(version)s")
def cli() -> None:
    """A VPN that needs no server, no account, no configuration and no root: a network is a key file.

    \b
      pvpn keygen home.key                  once; copy home.key to the other machine
      pvpn run home.key --socks 1080        on both
      curl -x socks5h://127.0.0.1:1080 http://peer-b:8000/
    """


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(f"pvpn {__version__}")


COMMANDS = (
    *(keygen, key, run, demo),
    *(forward, connect, exec_command, expose),
    *(status, doctor, peers, ping, capture, forget),
)
for command in COMMANDS:
    cli.add_command(command)
cli.add_command(doctor, "netcheck")


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (None: this process's); the answer is the exit code. Raises KeyboardInterrupt."""
    try:
        code = cli.main(arguments, prog_name="pvpn", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except PvpnError as error:
        return _fail(str(error), EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILURE)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return EXIT_USAGE
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" - see '{context.command_path} --help'" if context else ""
        return _fail(error.format_message().removesuffix(".") + hint, EXIT_USAGE)
    except click.Abort:
        raise KeyboardInterrupt from None
    except BrokenPipeError:
        return _unread()
    except Exception as error:  # the edge: a fault of ours is still one line for whoever typed the command
        if os.environ.get("PVPN_DEBUG"):
            raise
        return _fail(f"internal error: {type(error).__name__}: {str(error)!a} - PVPN_DEBUG=1 shows where", EXIT_FAILURE)


def _unread() -> int:
    # The interpreter flushes stdout once more at its end: let that succeed.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_BROKEN_PIPE


def _fail(text: str, code: int) -> int:
    click.echo("pvpn: " + " ".join(text.split()), err=True)
    return code
