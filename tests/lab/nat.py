"""Routers that translate addresses, with hosts behind them, and a firewall for hosts of their own.

A `Router` has its WAN side, `eth0`, on the lab's bridge or, `behind` another router, on that one's LAN, and a bridge
of its own for the hosts behind it. Networks may use the same private range. What a router does to UDP is a `Kind`;
TCP is always masqueraded. A router is silent towards what it does not let in, so that a peer's early probe leaves no
trace in its connection table. Mappings last IDLE_S after the last packet out; who may answer one port only, as long as
Linux remembers: 30 s after a packet that was not answered, 120 s after later ones.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from ipaddress import IPv4Network

from tests.lab.hosts import Host, Lab, LabError, Segment
from tests.support.tools import missing_tools

TOOLS = ("nft",)
HOME = "192.168.1.0/24"
CARRIER = "100.64.0.0/24"
IDLE_S = 120
MAPPINGS = 4096
BRIDGE = "lan"


class Kind(StrEnum):
    """Mapping and filtering of UDP (RFC 4787, section 4 and 5)."""

    FULL_CONE = "full-cone"
    """One outside port for all destinations, other than the inside port; whoever sends to it gets in."""
    ADDRESS_RESTRICTED = "address-restricted"
    """The same mapping; who was sent to may answer from any port."""
    PORT_RESTRICTED = "port-restricted"
    """The same mapping; only address and port that were sent to may answer."""
    MASQUERADE = "masquerade"
    """What a plain Linux router does: port-restricted, and outside ports are the inside ones while they are free."""
    SYMMETRIC = "symmetric"
    """An outside port for each destination; only it may answer."""
    NO_UDP = "no-udp"
    """Drops all UDP."""


CONES = (Kind.FULL_CONE, Kind.ADDRESS_RESTRICTED, Kind.PORT_RESTRICTED)


@cache
def unavailable() -> str | None:
    """Why there can be no routers here, or None."""
    if missing := missing_tools(TOOLS):
        return missing
    try:
        with Lab() as lab:
            for kind in Kind:
                Router(lab, kind)
    except LabError as error:
        return str(error)
    return None


class Router:
    """A router on the lab's bridge or behind another one; LabError where this machine allows none.

    `lan` is the network behind it, a /24. With `hairpin` hosts behind it reach each other at their outside addresses.
    """

    def __init__(
        self, lab: Lab, kind: Kind, *, behind: Router | None = None, lan: str = HOME, hairpin: bool = False
    ) -> None:
        if hairpin and kind not in CONES:
            raise ValueError(f"no hairpin for {kind}")
        self.kind = kind
        self.lan = IPv4Network(lan)
        name = f"router {len(lab.hosts) + 1}"
        self.box = behind.host(name) if behind else lab.host(name)
        """The router itself, to run programs on."""
        self._lab = lab
        self._segment = Segment(self.box.anchor, BRIDGE, str(self.lan[1]), self.lan.prefixlen)
        lab.allow_forwarding(self.box.anchor)
        bridge = [
            f"link add {BRIDGE} type bridge",
            f"link set {BRIDGE} up",
            f"address add {self._segment.gateway}/{self.lan.prefixlen} dev {BRIDGE}",
        ]
        _configure(self.box, ["ip", "-batch", "-"], "\n".join(bridge))
        _configure(self.box, ["nft", "-f", "-"], _rules(kind, self.box.address, self.lan, hairpin))

    @property
    def address(self) -> str:
        """Of its WAN side."""
        return self.box.address

    def move(self, address: str) -> None:
        """Another address on its WAN side and no other, as a provider gives one at night: all mappings are gone."""
        if self.kind in CONES:
            raise ValueError(f"a {self.kind} router remembers its mappings by address")
        old, bits = self.address, self.box.segment.prefix_bits
        _configure(self.box, ["nft", "-f", "-"], f"insert rule ip router input ip daddr {address} ct state new drop")
        ways = [
            f"address del {old}/{bits} dev eth0",
            f"address add {address}/{bits} dev eth0",
            f"route replace default via {self.box.segment.gateway}",
        ]
        _configure(self.box, ["ip", "-batch", "-"], "\n".join(ways))
        self.box.addresses = [address]

    def host(self, name: str) -> Host:
        """One more host behind it, with IPv4 only."""
        return self._lab.plug(name, self._segment, [str(self.lan[self._segment.ports + 2])])


def guard(host: Host) -> None:
    """A firewall on a host with an address of its own: what it did not ask for is dropped, except ICMP."""
    rules = """
    table inet firewall {
        chain input {
            type filter hook input priority filter; policy drop;
            ct state established,related accept
            iifname lo accept
            meta l4proto { icmp, ipv6-icmp } accept
        }
    }
    """
    _configure(host, ["nft", "-f", "-"], rules)


def _configure(host: Host, argv: list[str], text: str) -> None:
    done = host.run(argv, text=text, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip()}")


def _rules(kind: Kind, wan: str, lan: IPv4Network, hairpin: bool) -> str:
    """The router's rules for nft."""
    udp_dropped = "meta l4proto udp drop" if kind is Kind.NO_UDP else ""
    if kind in CONES:
        nat = _cone(kind, wan, lan, hairpin)
    else:
        random = "fully-random" if kind is Kind.SYMMETRIC else ""
        nat = f"""
        chain out {{
            type nat hook postrouting priority srcnat;
            oifname eth0 meta l4proto udp masquerade {random}
            oifname eth0 masquerade
        }}
        """
    return f"""
    table ip router {{
        chain input {{
            type filter hook input priority filter;
            ct state established,related accept
            meta l4proto icmp accept
            ip daddr {wan} drop
        }}
        chain forward {{
            type filter hook forward priority filter;
            {udp_dropped}
            ct state established,related accept
            ct status dnat accept
            iifname eth0 drop
        }}
        {nat}
    }}
    """


