"""WireGuard in userspace: Debian's wireguard-go, with `wg` to give it its keys."""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path

from tests.bench.tools.tool import FAR_INNER, NEAR_INNER, Pair, Tool, program
from tests.lab.hosts import Host
from tests.support.dialing import Way
from tests.support.processes import Process

PORT = 51820
MTU_BYTES = 1420
# Both ends, and whoever else uses wireguard-go on this machine, keep control sockets in one directory by interface.
CONTROL_SOCKETS = Path("/run/wireguard")
_numbers = itertools.count()


class WireGuard(Tool):
    """One tunnel interface on each host, each told the other's key; the near end is told where the far one is."""

    title = "wireguard-go"
    needs = ("wireguard-go", "wg")

    def missing(self) -> str | None:
        if reason := super().missing():
            return reason
        return None if os.geteuid() == 0 else f"wireguard-go keeps its control socket in {CONTROL_SOCKETS}: root only"

    def prepare(self, pair: Pair) -> None:
        near, far = _wg("genkey"), _wg("genkey")
        near_public, far_public = _wg("pubkey", near), _wg("pubkey", far)
        endpoint = f"Endpoint = {pair.server.address}:{PORT}\n"
        _write(pair.directory / "near.conf", near, far_public, FAR_INNER, endpoint)
        _write(pair.directory / "far.conf", far, near_public, NEAR_INNER)

    def start_far(self, pair: Pair) -> list[Process]:
        return [_start(pair.server, pair.directory / "far.conf", FAR_INNER)]

    def start_near(self, pair: Pair) -> list[Process]:
        return [_start(pair.client, pair.directory / "near.conf", NEAR_INNER)]

    def way(self, pair: Pair) -> Way:
        return Way(FAR_INNER)


def _start(host: Host, config: Path, address: str) -> Process:
    name = f"wg{os.getpid()}n{next(_numbers)}"
    process = host.popen(["wireguard-go", "--foreground", name], {"LOG_LEVEL": "verbose"})
    process.wait_for("UAPI listener started")
    host.run(["wg", "setconf", name, str(config)])
    host.run(["ip", "-batch", "-"], text=f"address add {address}/24 dev {name}\nlink set {name} mtu {MTU_BYTES} up\n")
    return process


def _wg(verb: str, text: str = "") -> str:
    done = subprocess.run([program("wg"), verb], input=text, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _write(path: Path, private: str, public: str, peer_inner: str, endpoint: str = "") -> None:
    interface = f"[Interface]\nPrivateKey = {private}\nListenPort = {PORT}\n"
    path.touch(mode=0o600)
    path.write_text(f"{interface}[Peer]\nPublicKey = {public}\nAllowedIPs = {peer_inner}/32\n{endpoint}")
