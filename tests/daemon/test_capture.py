"""Captures: packets as scapy and tcpdump read them, the bounded queue, and the pcap stream over HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.addresses import Target
from proxy_vpn.daemon.capture import CAPTURES_LIMIT, QUEUE_BYTES, REPORT_BYTES, Capture, Captures
from proxy_vpn.daemon.control import ControlServer
from proxy_vpn.daemon.conversations import DATAGRAM_BYTES, SEGMENT_BYTES, Conversations, Headers, count
from proxy_vpn.daemon.pcap import SNAP_LIMIT_BYTES
from proxy_vpn.errors import FlowError, PvpnError, StateError, Status, UsageError
from proxy_vpn.mesh.tap import Kind, Seen, Tap, Watcher
from tests.daemon.fake import FakeDaemon
from tests.support.tools import find_tool

pytest.importorskip("scapy", reason="needs scapy")
PEER = b"b" * 32
SERVICE = Target("peer-b", 8000)
AT = 1_800_000_000.25


class Both:
    """A machine's addresses."""

    def __init__(self, number: int, v4: bool = True) -> None:
        self.v4 = IPv4Address(f"100.64.7.{number}") if v4 else None
        self.v6 = IPv6Address(f"fd00:1::{number}")


def book(network: str, identity: bytes) -> tuple[Both, Both]:
    return Both(1), Both(2)


def choose(peer: str, net: str) -> tuple[str, bytes]:
    if peer not in ("", "peer-b"):
        raise FlowError(Status.NO_SUCH_NAME, f"no peer is called {peer!a}", "see 'pvpn peers' for the names")
    return net, PEER if peer else b""


@pytest.fixture(scope="module")
def headers() -> dict[int, Headers]:
    return Headers.both()


def told(tap: Tap, network: str = "home", identity: bytes = PEER) -> Iterator[Seen]:
    """Appends to the tap what a short conversation that this machine opens tells."""
    line = tap.line(network, identity, initiator=True)
    line.tell(Kind.ASKED, 8, SERVICE, True, 9)
    line.tell(Kind.ACCEPTED, 8, SERVICE, False, 0, 10)
    line.tell(Kind.DATA, 8, SERVICE, True, 10, 1, b"GET /")
    line.tell(Kind.DATA, 8, SERVICE, False, 1, 15, bytes(100_000), True)
    line.tell(Kind.DATA, 8, SERVICE, True, 15, 100_002, b"", True)
    yield from ()


def conversation(tap: Tap, **more: Any) -> None:
    list(told(tap, **more))


CONVERSATION_PACKETS = 3 + 2 + 5 + 2


def reports() -> list[Seen]:
    tap, seen = Tap(lambda: AT), []
    tap.watchers.append(seen.append)
    conversation(tap)
    return seen


def read(data: bytes) -> list[Any]:
    """A pcap stream's packets, read by scapy."""
    from scapy.layers.inet import IP  # noqa: F401
    from scapy.utils import rdpcap

    return list(rdpcap(io.BytesIO(data)))


async def streamed(capture: Capture, headers: dict[int, Headers], book: Any = book) -> bytes:
    """All of a capture that has ended."""
    async with aclosing(capture.chunks(Conversations(book, headers))) as chunks:
        return b"".join([chunk async for chunk in chunks])


def pcap(seen: list[Seen], headers: dict[int, Headers], snap_bytes: int = SNAP_LIMIT_BYTES, book: Any = book) -> bytes:
    """What reports become, whole."""

    async def main() -> bytes:
        capture = Capture(1, Tap(), ("", b""), snap_bytes)
        for one in seen:
            capture._see(one)
        capture.end()
        assert capture.dropped == 0
        return await streamed(capture, headers, book)

    return asyncio.run(main())


# --- packets ----------------------------------------------------------------------------------------------------


def test_a_conversation_as_packets(headers: dict[int, Headers]) -> None:
    packets = read(pcap(reports(), headers))
    assert len(packets) == CONVERSATION_PACKETS == sum(map(count, reports()))
    assert [str(packet["TCP"].flags) for packet in packets] == [
        "S", "SA", "A", "PA", "A", "A", "A", "A", "FPA", "A", "FA", "A",
    ]  # fmt: skip
    assert (packets[0]["IP"].src, packets[0]["IP"].dst) == ("100.64.7.1", "100.64.7.2")
    assert packets[0]["TCP"].dport == 8000 and packets[0]["TCP"].sport >= 32768
    assert all(float(packet.time) == AT for packet in packets)


