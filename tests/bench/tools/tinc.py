"""tinc 1.0 in router mode."""

from __future__ import annotations

import subprocess

from tests.bench.tools.tool import FAR_INNER, NEAR_INNER, Pair, Tool, program
from tests.lab.hosts import Host
from tests.support.dialing import Way
from tests.support.processes import Process

INNER = {"near": NEAR_INNER, "far": FAR_INNER}
DEVICE = "tinc0"


class Tinc(Tool):
    """Two nodes with each other's RSA keys, one of which connects to the other."""

    title = "tinc"
    needs = ("tincd",)

    def prepare(self, pair: Pair) -> None:
        for name, connect in (("near", "ConnectTo = far\n"), ("far", "")):
            home = pair.path(name)
            hosts = home / "hosts"
            hosts.mkdir()
            settings = f"Name = {name}\nDeviceType = tun\nInterface = {DEVICE}\nAddressFamily = ipv4\n"
            (home / "tinc.conf").write_text(f"{settings}LocalDiscovery = no\n{connect}")
            (hosts / name).write_text(f"Subnet = {INNER[name]}/32\n")
            up = home / "tinc-up"
            up.write_text(f'#!/bin/sh\nip address add {INNER[name]}/24 dev "$INTERFACE"\nip link set "$INTERFACE" up\n')
            up.chmod(0o700)
            subprocess.run(
                [program("tincd"), "-c", str(home), "-K"], input=b"\n\n", check=True, capture_output=True, timeout=60
            )
        far = (pair.path("far") / "hosts" / "far").read_text()
        (pair.path("near") / "hosts" / "far").write_text(f"Address = {pair.server.address}\n{far}")
        (pair.path("far") / "hosts" / "near").write_text((pair.path("near") / "hosts" / "near").read_text())

    def start_far(self, pair: Pair) -> list[Process]:
        return [self._start(pair, pair.server, "far")]

    def start_near(self, pair: Pair) -> list[Process]:
        return [self._start(pair, pair.client, "near")]

    def way(self, pair: Pair) -> Way:
        return Way(FAR_INNER)

    @staticmethod
    def _start(pair: Pair, host: Host, name: str) -> Process:
        home = pair.path(name)
        process = host.popen(["tincd", "-c", str(home), "-D", "-d1", f"--pidfile={home / 'pid'}"])
        process.wait_for("^Ready")
        return process
