"""What peers may reach on this host (DESIGN, decision 9): the rules of `--expose`, applied to one port."""

from __future__ import annotations

from proxy_vpn.config import Expose


class Policy:
    """The exposure rules in force; they may be extended while running."""

    def __init__(self, expose: Expose) -> None:
        self.expose = expose

    def extend(self, text: str) -> None:
        """One more `--expose` spec; raises UsageError."""
        self.expose = self.expose.extended(text)

    def allows(self, port: int, udp: bool, peer_name: str) -> bool:
        """Whether a peer may open a flow to this port at all."""
        return self.expose.mode != "none" or port in self.expose.ports

    def loopback(self, port: int, udp: bool) -> bool:
        """Whether a service that listens on loopback only may be reached too."""
        return self.expose.mode == "all" or port in self.expose.ports
