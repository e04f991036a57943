"""Port mappings from a real router: miniupnpd behind nftables, asked by each protocol, from a host behind it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.lab.hosts import Host, Lab, LabError
from tests.support.processes import Process
from tests.support.tools import missing_tools

PORT = 41641
# The router refuses to map ports on an address that is not global; these never leave the lab's bridge.
WAN, OTHER_WAN, OUTSIDE = "11.0.0.1", "11.0.0.3", "11.0.0.2"
GATEWAY, INSIDE = "192.168.77.1", "192.168.77.2"
FIRST_ANSWER_MS = 3000
CLOSE_MS = 1200
TRIES, TRY_S = 20, 0.5
NEWLINE = "\n    "
CHAINS = ("miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd")
TABLE = f"""
table inet filter {{
    {NEWLINE.join(f"chain {name} {{ }}" for name in CHAINS)}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname lan0 accept
        jump miniupnpd
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        jump prerouting_miniupnpd
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        jump postrouting_miniupnpd
        oifname eth0 masquerade
    }}
}}
"""
CONFIG = """
ext_ifname=eth0
listening_ip=lan0
enable_natpmp={natpmp}
enable_upnp={upnp}
port=0
secure_mode=yes
system_uptime={uptime}
uuid=00000000-0000-0000-0000-000000000001
allow 1024-65535 0.0.0.0/0 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""
# miniupnpd has one switch for PCP and NAT-PMP; the first byte of a request, its version, tells them apart.
DEAF_TO = """
table inet deaf {{
    chain input {{
        type filter hook input priority filter;
        udp dport 5351 @th,64,8 {version} drop
    }}
}}
"""
SEND = """
import socket, sys
ip, port, text = sys.argv[1:]
socket.socket(type=socket.SOCK_DGRAM).sendto(text.encode(), (ip, int(port)))
"""


class Home:
    """A client behind a router, and a host outside that the router can reach."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._directory = directory
        self.outside, self.router, self.client = (lab.host(name) for name in ("outside", "router", "client"))
        _ip(self.outside, [f"address add {OUTSIDE}/24 dev eth0"])
        link = f"link add lan0 type veth peer name lan0 netns {self.client.anchor}"
        wan = ["address flush dev eth0", f"address add {WAN}/24 dev eth0"]
        _ip(self.router, [*wan, link, f"address add {GATEWAY}/24 dev lan0", "link set lan0 up"])
        lan = [f"address add {INSIDE}/24 dev lan0", "link set lan0 up", f"route replace default via {GATEWAY}"]
        _ip(self.client, ["link set eth0 down", *lan])
        lab.allow_forwarding(self.router.anchor)

    def serve(self, *protocols: str, rebooted: bool = False) -> Process:
        """Start miniupnpd with these protocols only; its epoch is the machine's uptime, or begins now."""
        self.router.run(["nft", "-f", "-"], text=TABLE)
        for protocol, version in (("pcp", 2), ("nat-pmp", 0)):
            if protocol not in protocols:
                self.router.run(["nft", "-f", "-"], text=DEAF_TO.format(version=version))
        natpmp, upnp = "upnp" not in protocols or len(protocols) > 1, "upnp" in protocols
        config = self._directory / "miniupnpd.conf"
        config.write_text(CONFIG.format(natpmp=_yes(natpmp), upnp=_yes(upnp), uptime=_yes(not rebooted)))
        process = self.router.popen(["miniupnpd", "-d", "-f", str(config), "-P", str(self._directory / "pid")])
        process.wait_for("PCP traffic" if natpmp else "HTTP listening")
        return process

    def reboot(self, served: Process, *protocols: str) -> None:
        """The router without its mappings and with a new epoch; returns when it has ours again."""
        served.kill()
        self.router.run(["nft", "flush", "ruleset"])
        assert not self.mapped()
        self.serve(*protocols, rebooted=True).wait_for(rf"timestamp entry added \({PORT}")

    def mapper(self) -> Process:
        """A program on the client that wants a mapping."""
        return self.client.python("-m", "tests.lab.mapped", str(PORT))

    def mapped(self) -> bool:
        """Whether the router's rules lead our port to the client."""
        return f"dport {PORT} dnat ip to {INSIDE}:{PORT}" in self.router.run(["nft", "list", "ruleset"]).stdout

    def deliver(self, text: str, mapper: Process, ip: str = WAN) -> None:
        """Send from outside to the mapped port until the program has it: rules follow the router's word on them."""
        for _ in range(TRIES):
            self.outside.run([sys.executable, "-c", SEND, ip, str(PORT), text])
            with suppress(AssertionError):
                mapper.wait_for(f"^got {text}$", TRY_S)
                return
        raise AssertionError(f"{text!r} did not arrive: {mapper.output}")


