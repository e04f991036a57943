"""A process that ends with its standard input."""

from __future__ import annotations

import signal
import subprocess
import sys

PROGRAM = """
import signal
from proxy_vpn.daemon.lifeline import stop_with_stdin
stop_with_stdin()
print("watching", flush=True)
signal.pause()
"""


def test_the_end_of_stdin_is_a_sigterm() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"watching\n"
        process.stdin.write(b"noise")
        process.stdin.flush()
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(20) == -signal.SIGTERM
