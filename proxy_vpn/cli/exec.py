"""`pvpn exec`: a command in a network of its own, whose only way out is the running process. No root is needed.

This process becomes the command (exec), with the same process id: so exit codes, signals, job control and the terminal
are the command's own, and nothing stands between it and whoever started it.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from pathlib import Path

import click

from proxy_vpn.cli.options import net_option, option, state_option
from proxy_vpn.errors import PvpnError, StateError, UsageError

EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127  # as shells, env and timeout say it
_SHELL = "/bin/sh"


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@option("--only-peers", is_flag=True, help="Let it reach peers alone, not the internet.")
@net_option
@state_option
def exec_command(command: tuple[str, ...], only_peers: bool, net: str, state: Path | None) -> int:
    """Run a COMMAND that reaches peers by name, without root.

    \b
      pvpn exec -- ssh peer-b
      pvpn exec -- curl http://peer-b:8000/
      pvpn exec -- bash

    It gets a network of its own (a Linux user and network namespace) with pvpn as the only way out: to peers, and
    through this machine's own connections to the internet. Peers reach what it listens on. That network ends with
    COMMAND; what it leaves running in the background reaches nothing any more. The exit code is COMMAND's.
    """
    if not command:
        raise UsageError("no command given", "write for example: pvpn exec -- ssh peer-b")
    if not sys.platform.startswith("linux"):
        raise UsageError("pvpn exec needs Linux", "use --socks or 'pvpn forward' here")
    program = shutil.which(command[0])
    if program is None:
        return _not_runnable(command[0])

    from proxy_vpn.daemon.private import check_private
    from proxy_vpn.daemon.sockets import exec_socket
    from proxy_vpn.doors.enclosure import enclose
    from proxy_vpn.doors.namespace_wire import Wish

    path = exec_socket(state)
    check_private(path.parent)
    enclose(str(path), Wish(net, only_peers))
    return _become(program, command)


def _not_runnable(name: str) -> int:
    if os.path.exists(name) and os.path.dirname(name):
        _say(StateError(f"{name!a} can't be executed", "see its mode, with ls -l"))
        return EXIT_NOT_EXECUTABLE
    _say(StateError(f"no command is called {name!a}", "it is looked for in the directories of PATH"))
    return EXIT_NOT_FOUND


def _become(program: str, command: tuple[str, ...]) -> int:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and a program inherits that
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        try:
            os.execv(program, command)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            os.execv(_SHELL, [_SHELL, program, *command[1:]])  # a script without #!, as execvp(3) and shells do
    except OSError as error:
        _say(StateError(f"{program!a} can't be executed: {error.strerror}"))
        return EXIT_NOT_EXECUTABLE


def _say(error: PvpnError) -> None:
    click.echo(f"pvpn: {error}", err=True)
