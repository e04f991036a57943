"""Status: what a running process tells about itself, as typed messages and as lines for people.

The messages are the JSON of the control API. Their schema number rises only when a field changes its meaning;
new fields may appear under the same number, and readers skip what they don't know.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Final, Literal

import msgspec

from proxy_vpn.addresses import Address, ForwardSpec

SCHEMA: Final = 1
MAX_REMOTE_TEXT_CHARS: Final = 120
MAX_LINE_CHARS: Final = 400
DAY_S: Final = 24 * 3600

NOBODY_FOUND: Final = "run pvpn with the same key file on another machine"

PeerState = Literal["idle", "probing", "dialling", "authenticating", "live", "lost"]
DhtState = Literal["off", "starting", "searching", "announced", "unreachable"]


class NetworkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One network of the process; ids are hexadecimal, `device_id` is this device's own in it.

    `unanswered`: how many IP addresses were found where a peer may be, of which none answered. `ipv4` and `ipv6`: this
    machine's virtual addresses, `range4` and `range6` the networks they are of; `range4_moved` if other machines have
    another, because this one uses that.
    """

    name: str
    id: str
    fingerprint: str
    generation: int
    device_id: str
    unanswered: int = 0
    ipv4: str = ""
    ipv6: str = ""
    range4: str = ""
    range6: str = ""
    range4_moved: bool = False


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One peer; `path` is text such as `direct 203.0.113.7:41641`, `since` Unix seconds of the present state.

    `connections`: how many are open; more than one only for a moment, while both ends agree which to keep. `reason`:
    why a peer that is not live can't be reached, as far as that is known. `ipv4` and `ipv6`: its virtual addresses on
    this machine, `ipv4_moved` if another peer has the one that other machines know it by. `routes` and `exit`: what it
    leads to.
    """

    name: str
    id: str
    network: str
    state: PeerState
    path: str = ""
    reason: str = ""
    rtt_ms: float | None = None
    connections: int = 0
    tx_bytes: int = 0
    rx_bytes: int = 0
    since: float | None = None
    engine: str = ""
    version: str = ""
    ipv4: str = ""
    ipv6: str = ""
    ipv4_moved: bool = False
    routes: tuple[str, ...] = ()
    exit: bool = False


class ForwardStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One forward; `spec` holds the port that was picked, `held` is true while it lives with a CLI's connection."""

    spec: str
    held: bool = False
    flows: int = 0


class OpenPort(msgspec.Struct, frozen=True, kw_only=True):
    """A service of this host that peers can reach, at the address it listens on."""

    port: int
    protocol: Literal["tcp", "udp"]
    address: str


class ExposeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The rules (text as `--expose` takes it) and what they open now; `open` None: this system can't tell."""

    rules: str = "default"
    open: tuple[OpenPort, ...] | None = None


class DhtStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The Mainline DHT as seen from here; `external` are our own addresses as its nodes report them."""

    state: DhtState = "off"
    nodes: int = 0
    serving: bool = False
    external: tuple[str, ...] = ()


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to GET /v1/status; `started` in Unix seconds, `listen` the UDP sockets, `proxies` SOCKS and HTTP.

    `interface`: the TUN device's name, `interface_flows` what is open through it, `interface_names` where its name
    server is and who asks it.
    """

    schema: int = SCHEMA
    version: str
    pid: int
    name: str
    started: float
    state_directory: str = ""
    engine: str = ""
    listen: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    interface: str = ""
    interface_flows: int = 0
    interface_names: str = ""
    networks: tuple[NetworkStatus, ...] = ()
    forwards: tuple[ForwardStatus, ...] = ()
    expose: ExposeStatus = ExposeStatus()
    dht: DhtStatus = DhtStatus()
    peers: tuple[PeerStatus, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def unanswered(self) -> int:
        """How many addresses were found, in all networks, of which none answered."""
        return sum(network.unanswered for network in self.networks)


class PeersReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to GET /v1/peers; `unanswered` as in NetworkStatus, of all networks asked for."""

    schema: int = SCHEMA
    peers: tuple[PeerStatus, ...] = ()
    unanswered: int = 0


class Style:
    """ANSI colours for a terminal, none otherwise."""

    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and text else text

    def state(self, text: str, state: PeerState) -> str:
        return self.paint(text, {"live": "32", "lost": "31"}.get(state, "33"))


def render_status(status: DaemonStatus, now: float, *, colour: bool = False) -> list[str]:
    """The whole status, a block of facts and then one line a peer; `now` in Unix seconds."""
    head = f"pvpn {printable(status.version)} as {printable(status.name)}, process {status.pid}"
    facts = [("running", f"{head}, since {clock(status.started, now)}")]
    facts += [("network", _network(net)) for net in status.networks]
    facts += [("proxy", f"{printable(proxy)}  (SOCKS4a/5 and HTTP)") for proxy in status.proxies]
    if status.interface:
        names = printable(status.interface_names)
        facts.append(("tun", f"{printable(status.interface)}  {status.interface_flows} open  {names}".rstrip()))
    facts += [
        ("forward", printable(item.spec) + ("  until its pvpn forward ends" if item.held else ""))
        for item in status.forwards
    ]
    facts.append(("open", render_expose(status.expose)))
    facts += [("udp", printable(address)) for address in status.listen]
    facts.append(("dht", render_dht(status.dht)))
    facts += [("warning", printable(warning, MAX_LINE_CHARS)) for warning in status.warnings]
    style = Style(colour)
    lines = [style.paint(f"{label:<8}", "31" if label == "warning" else "2") + text for label, text in facts]
    return [*lines, "", *render_peers(status.peers, now, colour=colour, unanswered=status.unanswered)]


def _network(net: NetworkStatus) -> str:
    moved = f"  in {printable(net.range4)} (moved)" if net.range4_moved else ""
    return f"{printable(net.name)}  {printable(net.fingerprint)}{moved}"


def render_peers(peers: Sequence[PeerStatus], now: float, *, colour: bool = False, unanswered: int = 0) -> list[str]:
    """One aligned line a peer: name, path, round trip, traffic, since; live ones first."""
    if not peers:
        return [f"no peers yet: {no_answer(unanswered, now) if unanswered else nobody_found(now)}"]
    ordered = sorted(peers, key=lambda peer: (peer.state != "live", peer.network, peer.name, peer.id))
    several = len({peer.network for peer in ordered}) > 1
    rows = [_peer_row(peer, now, several) for peer in ordered]
    style = Style(colour)
    lines = []
    for peer, row in zip(ordered, align(rows), strict=True):
        width = len(_peer_name(peer, several))
        lines.append(style.state(row[:width], peer.state) + row[width:])
    if unanswered and not any(peer.state == "live" for peer in peers):
        lines.append(no_answer(unanswered, now))
    return lines


def nobody_found(now: float) -> str:
    """What to do when nothing at all was found; `now` in Unix seconds, as this machine's clock says."""
    return f"{NOBODY_FOUND} - if it runs there, {check_clocks(now)}"


def no_answer(count: int, now: float | None = None) -> str:
    """That so many addresses were found and none answers, and what to do; `now` in Unix seconds, None: this moment."""
    found = f"{count} address{'es' if count > 1 else ''} found, none answers"
    lack = "no direct path and no relay to somebody of this network"
    wall = "run 'pvpn doctor', open a UDP port on one side (--listen), or add a third member that both reach to relay"
    clocks = check_clocks(time.time() if now is None else now)
    return f"{found} - {lack}; if a machine is on there, {wall}; {clocks}"


def check_clocks(now: float) -> str:
    """What this clock says: a member that is a day off looks at another place in the DHT, and with another key."""
    return f"see that both clocks are right: here it is {clock(now, 0.0)}"


def open_door(where: Address | ForwardSpec, what: str) -> str:
    """The warning that a proxy or forward is open to more than this machine; empty if it is not."""
    ip, port = (where.ip, where.port) if isinstance(where, Address) else (where.host, where.port)
    if not ip or ip_address(ip).is_loopback:
        return ""
    use = f"anybody who reaches {Address(ip, port)} can use this {what}"
    return f"{use} - leave out {ip} to keep it to this machine"


def render_expose(expose: ExposeStatus) -> str:
    """What peers can reach on this host, in one line."""
    rules = f"(rules: {printable(expose.rules)}; the host's firewall does not apply)"
    return f"to peers: {open_services(expose)}  {rules}"


def open_services(expose: ExposeStatus, limit: int | None = None) -> str:
    """`22/tcp 53/udp and 3 more`, or in words that it is nothing, or that this system can't tell."""
    if expose.open is None:
        return "what the rules allow"
    ports = [f"{port}/{protocol}" for port, protocol in sorted({(item.port, item.protocol) for item in expose.open})]
    more = f" and {len(ports) - limit} more" if limit is not None and len(ports) > limit else ""
    return " ".join(ports[:limit]) + more if ports else "nothing"


def render_dht(dht: DhtStatus) -> str:
    """The DHT in one line."""
    if dht.state == "off":
        return "off"
    parts = [f"{dht.state}, {dht.nodes} nodes"]
    if dht.state == "unreachable":
        still = "on the same LAN, at --peer addresses, where they were last, and through other peers"
        parts = [f"unreachable: no node answers; is UDP blocked? peers are still found {still}"]
    if dht.external:
        parts.append("seen from outside as " + " ".join(printable(address) for address in dht.external))
    if dht.serving:
        parts.append("answering others")
    return "; ".join(parts)


def _peer_name(peer: PeerStatus, several: bool) -> str:
    return f"{printable(peer.name)}.{printable(peer.network)}" if several else printable(peer.name)


def _peer_row(peer: PeerStatus, now: float, several: bool) -> list[str]:
    path = printable(peer.path) if peer.state == "live" else peer.state
    if peer.reason and peer.state != "live":
        path += f": {printable(peer.reason)}"
    rtt = "" if peer.state != "live" else "-" if peer.rtt_ms is None else milliseconds(peer.rtt_ms)
    traffic = f"tx {size(peer.tx_bytes)} rx {size(peer.rx_bytes)}"
    since = "" if peer.since is None else f"since {clock(peer.since, now)}"
    leads = [*map(printable, peer.routes), *(["the internet"] if peer.exit else [])]
    offers = f"leads to {' '.join(leads)}" if leads else ""
    moved = f"{printable(peer.ipv4)} (moved)" if peer.ipv4_moved else printable(peer.ipv4)
    return [_peer_name(peer, several), path or peer.state, rtt, traffic, since, moved, offers]


def align(rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns two spaces apart; nothing trails."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def size(count: int) -> str:
    """Bytes in decimal units, three digits at most before the point: `1.2 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.95 or unit == "TB":
            break
        value /= 1000
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def milliseconds(value: float) -> str:
    """`0.42 ms`, `4.2 ms`, `42 ms`: two digits that count."""
    digits = 2 if value < 0.995 else 1 if value < 9.95 else 0
    return f"{value:.{digits}f} ms"


def clock(when: float, now: float) -> str:
    """A local time of day, with the date once it is a day old."""
    moment = time.localtime(min(max(when, 0.0), 2.0**40))
    return time.strftime("%H:%M" if abs(now - when) < DAY_S else "%Y-%m-%d %H:%M", moment)


def printable(text: str, limit_chars: int = MAX_REMOTE_TEXT_CHARS) -> str:
    """Text from another machine, cut and with everything but printable characters escaped."""
    cut = text if len(text) <= limit_chars else text[:limit_chars] + "..."
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in cut)