def _cone(kind: Kind, wan: str, lan: IPv4Network, hairpin: bool) -> str:
    """One outside port for each inside address and port: chosen by the first packet out, then remembered.

    `outside` and `inside` are the two directions of the mapping, `met` those who were sent to from an outside port.
    What is remembered is read from the packet as it leaves, when the kernel has chosen the port.
    """
    lets_in = {
        Kind.FULL_CONE: "iifname eth0 dnat ip to udp dport map @inside",
        Kind.ADDRESS_RESTRICTED: "iifname eth0 udp dport . ip saddr @met dnat ip to udp dport map @inside",
        Kind.PORT_RESTRICTED: "",  # the connection table knows who may answer
    }[kind]
    turned = f"oifname {BRIDGE} ct status dnat ct original ip saddr {lan}"
    leaving = ["oifname eth0", *([turned] if hairpin else [])]
    turns_back = f"iifname {BRIDGE} ip daddr {wan} dnat ip to udp dport map @inside" if hairpin else ""
    turned_source = f"{turned} meta l4proto udp snat ip to {wan} fully-random" if hairpin else ""
    kept = "\n".join(f"{way} snat ip to ip saddr . udp sport map @outside" for way in leaving)
    noted = "\n".join(
        f"""
            {way} meta l4proto udp ct direction {side} update @outside {{ {inside} : ip saddr . udp sport }}
            {way} meta l4proto udp ct direction {side} update @inside {{ udp sport : {inside} }}
            {way} meta l4proto udp ct direction {side} update @met {{ udp sport . ip daddr }}"""
        for way in leaving
        for side in ("original", "reply")
        for inside in (f"ct {side} ip saddr . ct {side} proto-src",)
    )
    memory = f"size {MAPPINGS}; flags dynamic,timeout; timeout {IDLE_S}s;"
    return f"""
        map outside {{ typeof ip saddr . udp sport : ip saddr . udp sport; {memory} }}
        map inside {{ typeof udp dport : ip daddr . udp dport; {memory} }}
        set met {{ typeof udp dport . ip saddr; {memory} }}
        chain in {{
            type nat hook prerouting priority dstnat;
            {lets_in}
            {turns_back}
        }}
        chain out {{
            type nat hook postrouting priority srcnat;
            {kept}
            oifname eth0 meta l4proto udp masquerade fully-random
            {turned_source}
            oifname eth0 masquerade
        }}
        chain note {{
            type filter hook postrouting priority srcnat + 10;
            {noted}
        }}
    """
