"""The public API: all of it is there, and nothing of it is loaded before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import proxy_vpn

SLOW = ("asyncio", "nacl", "aiohttp", "qh3", "msgspec", "proxy_vpn.keys", "proxy_vpn.daemon")


def test_every_public_name_is_what_its_room_defines() -> None:
    from proxy_vpn import FlowError, NetworkKey, Node, PvpnError, Settings, load_key_file
    from proxy_vpn.config import Settings as settings
    from proxy_vpn.daemon.node import Node as node

    assert (Settings, Node) == (settings, node)
    assert issubclass(FlowError, PvpnError)
    assert callable(load_key_file) and NetworkKey.generate("home").name == "home"
    assert dir(proxy_vpn) == sorted(proxy_vpn.__all__)
    assert all(hasattr(proxy_vpn, name) for name in proxy_vpn.__all__)


def test_an_unknown_name_is_an_ordinary_mistake() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nodes'"):
        _ = proxy_vpn.Nodes  # type: ignore[attr-defined]


def test_it_costs_nothing_until_it_is_used() -> None:
    script = f"import sys, proxy_vpn; print(*(name for name in {SLOW!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
