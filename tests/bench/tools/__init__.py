"""What is compared, one file a tool; `TOOLS` is the list, in the order of the tables."""

from __future__ import annotations

from tests.bench.tools.easytier import EasyTierSocks, EasyTierTun
from tests.bench.tools.nebula import Nebula
from tests.bench.tools.plain import Direct, Ssh
from tests.bench.tools.pvpn import Pvpn, PvpnTun
from tests.bench.tools.tinc import Tinc
from tests.bench.tools.tool import Tool
from tests.bench.tools.wireguard import WireGuard
from tests.bench.tools.yggdrasil import Yggdrasil

TOOLS: dict[str, Tool] = {
    "direct": Direct(),
    "ssh": Ssh(),
    "pvpn": Pvpn("qh3"),
    "pvpn-tun": PvpnTun(),
    "pvpn-aioquic": Pvpn("aioquic"),
    "wireguard-go": WireGuard(),
    "yggdrasil": Yggdrasil(),
    "easytier-socks": EasyTierSocks(),
    "easytier-tun": EasyTierTun(),
    "nebula": Nebula(),
    "tinc": Tinc(),
}
UNASKED = ("pvpn-aioquic",)