@pytest.mark.parametrize("v4", [True, False], ids=["IPv4", "IPv6"])
def test_lengths_and_checksums_are_what_scapy_computes(headers: dict[int, Headers], v4: bool) -> None:
    seen = reports()
    seen += [one._replace(kind=Kind.DATAGRAM, data=data) for one in seen[:1] for data in (b"", b"odd", b"even")]
    for packet in read(pcap(seen, headers, book=lambda *_: (Both(1, v4), Both(2, v4)))):
        again = packet.copy()
        for layer in (again, again.payload):
            for name in ("len", "plen", "chksum", "dataofs"):
                if name in layer.fields:
                    del layer.fields[name]
        assert bytes(again) == bytes(packet)


def test_sequence_numbers_fit_and_carry_the_bytes(headers: dict[int, Headers]) -> None:
    expected: dict[str, int] = {}
    payload: dict[str, bytes] = {}
    for packet in read(pcap(reports(), headers)):
        tcp, source, target = packet["TCP"], packet["IP"].src, packet["IP"].dst
        assert tcp.seq == expected.setdefault(source, tcp.seq)
        if tcp.flags.A:
            assert tcp.ack == expected.get(target, tcp.ack)
        data = bytes(tcp.payload)
        payload[source] = payload.get(source, b"") + data
        expected[source] = (tcp.seq + len(data) + bool(tcp.flags.S) + bool(tcp.flags.F)) % 2**32
    assert payload == {"100.64.7.1": b"GET /", "100.64.7.2": bytes(100_000)}


def test_snapped_packets_say_how_long_they_were(headers: dict[int, Headers]) -> None:
    whole, cut = read(pcap(reports(), headers)), read(pcap(reports(), headers, snap_bytes=64))
    assert [packet.wirelen for packet in cut] == [len(packet) for packet in whole]
    assert max(map(len, cut)) == 64
    assert bytes(cut[-1]) == bytes(whole[-1])


@pytest.mark.parametrize(
    ("opened_here", "ends"), [(True, ("100.64.7.1", "192.168.7.9")), (False, ("192.168.7.9", "100.64.7.2"))]
)
def test_a_host_beyond_has_its_own_address(headers: dict[int, Headers], opened_here: bool, ends: object) -> None:
    seen = reports()[3]._replace(target=Target("192.168.7.9", 80), from_here=True, stream_id=8 if opened_here else 9)
    packet = read(pcap([seen], headers))[0]
    assert (packet["IP"].src, packet["IP"].dst) == ends