@pytest.fixture
def home(lab: Lab, tmp_path: Path) -> Home:
    if reason := missing_tools(("miniupnpd", "nft")):
        pytest.skip(reason)
    try:
        return Home(lab, tmp_path)
    except LabError as error:
        pytest.skip(f"no router here: {error}")


@pytest.mark.parametrize("protocol", ["pcp", "nat-pmp", "upnp"])
def test_each_protocol_opens_a_port_and_closes_it(home: Home, protocol: str) -> None:
    home.serve(protocol)
    assert not home.mapped()
    mapper = home.mapper()
    said = mapper.wait_for(r"mapped (\S+) by (\S+) after (\d+) ms")
    assert (said[1], said[2]) == (f"{WAN}:{PORT}", protocol)
    assert int(said[3]) < FIRST_ANSWER_MS
    assert home.mapped()
    home.deliver("hello", mapper)
    assert _close(mapper) < CLOSE_MS
    assert not home.mapped()


def test_a_router_that_speaks_all_of_them_is_asked_by_pcp(home: Home) -> None:
    home.serve("pcp", "nat-pmp", "upnp")
    mapper = home.mapper()
    mapper.wait_for("by pcp")
    _close(mapper)
    assert not home.mapped()


@pytest.mark.parametrize("protocol", ["pcp", "nat-pmp"])
def test_a_rebooted_router_is_asked_again_once_it_says_so(home: Home, protocol: str) -> None:
    served = home.serve(protocol)
    mapper = home.mapper()
    mapper.wait_for("^mapped")
    home.reboot(served, protocol)
    home.deliver("again", mapper)
    _close(mapper)
    assert not home.mapped()


@pytest.mark.parametrize("protocol", ["pcp", "nat-pmp"])
def test_a_new_external_address_is_told_once_the_router_announces_it(home: Home, protocol: str) -> None:
    served = home.serve(protocol)
    mapper = home.mapper()
    mapper.wait_for("^mapped")
    _ip(home.router, [f"address del {WAN}/24 dev eth0", f"address add {OTHER_WAN}/24 dev eth0"])
    os.kill(served.pid, signal.SIGUSR1)
    mapper.wait_for(f"^mapped {OTHER_WAN}:{PORT} by {protocol}")
    home.deliver("moved", mapper, OTHER_WAN)
    _close(mapper)
    assert not home.mapped()


@pytest.mark.parametrize("protocol", ["pcp", "nat-pmp", "upnp"])
def test_a_program_that_died_gets_its_port_again(home: Home, protocol: str) -> None:
    home.serve(protocol)
    first = home.mapper()
    first.wait_for("^mapped")
    first.kill()
    assert home.mapped()
    second = home.mapper()
    second.wait_for(f"^mapped {WAN}:{PORT} by {protocol}")
    _close(second)
    assert not home.mapped()


def _close(mapper: Process) -> int:
    """Let it give its mapping back; how long that took, in milliseconds."""
    mapper.tell("close")
    return int(mapper.wait_for(r"closed after (\d+) ms")[1])


def _ip(host: Host, commands: Sequence[str]) -> None:
    host.run(["ip", "-batch", "-"], text="\n".join(commands))


def _yes(switch: bool) -> str:
    return "yes" if switch else "no"
