"""pvpn itself, with one of its engines."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.bench.tools.tool import SOCKS_PORT, Pair, Tool
from tests.lab.daemon import Daemon, make_key
from tests.lab.hosts import Host
from tests.support.dialing import Way
from tests.support.processes import Process

FAR_NAME = "far"


class Pvpn(Tool):
    """Two daemons of this checkout; `options` go to both."""

    def __init__(self, engine: str, *options: str, title: str = "") -> None:
        self.title = title or f"pvpn {engine}"
        self._options = ("--engine", engine, *(options or ("--no-dht",)))

    def daemon(self, host: Host, key: Path, name: str, *options: str) -> Daemon:
        """One member of a network."""
        return Daemon(host, key, name, *self._options, *options, socks_port=SOCKS_PORT)

    def prepare(self, pair: Pair) -> None:
        make_key(pair.directory)

    def start_far(self, pair: Pair) -> list[Process]:
        return self._run(self._far(pair).start())

    def start_near(self, pair: Pair) -> list[Process]:
        near = self.daemon(pair.client, self._key(pair), "near", "--peer", self._far(pair).endpoint)
        near.begin()
        return self._run(near)

    def way(self, pair: Pair) -> Way:
        return Way(FAR_NAME, SOCKS_PORT)

    def _far(self, pair: Pair) -> Daemon:
        return self.daemon(pair.server, self._key(pair), FAR_NAME)

    @staticmethod
    def _key(pair: Pair) -> Path:
        return pair.directory / "home.key"

    @staticmethod
    def _run(daemon: Daemon) -> list[Process]:
        assert daemon.process is not None
        return [daemon.process]


class PvpnTun(Pvpn):
    """The same with a TUN device at both ends; programs use the far end's virtual address."""

    def __init__(self) -> None:
        super().__init__("qh3", "--no-dht", "--tun", title="pvpn TUN")

    def missing(self) -> str | None:
        return None if os.geteuid() == 0 else "a TUN device needs root"

    def way(self, pair: Pair) -> Way:
        status = json.loads(self._far(pair).pvpn("status", "--json").stdout)
        return Way(status["networks"][0]["ipv4"])
