"""Which QUIC engine is used: qh3 where it is installed, aioquic otherwise, or as the user says."""

from __future__ import annotations

from proxy_vpn.errors import UsageError
from proxy_vpn.net.engine import EngineFactory


def engine_factory(name: str) -> EngineFactory:
    """The maker of connections for `qh3`, `aioquic` or `auto`; raises UsageError when it is not installed."""
    if name in ("qh3", "auto"):
        try:
            from proxy_vpn.net.engine_qh3 import Qh3Engine

            return Qh3Engine
        except ImportError:
            if name == "qh3":
                raise UsageError("the qh3 engine is not installed here", "use --engine aioquic") from None
    elif name != "aioquic":
        raise UsageError(f"{name!r} is no engine", "use qh3 or aioquic")
    from proxy_vpn.net.engine_aioquic import AioquicEngine

    return AioquicEngine
