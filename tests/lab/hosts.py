"""A laboratory of hosts in network namespaces, with root or, through a user namespace, without.

Every host is a network namespace of its own with `eth0` (10.93.N.1/16 and fd93::N/64, MTU 1500) on one bridge, and a
default route to a hub that knows no internet: what goes there is answered with "network unreachable". A lab may use
another /16, such as PUBLIC, which programs take for internet addresses. Hosts behind routers: tests.lab.nat.

A namespace lives as long as its anchor, a `cat` whose standard input this process holds. So nothing is named, nothing
can collide, the machine's own network is never touched, and all of it is gone when the lab closes or this process dies.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
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
PRIVATE = "10.93"
PUBLIC = "45.93"
# With a queue of half a megabyte: what a socket may hold back by default fits in, four megabytes would not.
GIGABIT = "rate 1gbit burst 128kb latency 4ms"
# Containers often mount /proc/sys read-only: then as a mount of one's own, and at last a /proc of one's own, may do.
ALLOW_FORWARDING = """
allow() { echo 1 > /proc/sys/net/ipv4/ip_forward; }
allow || { mount -o remount,bind,rw /proc/sys && allow; } || { mount -t proc proc /proc && allow; }
"""


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


def resolving(resolv_conf: Path, argv: Sequence[str]) -> list[str]:
    """The command line by which `argv` reads another /etc/resolv.conf than this machine's."""
    return ["unshare", "--mount", "sh", "-c", f'mount --bind "{resolv_conf}" /etc/resolv.conf && exec "$0" "$@"', *argv]


class Lab:
    """Hosts on one bridge; a context manager that ends every process it started and every host.

    `network` is the first half of its IPv4 addresses.
    """

    def __init__(self, network: str = PRIVATE) -> None:
        self.hosts: list[Host] = []
        self.network = network
        self._closing = ExitStack()
        self._user: tuple[str, ...] = ()
        self._last_number = 0

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
        first = self._last_number + 1
        self._last_number = last = first + addresses - 1
        if last > LAST_HOST:
            raise LabError(f"a lab has room for {LAST_HOST} addresses")
        numbers = range(first, last + 1)
        return self.plug(name, self._hub, [f"{self.network}.{n}.1" for n in numbers], f"fd93::{first:x}")

    def plug(self, name: str, segment: Segment, addresses: Sequence[str], address6: str = "") -> Host:
        """One more host, on this bridge, with these addresses."""
        anchor = self._anchor([*self.enter(segment.anchor), "unshare", "--net"])
        host = Host(self, name, anchor, segment, addresses, address6)
        bridge = [
            f"link add {host.port} type veth peer name eth0 netns {anchor}",
            f"link set {host.port} master {segment.bridge} up",
        ]
        self._ip(segment.anchor, bridge)
        self._ip(anchor, ["link set lo up", *host.settings])
        segment.ports += 1
        self.hosts.append(host)
        return host

    def cable(self, near: Host, far: Host) -> None:
        """Take two hosts off the bridge and join them by a veth, with the addresses they have: nobody else is there."""
        for host in (near, far):
            self._ip(host.anchor, ["link delete eth0"])
            host.cabled = True
        self._ip(near.anchor, [f"link add eth0 type veth peer name eth0 netns {far.anchor}"])
        for host in (near, far):
            self._ip(host.anchor, host.settings)

    def allow_forwarding(self, anchor: int) -> None:
        """Make a namespace pass on what is not for itself; LabError where this machine does not let it."""
        self._run([*self.enter(anchor), "unshare", "--mount", "sh", "-c", ALLOW_FORWARDING])

    def set_offloads(self, on: bool) -> None:
        """Switch segmentation and receive offloads of every link, as `ethtool -K` does."""
        state = "on" if on else "off"
        features = ("tso", "gso", "gro", "tx-udp-segmentation")
        switches = [word for feature in features for word in (feature, state)]
        for host in self.hosts:
            host.run(["ethtool", "-K", "eth0", *switches])
            if not host.cabled:
                self._run([*self.enter(host.segment.anchor), "ethtool", "-K", host.port, *switches])

    def start(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> Process:
        """A process that ends with the lab at the latest."""
        process = Process(argv, env=tool_environment(env), cwd=ROOT)
        self._closing.callback(process.stop)
        return process

    def _build_hub(self) -> Segment:
        try:
            hub = self._anchor(["unshare", "--net"])
        except LabError as refusal:
            try:
                hub = self._anchor(["unshare", "--user", "--map-root-user", "--net"])
            except LabError as error:
                raise LabError(f"no network namespaces here: {refusal}; {error}") from None
            self._user = ("--user", "--preserve-credentials")
        gateway = f"{self.network}.0.1"
        self._ip(
            hub, ["link set lo up", "link add br0 type bridge", "link set br0 up", f"address add {gateway}/16 dev br0"]
        )
        # Forwarding without a route is what makes the hub answer "unreachable" instead of leaving hosts to time out.
        # Where that is not allowed they do time out, and nothing here depends on it.
        with suppress(LabError):
            self.allow_forwarding(hub)
        return Segment(hub, "br0", gateway, 16)

    def _anchor(self, unshare: Sequence[str]) -> int:
        process = Process([*unshare, *ANCHOR], env=tool_environment())
        self._closing.callback(process.kill)
        try:
            process.wait_for("^ready$")
        except AssertionError:
            raise LabError(process.output or "unshare said nothing") from None
        return process.pid

    def enter(self, anchor: int) -> tuple[str, ...]:
        """The beginning of a command line that runs in a namespace."""
        return ("nsenter", *self._user, "--net", "--target", str(anchor), "--")

    def _ip(self, anchor: int, commands: Sequence[str]) -> None:
        self._run([*self.enter(anchor), "ip", "-batch", "-"], text="\n".join(commands))

    def _run(self, argv: Sequence[str], text: str = "", check: bool = True) -> None:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, env=tool_environment(), timeout=COMMAND_S, check=False
        )
        if check and done.returncode:
            raise LabError(f"{' '.join(argv)}: {done.stderr.strip()}")


@dataclass
class Segment:
    """A bridge to plug hosts into: the namespace that holds it, and the way out for those on it."""

    anchor: int
    bridge: str
    gateway: str
    prefix_bits: int
    ports: int = 0


class Host:
    """One machine of the lab: its addresses, and ways to run programs in it."""

    def __init__(
        self, lab: Lab, name: str, anchor: int, segment: Segment, addresses: Sequence[str], address6: str = ""
    ) -> None:
        self.lab = lab
        self.name = name
        self.anchor = anchor
        self.segment = segment
        self.port = f"port{segment.ports + 1}"
        """Its end on the bridge."""
        self.cabled = False
        """Or joined to another host."""
        self.addresses = list(addresses)
        self.address6 = address6
        self._enter = lab.enter(anchor)

    @property
    def settings(self) -> list[str]:
        """The commands of `ip` that give `eth0` its addresses and its route, also when it is made anew."""
        bits = self.segment.prefix_bits
        addresses = [f"address add {address}/{bits} dev eth0" for address in self.addresses]
        addresses6 = [f"address add {self.address6}/64 dev eth0 nodad"] if self.address6 else []
        gateway = f"route add default via {self.segment.gateway}"
        return ["link set eth0 up mtu 1500", *addresses, *addresses6, gateway]

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

    def slow_down(self, line: str) -> None:
        """Let its interface send no faster than `line` says, in tc-tbf(8)'s words."""
        self.run(["tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", *line.split()])

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
