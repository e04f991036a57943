"""pvpn: a VPN without a server, an account, an administrator or root.

async with Node(Settings(keys=(load_key_file("home.key"),), name="peer-a")) as node:
    reader, writer = await node.open("peer-b", 22)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy_vpn.config import Settings
    from proxy_vpn.daemon.node import Node
    from proxy_vpn.errors import FlowError, PvpnError
    from proxy_vpn.keys import NetworkKey, load_key_file

__version__ = "0.1.0"
__all__ = ["FlowError", "NetworkKey", "Node", "PvpnError", "Settings", "__version__", "load_key_file"]

_ROOMS = {
    "FlowError": "proxy_vpn.errors",
    "NetworkKey": "proxy_vpn.keys",
    "Node": "proxy_vpn.daemon.node",
    "PvpnError": "proxy_vpn.errors",
    "Settings": "proxy_vpn.config",
    "load_key_file": "proxy_vpn.keys",
}


if not TYPE_CHECKING:  # type checkers would take every name for one of ours

    def __getattr__(name: str) -> object:
        # Imported when used: a control command starts without an event loop, an engine or cryptography.
        if name not in _ROOMS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_ROOMS[name]), name)

    def __dir__() -> list[str]:
        return sorted(__all__)
