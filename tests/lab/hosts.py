"""A laboratory of hosts in network namespaces, with root or, through a user namespace, without.

Every host is a network namespace of its own with `eth0` (10.93.N.1/16 and fd93::N/64, MTU 1500) on one bridge, and a
default route to a hub that knows no internet: what goes there is answered with "network unreachable".

A namespace lives as long as its anchor, a `cat` whose standard input this process holds. So nothing is named, nothing
can collide, the machine's own network is never touched, and all of it is gone when the lab closes or this process dies.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.processes import Process
from tests.support.tools import missing_tools, tool_environment

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("ip", "ethtool", "nsenter", "unshare")
COMMAND_S = 60.0
ANCHOR = ("sh", "-c", "echo ready; exec cat")
LAST_HOST = 200


class LabError(RuntimeError):
    """This machine does not let a lab be built; the text says why."""


@cache
def available() -> str | None:
    """Why no lab can be built here, or None when it can."""
    if missing := missing_tools(TOOLS):
        return missing
    try:
        with Lab() as lab:
            lab.host("probe").run(["ip", "address", "show", "dev", "eth0"])
    except LabError as error:
        return str(error)
    return None


class Lab:
    """Hosts on one bridge; a context manager that ends every process it started and every host."""

    def __init__(self) -> None:
        self.hosts: list[Host] = []
        self._closing = ExitStack()
        self._user: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        try:
            self._hub = self._build_hub()
        except BaseException:
            self._closing.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    @property
    def rootless(self) -> bool:
        """Whether the hosts live in a user namespace, where this user plays root."""
        return bool(self._user)

    def host(self, name: str, addresses: int = 1) -> Host:
        """One more host; with several addresses it also has the following 10.93.N.1."""
        first = self.hosts[-1].last_number + 1 if self.hosts else 1
        last = first + addresses - 1
        if last > LAST_HOST:
            raise LabError(f"a lab has room for {LAST_HOST} addresses")
        anchor = self._anchor([*self._enter(self._hub), "unshare", "--net"])
        host = Host(self, name, first, last, self._enter(anchor))
        port = f"port{first}"
        self._ip(
            self._hub, [f"link add {port} type veth peer name eth0 netns {anchor}", f"link set {port} master br0 up"]
        )
        self._ip(anchor, ["link set lo up", "link set eth0 up mtu 1500"])
        self._ip(anchor, [f"address add {ip}/16 dev eth0" for ip in host.addresses])
        self._ip(anchor, [f"address add {host.address6}/64 dev eth0 nodad", "route add default via 10.93.0.1"])
        self.hosts.append(host)
        return host

    def set_offloads(self, on: bool) -> None:
        """Switch segmentation and receive offloads of every link, as `ethtool -K` does."""
        state = "on" if on else "off"
        features = ("tso", "gso", "gro", "tx-udp-segmentation")
        switches = [word for feature in features for word in (feature, state)]
        for host in self.hosts:
            host.run(["ethtool", "-K", "eth0", *switches])
            self._run([*self._enter(self._hub), "ethtool", "-K", f"port{host.number}", *switches])

    def start(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> Process:
        """A process that ends with the lab at the latest."""
        process = Process(argv, env=tool_environment(env), cwd=ROOT)
        self._closing.callback(process.stop)
        return process

    def _build_hub(self) -> int:
        try:
            hub = self._anchor(["unshare", "--net"])
        except LabError as refusal:
            try:
                hub = self._anchor(["unshare", "--user", "--map-root-user", "--net"])
            except LabError as error:
                raise LabError(f"no network namespaces here: {refusal}; {error}") from None
            self._user = ("--user", "--preserve-credentials")
        self._ip(
            hub, ["link set lo up", "link add br0 type bridge", "link set br0 up", "address add 10.93.0.1/16 dev br0"]
        )
        # Forwarding without a route is what makes the hub answer "unreachable" instead of leaving hosts to time out.
        # Where /proc/sys is read-only (containers) they do time out, and nothing here depends on it.
        self._run([*self._enter(hub), "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=False)
        return hub

    def _anchor(self, unshare: Sequence[str]) -> int:
        process = Process([*unshare, *ANCHOR], env=tool_environment())
        self._closing.callback(process.kill)
        try:
            process.wait_for("^ready$")
        except AssertionError:
            raise LabError(process.output or "unshare said nothing") from None
        return process.pid

    def _enter(self, anchor: int) -> tuple[str, ...]:
        return ("nsenter", *self._user, "--net", "--target", str(anchor), "--")

    def _ip(self, anchor: int, commands: Sequence[str]) -> None:
        self._run([*self._enter(anchor), "ip", "-batch", "-"], text="\n".join(commands))

    def _run(self, argv: Sequence[str], text: str = "", check: bool = True) -> None:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, env=tool_environment(), timeout=COMMAND_S, check=False
        )
        if check and done.returncode:
            raise LabError(f"{' '.join(argv)}: {done.stderr.strip()}")


class Host:
    """One machine of the lab: its addresses, and ways to run programs in it."""

    def __init__(self, lab: Lab, name: str, number: int, last_number: int, enter: tuple[str, ...]) -> None:
        self.lab = lab
        self.name = name
        self.number = number
        self.last_number = last_number
        self.addresses = [f"10.93.{n}.1" for n in range(number, last_number + 1)]
        self.address6 = f"fd93::{number:x}"
        self._enter = enter

    @property
    def address(self) -> str:
        """Its first IPv4 address."""
        return self.addresses[0]

    def popen(self, argv: Sequence[str], env: Mapping[str, str] | None = None, *, as_self: bool = False) -> Process:
        """Start a program here; `as_self` keeps the user a rootless lab would otherwise show as root."""
        return self.lab.start(self.command(argv, as_self=as_self), env)

    def python(self, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
        """Start this interpreter here, from the root of the checkout."""
        return self.popen([sys.executable, *arguments], env)

    def run(
        self,
        argv: Sequence[str],
        *,
        text: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = COMMAND_S,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program here to its end; AssertionError with what it said when it fails and `check` is set."""
        done = subprocess.run(
            self.command(argv),
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            env=tool_environment(env),
            cwd=ROOT,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(argv)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def command(self, argv: Sequence[str], *, as_self: bool = False) -> list[str]:
        """The command line that runs `argv` here."""
        back = as_self and self.lab.rootless
        user = ("unshare", "--user", f"--map-user={os.getuid()}", f"--map-group={os.getgid()}", "--") if back else ()
        return [*self._enter, *user, *argv]
