"""Yggdrasil: one TCP peering, its TUN as large as it likes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence

from tests.bench.tools.tool import Pair, Tool, program
from tests.support.dialing import Way
from tests.support.processes import Process

PORT = 9001
DEVICE = "ygg0"


class Yggdrasil(Tool):
    """Two nodes that accept only each other's keys, find nobody by multicast and have no admin socket."""

    title = "yggdrasil"
    needs = ("yggdrasil",)

    def prepare(self, pair: Pair) -> None:
        configs = {name: json.loads(_yggdrasil("-genconf", "-json")) for name in ("near", "far")}
        for name, other in (("near", "far"), ("far", "near")):
            configs[name] |= {
                "AdminListen": "none",
                "MulticastInterfaces": [],
                "AllowedPublicKeys": [configs[other]["PublicKey"]],
                "IfName": DEVICE,
                "NodeInfoPrivacy": True,
            }
        configs["near"]["Peers"] = [f"tcp://{pair.server.address}:{PORT}"]
        configs["far"]["Listen"] = [f"tcp://0.0.0.0:{PORT}"]
        for name, config in configs.items():
            (pair.directory / f"{name}.conf").write_text(json.dumps(config))
        address = _yggdrasil("-useconffile", str(pair.directory / "far.conf"), "-address")
        (pair.directory / "address").write_text(address.strip())

    def start_far(self, pair: Pair) -> list[Process]:
        return [pair.server.popen(self._command(pair, "far"))]

    def start_near(self, pair: Pair) -> list[Process]:
        return [pair.client.popen(self._command(pair, "near"))]

    def way(self, pair: Pair) -> Way:
        return Way((pair.directory / "address").read_text())

    @staticmethod
    def _command(pair: Pair, name: str) -> Sequence[str]:
        return ["yggdrasil", "-useconffile", str(pair.directory / f"{name}.conf")]


def _yggdrasil(*arguments: str) -> str:
    done = subprocess.run([program("yggdrasil"), *arguments], check=True, capture_output=True, text=True, timeout=20)
    return done.stdout
