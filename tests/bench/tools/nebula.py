"""Nebula, with a certificate authority of the bench's own and one static host."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence

from tests.bench.tools.tool import FAR_INNER, NEAR_INNER, Pair, Tool, program
from tests.support.dialing import Way
from tests.support.processes import Process

PORT = 4242
DEVICE = "nebula1"
ANY = [{"port": "any", "proto": "any", "host": "any"}]


class Nebula(Tool):
    """No lighthouse: the near end's map holds the far end's address."""

    title = "nebula"
    needs = ("nebula", "nebula-cert")

    def prepare(self, pair: Pair) -> None:
        self._certify(pair, ["ca", "-name", "bench"])
        for name, inner, places in (
            ("near", NEAR_INNER, {FAR_INNER: [f"{pair.server.address}:{PORT}"]}),
            ("far", FAR_INNER, {}),
        ):
            self._certify(pair, ["sign", "-name", name, "-ip", f"{inner}/24"])
            # JSON is YAML.
            (pair.directory / f"{name}.yml").write_text(json.dumps(self._config(pair, name, places)))

    def start_far(self, pair: Pair) -> list[Process]:
        return [self._start(pair, "far")]

    def start_near(self, pair: Pair) -> list[Process]:
        return [self._start(pair, "near")]

    def way(self, pair: Pair) -> Way:
        return Way(FAR_INNER)

    @staticmethod
    def _start(pair: Pair, name: str) -> Process:
        host = pair.client if name == "near" else pair.server
        return host.popen(["nebula", "-config", str(pair.directory / f"{name}.yml")])

    @staticmethod
    def _certify(pair: Pair, arguments: Sequence[str]) -> None:
        subprocess.run(
            [program("nebula-cert"), *arguments], cwd=pair.directory, check=True, capture_output=True, timeout=30
        )

    @staticmethod
    def _config(pair: Pair, name: str, places: Mapping[str, Sequence[str]]) -> dict[str, object]:
        files = {"ca": "ca.crt", "cert": f"{name}.crt", "key": f"{name}.key"}
        return {
            "pki": {role: str(pair.directory / file) for role, file in files.items()},
            "static_host_map": places,
            "lighthouse": {"am_lighthouse": False, "hosts": []},
            "listen": {"host": "0.0.0.0", "port": PORT},
            "punchy": {"punch": True},
            "tun": {"dev": DEVICE},
            "logging": {"level": "warning", "format": "text"},
            "firewall": {"outbound": ANY, "inbound": ANY},
        }