@pytest.mark.parametrize("v4", [True, False], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("from_here", [True, False])
def test_a_datagram_that_found_nobody_is_icmp(headers: dict[int, Headers], v4: bool, from_here: bool) -> None:
    line = Tap().line("home", PEER, initiator=not from_here)  # who refuses is never who asked
    report = Seen(AT, line, Kind.UNREACHABLE, 8, SERVICE, from_here)
    datagram = report._replace(kind=Kind.DATAGRAM, from_here=not from_here, data=b"ping")
    sent, said = read(pcap([datagram, report], headers, book=lambda *_: (Both(1, v4), Both(2, v4))))
    ip, quoted = ("IP", "IP in ICMP") if v4 else ("IPv6", "IPv6 in ICMPv6")
    assert (said[ip].src, said[ip].dst) == (sent[ip].dst, sent[ip].src)
    assert (said[quoted].src, said[quoted].dst) == (sent[ip].src, sent[ip].dst)
    ports = said["UDP in ICMP"]
    assert (ports.sport, ports.dport) == (sent["UDP"].sport, sent["UDP"].dport) and ports.dport == SERVICE.port
    kind = said["ICMP" if v4 else "ICMPv6 Destination Unreachable"]
    assert (kind.type, kind.code) == ((3, 3) if v4 else (1, 4))


def test_flows_of_two_sessions_do_not_share_a_conversation(headers: dict[int, Headers]) -> None:
    tap, seen = Tap(), []
    tap.watchers.append(seen.append)
    conversation(tap)
    conversation(tap)
    packets = read(pcap(seen, headers))
    assert packets[0]["TCP"].sport != packets[CONVERSATION_PACKETS]["TCP"].sport


HOSTS = ("peer-b", "10.1.2.3", "fd00::9", "fe80::1%eth0", "db.example")
reports_of_any_kind = st.builds(
    Seen,
    at=st.floats(0, 2**32 - 1),
    line=st.just(Tap().line("home", PEER, initiator=True)),
    kind=st.sampled_from(Kind),
    stream_id=st.integers(0, 2**62 - 1),
    target=st.builds(Target, st.sampled_from(HOSTS), st.integers(0, 65535)),
    from_here=st.booleans(),
    position=st.integers(0, 2**62),
    acknowledged=st.integers(0, 2**62),
    data=st.sampled_from([b"", b"x", bytes(SEGMENT_BYTES), bytes(SEGMENT_BYTES + 1), memoryview(bytes(70_000))]),
    end=st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(seen=reports_of_any_kind, snap_bytes=st.sampled_from([64, 65, 1500, SNAP_LIMIT_BYTES]))
def test_any_report_becomes_packets_of_its_count(headers: dict[int, Headers], seen: Seen, snap_bytes: int) -> None:
    packets = list(Conversations(book, headers).packets(seen, snap_bytes))
    assert len(packets) == count(seen)
    # An IPv6 header is not part of the length that it tells: RFC 8200, 3.
    assert all(len(packet.data) == min(snap_bytes, packet.wire_bytes) <= 40 + 65535 for packet in packets)
    carried = sum(packet.wire_bytes for packet in packets)
    assert carried >= min(len(seen.data), DATAGRAM_BYTES if seen.kind is Kind.DATAGRAM else 0)


@pytest.mark.skipif(find_tool("tcpdump") is None, reason="needs tcpdump")
def test_tcpdump_reads_it_and_finds_no_fault(headers: dict[int, Headers]) -> None:
    datagram = reports()[0]._replace(kind=Kind.DATAGRAM, data=b"hello")
    said = tcpdump(pcap([*reports(), datagram], headers), "-vv")
    assert said.count("Flags [") == CONVERSATION_PACKETS and "UDP, length 5" in said
    assert "incorrect" not in said and "bad" not in said and "truncated" not in said


def tcpdump(data: bytes, *options: str) -> str:
    tool = find_tool("tcpdump")
    assert tool is not None
    done = subprocess.run([tool, "-n", *options, "-r", "-"], input=data, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode(errors="replace")


# --- the queue ----------------------------------------------------------------------------------------------------


def test_a_slow_reader_loses_packets_that_are_counted(headers: dict[int, Headers]) -> None:
    async def main() -> None:
        tap = Tap(lambda: AT)
        capture = Capture(1, tap, ("", b""), SNAP_LIMIT_BYTES)
        line, chunk = tap.line("home", PEER, initiator=True), bytes(64 * 1024)
        told = 0
        while capture.dropped < 30:
            line.tell(Kind.DATA, 8, SERVICE, True, 1 + told * len(chunk), 1, chunk)
            told += 1
        assert capture.dropped == 30
        assert told - 10 == QUEUE_BYTES // (len(chunk) + REPORT_BYTES)
        capture.end()
        line.tell(Kind.DATA, 8, SERVICE, True, 1, 1, chunk)
        assert not tap.watchers
        assert len(read(await streamed(capture, headers))) == (told - 10) * 3

    asyncio.run(main())


def test_only_the_wanted_peer_in_the_wanted_network() -> None:
    async def main() -> None:
        tap = Tap(lambda: AT)
        captures = Captures(tap, book, choose)
        for wanted, expected in [(("", ""), 3), (("peer-b", ""), 2), (("peer-b", "work"), 1), (("", "work"), 1)]:
            capture, chunks = await captures.start(*wanted, SNAP_LIMIT_BYTES)
            conversation(tap)
            conversation(tap, network="work")
            conversation(tap, identity=b"c" * 32)
            captures.end(capture.number)
            data = b"".join([chunk async for chunk in chunks])
            assert len(read(data)) == expected * CONVERSATION_PACKETS
            captures.stop(capture)
        assert not tap.watchers

    asyncio.run(main())


def test_captures_are_bounded_and_refused_in_words() -> None:
    async def main() -> None:
        tap = Tap()
        captures = Captures(tap, book, choose)
        running = [await captures.start("", "", SNAP_LIMIT_BYTES) for _ in range(CAPTURES_LIMIT)]
        with pytest.raises(StateError):
            await captures.start("", "", SNAP_LIMIT_BYTES)
        for wrong in [("nobody", "", 100), ("", "", 1), ("", "", SNAP_LIMIT_BYTES + 1)]:
            with pytest.raises(PvpnError):
                await captures.start(*wrong)
        captures.close()
        assert not tap.watchers
        for capture, chunks in running:
            assert len([chunk async for chunk in chunks]) == 1
            captures.stop(capture)
            with pytest.raises(UsageError):
                captures.end(capture.number)
        await captures.start("", "", SNAP_LIMIT_BYTES)

    asyncio.run(main())


# --- over HTTP ----------------------------------------------------------------------------------------------------


class Watchers(list[Watcher]):
    """The tap's, which tells when somebody comes or goes."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()

    def append(self, watcher: Watcher) -> None:
        with self.changed:
            super().append(watcher)
            self.changed.notify_all()

    def remove(self, watcher: Watcher) -> None:
        with self.changed:
            super().remove(watcher)
            self.changed.notify_all()


class Serving:
    """A control server with captures on its own thread; `on_loop` runs there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tap = Tap(lambda: AT)
        self.tap.watchers = self.watchers = Watchers()
        self.captures = Captures(self.tap, book, choose)
        self.loop = asyncio.new_event_loop()
        self.started, self.done = threading.Event(), asyncio.Event()
        self.server = ControlServer(FakeDaemon(), path, self.captures)

    async def main(self) -> None:
        await self.server.start()
        self.started.set()
        await self.done.wait()
        await self.server.close()

    def watched(self, count: int) -> None:
        """Wait until so many captures run."""

        with self.watchers.changed:
            assert self.watchers.changed.wait_for(lambda: len(self.watchers) == count, timeout=20)

    def tell(self) -> None:
        async def tell() -> None:
            conversation(self.tap)

        asyncio.run_coroutine_threadsafe(tell(), self.loop).result(30)


@contextmanager
def capturing(path: Path) -> Iterator[Serving]:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    serving = Serving(path)
    thread = threading.Thread(target=serving.loop.run_until_complete, args=(serving.main(),))
    thread.start()
    try:
        assert serving.started.wait(20)
        yield serving
    finally:
        serving.loop.call_soon_threadsafe(serving.done.set)
        thread.join(20)
        assert not thread.is_alive()
        serving.loop.close()


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


def curl(path: Path, what: str, *options: str) -> list[str]:
    return ["curl", "-sS", "--max-time", "20", *options, "--unix-socket", str(path), f"http://pvpn/v1/capture{what}"]


@needs_curl
def test_curl_gets_a_pcap_stream_until_the_capture_is_ended(tmp_path: Path) -> None:
    with capturing(tmp_path / "state" / "control.sock") as serving:
        with subprocess.Popen(curl(serving.path, "?peer=peer-b", "-iN"), stdout=subprocess.PIPE) as reader:
            serving.watched(1)
            serving.tell()
            ended = subprocess.run(curl(serving.path, "?id=1", "-X", "DELETE"), capture_output=True, timeout=30)
            assert json.loads(ended.stdout) == {"schema": 1, "dropped": 0}
            answer, _ = reader.communicate(timeout=20)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"Content-Type: application/vnd.tcpdump.pcap" in head and b"Pvpn-Capture: 1" in head
        assert len(read(body)) == CONVERSATION_PACKETS
        serving.watched(0)


@needs_curl
def test_a_reader_that_goes_ends_its_capture(tmp_path: Path) -> None:
    with capturing(tmp_path / "state" / "control.sock") as serving:
        with subprocess.Popen(curl(serving.path, "", "-N"), stdout=subprocess.DEVNULL) as reader:
            serving.watched(1)
            reader.kill()
        serving.watched(0)


@needs_curl
@pytest.mark.parametrize(
    ("what", "options", "status"),
    [
        ("?peer=nobody", (), "no_such_name"),
        ("?snaplen=x", (), "usage"),
        ("?snaplen=1", (), "usage"),
        ("?id=7", ("-X", "DELETE"), "usage"),
        ("", ("-X", "DELETE"), "usage"),
    ],
)
def test_what_is_wrong_is_an_error_reply(tmp_path: Path, what: str, options: tuple[str, ...], status: str) -> None:
    with capturing(tmp_path / "state" / "control.sock") as serving:
        done = subprocess.run(curl(serving.path, what, *options), capture_output=True, timeout=30)
        assert json.loads(done.stdout)["status"] == status


@needs_curl
def test_the_process_ends_streams_when_it_stops(tmp_path: Path) -> None:
    with capturing(tmp_path / "state" / "control.sock") as serving:
        reader = subprocess.Popen(curl(serving.path, "", "-N"), stdout=subprocess.PIPE)
        serving.watched(1)
        serving.tell()
    data, _ = reader.communicate(timeout=20)
    assert reader.returncode == 0 and len(read(data)) == CONVERSATION_PACKETS
