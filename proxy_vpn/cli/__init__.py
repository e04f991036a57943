"""The command line, the top floor: `main` is the program `pvpn`; `command` holds its commands."""

from __future__ import annotations

from collections.abc import Sequence

EXIT_INTERRUPTED = 128 + 2  # what a shell reports of a program that SIGINT ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (None: this process's); the answer is the exit code, never a traceback."""
    try:
        # Imported here, because Ctrl-C may come while it still is.
        from proxy_vpn.cli.command import run_command

        return run_command(arguments)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
