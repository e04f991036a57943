"""A node alone: what it warns of, and when that is settled."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from proxy_vpn.addresses import Address, ForwardSpec, Target
from proxy_vpn.config import Settings
from proxy_vpn.daemon import node as module
from proxy_vpn.daemon.console import Console
from proxy_vpn.daemon.node import Node
from proxy_vpn.keys import NetworkKey
from proxy_vpn.mesh.virtual import SHARED_SPACE
from proxy_vpn.net.busy_poll import BusyPollSelector

TAKEN = "another machine calls itself peer-b: it is peer-b-ab12 here - if peer-b was installed anew: pvpn forget peer-b"


def alone(state: Path, use: Callable[[Node], Coroutine[Any, Any, None]], **settings: Any) -> list[str]:
    """Run a node without a DHT on loopback and use it; what it printed."""
    stream = io.StringIO()

    async def main() -> None:
        node = Node(
            Settings(
                keys=(NetworkKey.generate("home"),),
                name="peer-a",
                listen=(Address("127.0.213.1", 0),),
                dht=False,
                lan=False,
                port_mapping=False,
                state=state,
                **settings,
            ),
            Console(stream),
        )
        async with node:
            await use(node)

    asyncio.run(main())
    return stream.getvalue().splitlines()


def test_a_node_of_its_own_does_not_sleep_for_microseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    selectors: list[object] = []

    async def look(settings: Settings, console: Console) -> None:
        selectors.append(vars(asyncio.get_running_loop())["_selector"])

    monkeypatch.setattr(module, "_run", look)
    monkeypatch.setattr(module, "keep_buffers", lambda: None)
    monkeypatch.setattr(Console, "take_logs", lambda console, verbosity: None)
    assert module.run(Settings(keys=(NetworkKey.generate("home"),), name="peer-a")) == 0
    assert [type(one) for one in selectors] == [BusyPollSelector]


def test_a_proxy_for_everybody_is_said_and_stays_in_the_status(state_dir: Path) -> None:
    async def use(node: Node) -> None:
        (warning,) = node.status().warnings
        assert f"anybody who reaches {node.proxies[0]} can use this proxy" in warning

    assert len(alone(state_dir, use, proxies=(Target("0.0.0.0", 0), Target("127.0.0.1", 0)))) == 1


def test_a_forward_for_everybody_is_said_until_it_is_removed(state_dir: Path) -> None:
    async def use(node: Node) -> None:
        private = await node.add_forward(ForwardSpec.parse("0:peer-b:22"), held=False)
        public = await node.add_forward(ForwardSpec.parse("0.0.0.0:0:peer-b:22"), held=False)
        node.remove_forward(private)
        assert "can use this forward - leave out 0.0.0.0" in node.status().warnings[0]
        node.remove_forward(public)
        assert node.status().warnings == ()

    assert len(alone(state_dir, use)) == 1


def test_a_host_that_uses_all_of_the_shared_space_is_told(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "networks_in_use", lambda: [SHARED_SPACE])

    async def use(node: Node) -> None:
        node._look_for_collisions()
        (warning,) = node.status().warnings
        assert "uses all of 100.64.0.0/10" in warning and str(node.meshes[0].virtual.v4) in warning

    assert len(alone(state_dir, use)) == 1


def test_forgetting_a_name_settles_its_warning(state_dir: Path) -> None:
    async def use(node: Node) -> None:
        node.warning(TAKEN)
        node.meshes[0].roster.meet(b"b" * 32, "peer-b")
        assert node.status().warnings == (TAKEN,)
        await node.forget("peer-b", "")
        assert node.status().warnings == ()

    assert alone(state_dir, use) == [f"! {TAKEN}"]
