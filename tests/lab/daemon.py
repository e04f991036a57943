"""pvpn in the lab: a network's key file, and peers that run on hosts with it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.lab.hosts import ROOT, Host
from tests.support.processes import Process

# What the installed script runs, by this interpreter: so it is this checkout's code in any environment.
PVPN = [sys.executable, "-m", "proxy_vpn.cli"]
SOCKS_PORT = 1080
UDP_PORT = 41641
MEET_S = 20.0


def make_key(directory: Path, name: str = "home") -> Path:
    """A new network's key file, as a user makes it."""
    path = directory / f"{name}.key"
    subprocess.run([*PVPN, "keygen", str(path)], cwd=ROOT, check=True, capture_output=True, timeout=30)
    return path


class Daemon:
    """One `pvpn run` on a host; every start keeps the same state directory, as on a real machine."""

    def __init__(
        self,
        host: Host,
        key: Path,
        name: str,
        *options: str,
        udp_port: int | None = UDP_PORT,
        socks_port: int = SOCKS_PORT,
        lan: bool = False,
    ) -> None:
        self.lan = lan
        self.host = host
        self.udp_port = udp_port
        self.socks_port = socks_port
        self.name = name
        self.key = key
        self.state = key.parent / f"state-{key.stem}-{name}"
        self.options = [*options, *(["--listen", f"0.0.0.0:{udp_port}"] if udp_port else [])]
        self.program = PVPN
        self.process: Process | None = None

    @property
    def endpoint(self) -> str:
        """Where other hosts find it with `--peer`."""
        return f"{self.host.address}:{self.udp_port}"

    @property
    def output(self) -> str:
        return self.process.output if self.process else ""

    def start(self) -> Daemon:
        """Run it and wait until its proxy listens."""
        self.begin()
        self.wait_for(rf"^proxy: .*127\.0\.0\.1:{self.socks_port}")
        return self

    def begin(self) -> None:
        """Run it, without waiting."""
        socks = ["--socks", str(self.socks_port), "--name", self.name, "--state", str(self.state)]
        self.process = self.host.popen([*self.program, "run", str(self.key), *socks, *self.options], self._environment)

    def wait_for(self, pattern: str, timeout_s: float = MEET_S, since: int = 0) -> re.Match[str]:
        """The first of its lines that holds `pattern`."""
        assert self.process is not None
        return self.process.wait_for(pattern, timeout_s, since)

    def mark(self) -> int:
        """The number of its lines so far, to wait only for later ones."""
        assert self.process is not None
        return self.process.mark()

    def meet(self, *others: Daemon, timeout_s: float = MEET_S) -> None:
        """Wait until it says that each of the others is there."""
        for other in others:
            self.wait_for(rf"^\+ {other.name} ", timeout_s)

    def stop(self) -> int:
        """End it as Ctrl-C and service managers do; its exit code."""
        assert self.process is not None
        return self.process.stop()

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()

    def pvpn(self, *arguments: str, check: bool = True, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        """A control command of this peer's user, to its end."""
        return self.host.run([*PVPN, *arguments], env=self._environment, check=check, timeout_s=timeout_s)

    def start_command(self, *arguments: str) -> Process:
        """A control command that stays, such as `forward`."""
        return self.host.popen([*PVPN, *arguments], self._environment)

    @property
    def wrapper(self) -> Path:
        """`pvpn` as this peer's user would call it, as one word for other programs' settings."""
        path = self.state.with_name(f"pvpn-{self.name}")
        if not path.exists():
            exports = "".join(f"export {name}='{value}'\n" for name, value in self._environment.items())
            words = " ".join(f"'{word}'" for word in PVPN)
            path.write_text(f'#!/bin/sh\n{exports}exec {words} "$@"\n')
            path.chmod(0o700)
        return path

    def exchange(self, role: str, target: str, port: int, size: int = 0) -> Process:
        """A client of tests.lab.exchange on this host, through this peer's proxy."""
        way = ["--host", target, "--socks", str(self.socks_port), "--size", str(size)]
        return self.host.python("-m", "tests.lab.exchange", role, str(port), *way)

    @property
    def _environment(self) -> dict[str, str]:
        quiet = {"PVPN_NO_LAN": "0" if self.lan else "1", "PVPN_NO_PORT_MAPPING": "1"}
        return {"PVPN_STATE": str(self.state), "PYTHONPATH": str(ROOT), **quiet}
