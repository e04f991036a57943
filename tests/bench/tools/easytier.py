"""EasyTier over UDP, as PyPI has it: with a TUN, and as a SOCKS proxy without one."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from abc import abstractmethod
from pathlib import Path

from tests.bench.tools.tool import FAR_INNER, NEAR_INNER, SOCKS_PORT, Pair, Tool
from tests.lab.hosts import Host
from tests.support.dialing import Way
from tests.support.processes import Process
from tests.support.tools import find_tool

PORT = 11010
MODULE = "easytier_pyo3"
# An interpreter that has the module, when this one has not.
INTERPRETER_VARIABLE = "BENCH_EASYTIER_PYTHON"
NODE = Path(__file__).with_name("easytier_node.py")


class EasyTier(Tool):
    """Two nodes, one of which knows the other's address. Each is a process of Python, whose memory counts."""

    def missing(self) -> str | None:
        if named := os.environ.get(INTERPRETER_VARIABLE):
            return None if find_tool(named) else f"{INTERPRETER_VARIABLE} names no program: {named}"
        if importlib.util.find_spec(MODULE) is not None:
            return None
        return f"no {MODULE} here: pip install easytier-pyo3, or name a Python that has it in {INTERPRETER_VARIABLE}"

    def start_far(self, pair: Pair) -> list[Process]:
        config = self._config("far", FAR_INNER) | {"listeners": [f"udp://0.0.0.0:{PORT}"]}
        return [self._start(pair.server, config)]

    def start_near(self, pair: Pair) -> list[Process]:
        config = self._config("near", NEAR_INNER) | {"peer": [{"uri": f"udp://{pair.server.address}:{PORT}"}]}
        return [self._start(pair.client, config)]

    @abstractmethod
    def _config(self, name: str, inner: str) -> dict[str, object]:
        """What both ends are told."""

    def _common(self, name: str, inner: str, flags: dict[str, object]) -> dict[str, object]:
        return {
            "instance_name": name,
            "hostname": name,
            "ipv4": f"{inner}/24",
            "network_identity": {"network_name": "bench", "network_secret": "bench"},
            "stun_servers": [],
            "tcp_stun_servers": [],
            "stun_servers_v6": [],
            "flags": {"disable_upnp": True, **flags},
        }

    @staticmethod
    def _start(host: Host, config: dict[str, object]) -> Process:
        interpreter = os.environ.get(INTERPRETER_VARIABLE, sys.executable)
        return host.popen([interpreter, str(NODE), json.dumps(config)])


class EasyTierSocks(EasyTier):
    """Its mode without a TUN."""

    title = "EasyTier SOCKS"

    def _config(self, name: str, inner: str) -> dict[str, object]:
        config = self._common(name, inner, {"no_tun": True, "bind_device": False})
        return config | ({"socks5_proxy": f"socks5://127.0.0.1:{SOCKS_PORT}"} if name == "near" else {})

    def way(self, pair: Pair) -> Way:
        return Way(FAR_INNER, SOCKS_PORT)


class EasyTierTun(EasyTier):
    """Its usual mode."""

    title = "EasyTier TUN"

    def _config(self, name: str, inner: str) -> dict[str, object]:
        return self._common(name, inner, {"dev_name": "et0"})

    def way(self, pair: Pair) -> Way:
        return Way(FAR_INNER)
