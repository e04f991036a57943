"""A line with faults between hosts of the lab: the kernel's netem in userspace, changed while it runs.

`Wire(near, far)` puts two hosts on a private line; `Wire(near)` puts a host's line to the lab's bridge through it. The
hosts keep their addresses, and `eth0` becomes one end of the wire. The work is done by tests.lab.carrier, which runs in
a namespace of its own and holds two TAP devices; one or both are moved to the hosts, and it keeps their descriptors.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tests.lab.carrier import TUN_DEVICE, Counts
from tests.lab.hosts import Host, LabError

# Frames the kernel holds until the carrier gets the processor; beyond, the kernel drops and no counter tells.
TAP_QUEUE_FRAMES = 10_000
ANSWER_S = 10.0


class Wire:
    """A faulty line of hosts of one lab; it lasts until the lab ends.

    Keyword arguments are fields of Line for both directions. `seed` decides which frames meet a probability. LabError
    where there is no TAP device to be had.
    """

    def __init__(self, near: Host, far: Host | None = None, *, seed: int = 1, mtu: int = 1500, **line: float) -> None:
        if reason := unavailable():
            raise LabError(reason)
        self._near = near
        self._box = near.popen(["unshare", "--net", sys.executable, "-m", "tests.lab.carrier", str(seed)])
        self._box.wait_for("^ready$")
        self._plug(near, "near", mtu)
        if far is not None:
            self._plug(far, "far", mtu)
        else:
            self._in_box(
                f"link set far mtu {mtu} txqueuelen {TAP_QUEUE_FRAMES} addrgenmode none",
                f"link set near-spare mtu {mtu} addrgenmode none",
                "link add bridge type bridge",
                "link set bridge addrgenmode none",
                *(f"link set {port} master bridge up" for port in ("far", "near-spare")),
                "link set bridge up",
            )
        if line:
            self.set(**line)

    def set(self, way: str = "both", /, **line: float) -> None:
        """Change fields of Line for frames that come from now on: of `out` (from near), `in` or both directions."""
        self._ask(f"set {way} " + " ".join(f"{name}={value:g}" for name, value in line.items()))

    def down(self) -> None:
        """Cut the line, silently."""
        self.set(up=0)

    def up(self) -> None:
        """Mend it."""
        self.set(up=1)

    def counts(self) -> dict[str, Counts]:
        """So far, of `out` and `in`."""
        return {way: Counts(**counts) for way, counts in json.loads(self._ask("count")).items()}

    def _ask(self, command: str) -> str:
        since = self._box.mark()
        self._box.tell(command)
        kind, _, answer = self._box.wait_for("^(ok|error)", ANSWER_S, since).string.partition(" ")
        if kind != "ok":
            raise LabError(f"the wire does not understand {command!r}: {answer}")
        return answer

    def _plug(self, host: Host, device: str, mtu: int) -> None:
        """Make `device` of the box the eth0 of a host, with its addresses; the one it had is kept in the box."""
        addresses = _ip_json(host, "address", "show", "dev", "eth0")[0]["addr_info"]
        gateways = [route["gateway"] for route in _ip_json(host, "-4", "route", "show", "default", "dev", "eth0")]
        with host.popen(["sh", "-c", "echo ready; exec cat"]) as inside:
            inside.wait_for("^ready$")
            _ip(host, f"link set eth0 netns {self._box.pid} name {device}-spare")
            self._in_box(f"link set {device} netns {inside.pid} name eth0")
        _ip(
            host,
            f"link set eth0 up mtu {mtu} txqueuelen {TAP_QUEUE_FRAMES}",
            *(
                f"address add {each['local']}/{each['prefixlen']} dev eth0 {_no_dad(each)}"
                for each in addresses
                if each["scope"] == "global"
            ),
            *(f"route add default via {gateway}" for gateway in gateways),
        )

    def _in_box(self, *commands: str) -> None:
        _ip(self._near, *commands, enter=["nsenter", "--net", "--target", str(self._box.pid), "--"])


def unavailable() -> str | None:
    """Why there can be no wire for this user, or None."""
    try:
        os.close(os.open(TUN_DEVICE, os.O_RDWR))
    except OSError as error:
        return f"no TAP devices: {error}"
    return None


def _ip(host: Host, *commands: str, enter: Sequence[str] = ()) -> None:
    host.run([*enter, "ip", "-batch", "-"], text="\n".join(commands))


def _ip_json(host: Host, *question: str) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = json.loads(host.run(["ip", "-json", *question]).stdout)
    return answer


def _no_dad(address: Mapping[str, Any]) -> str:
    """An IPv6 address is of use at once when nobody asks first whether another has it."""
    return "nodad" if address["family"] == "inet6" else ""
