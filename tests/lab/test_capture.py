"""`pvpn capture` between whole daemons: what tcpdump and scapy read is what the programs did."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.lab.daemon import SOCKS_PORT, Daemon, make_key
from tests.lab.hosts import Lab, available
from tests.lab.scenes import EXCHANGE_PORT, serve_exchange, two_peers
from tests.support.processes import Process
from tests.support.tools import find_tool

pytest.importorskip("scapy", reason="needs scapy")
SIZE = 3_000_000
FLOOD = 60_000_000
CLOSED_PORT = 9
UDP_PORT = 5300

RESETS = """
import socket, struct, sys
from tests.support.dialing import Way, receive_exactly
sock = Way("peer-b", int(sys.argv[1])).dial(int(sys.argv[2]))
sock.sendall(b"echo\\nhello\\n")
print(receive_exactly(sock, 6).decode(), flush=True)
input()
sock.sendall(b"last")
receive_exactly(sock, 4)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
sock.close()
"""


class Conversation:
    """One TCP conversation of a capture, put together again; sequence numbers must fit without a gap."""

    def __init__(self) -> None:
        self.flags: list[tuple[bool, str]] = []  # (from the service, flags) in order, acknowledgements alone left out
        self.streams = {False: bytearray(), True: bytearray()}
        self._next: dict[bool, int] = {}

    def take(self, tcp: Any, from_service: bool) -> None:
        data, flags = bytes(tcp.payload), str(tcp.flags)
        assert tcp.seq == self._next.setdefault(from_service, tcp.seq), "a gap"
        if "A" in flags:
            assert tcp.ack == self._next.setdefault(not from_service, tcp.ack), "acknowledges what was not sent"
        self._next[from_service] = (tcp.seq + len(data) + ("S" in flags) + ("F" in flags)) % 2**32
        self.streams[from_service] += data
        if flags not in ("A", "PA"):
            self.flags.append((from_service, flags))

    @property
    def opened(self) -> bool:
        return self.flags[:2] == [(False, "S"), (True, "SA")]


class Pair(NamedTuple):
    """Two peers; b serves the exchange on 7000 and UDP echo on 5300."""

    a: Daemon
    b: Daemon


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if reason := available():
        pytest.skip(f"no laboratory here: {reason}")
    with Lab() as lab:
        peer_a, peer_b = two_peers(lab, make_key(tmp_path_factory.mktemp("capture")))
        serve_exchange(peer_b.host)
        peer_b.host.popen(["socat", f"UDP4-RECVFROM:{UDP_PORT},fork", "EXEC:cat"])
        yield Pair(peer_a, peer_b)


def start(daemon: Daemon, path: Path, *options: str) -> Process:
    process = daemon.start_command("capture", "-w", str(path), *options)
    process.wait_for("^capturing")
    return process


def finish(process: Process) -> int:
    """End it with Ctrl-C; how many packets it says it wrote. None may be dropped."""
    assert process.interrupt() == 0, process.output
    packets, rest = process.output.splitlines()[-1].split(" ", 1)
    assert rest == "packets, 0 dropped"
    return int(packets)


def packets(*paths: Path) -> list[Any]:
    from scapy.layers.inet import IP  # noqa: F401
    from scapy.utils import rdpcap

    return [packet for path in paths for packet in rdpcap(str(path))]


def conversations(found: list[Any], port: int) -> list[Conversation]:
    """The TCP conversations with a service's port, in the order they began."""
    known: dict[tuple[str, int, str], Conversation] = {}
    for packet in found:
        if "TCP" in packet and port in (packet["TCP"].sport, packet["TCP"].dport):
            ip, tcp = packet["IP"], packet["TCP"]
            from_service = tcp.sport == port
            key = (ip.dst, tcp.dport, ip.src) if from_service else (ip.src, tcp.sport, ip.dst)
            known.setdefault(key, Conversation()).take(tcp, from_service)
    return list(known.values())


def curl_refused(daemon: Daemon) -> None:
    url = f"http://peer-b:{CLOSED_PORT}/"
    done = daemon.host.run(
        ["curl", "-sS", "--max-time", "10", "-x", f"socks5h://127.0.0.1:{SOCKS_PORT}", url], check=False
    )
    assert done.returncode == 97, done.stderr


def test_transfers_come_out_byte_for_byte_at_both_ends(pair: Pair, tmp_path: Path) -> None:
    captures = start(pair.a, tmp_path / "a.pcap", "--peer", "peer-b"), start(pair.b, tmp_path / "b.pcap")
    got = pair.a.exchange("get", "peer-b", EXCHANGE_PORT, SIZE).result()
    put = pair.a.exchange("put", "peer-b", EXCHANGE_PORT, SIZE).result()
    for capture, path in zip(captures, (tmp_path / "a.pcap", tmp_path / "b.pcap"), strict=True):
        said = finish(capture)
        found = packets(path)
        assert said == len(found) and path.stat().st_mode & 0o777 == 0o600
        download, upload = conversations(found, EXCHANGE_PORT)
        assert download.opened and upload.opened
        assert hashlib.sha256(download.streams[True]).hexdigest() == got["sha256"]
        assert download.streams[False] == f"get {SIZE}\n".encode()
        assert hashlib.sha256(upload.streams[False][len(b"put\n") :]).hexdigest() == put["sha256"]
        assert json.loads(upload.streams[True])["bytes"] == SIZE
        for conversation in (download, upload):
            ends = conversation.flags[2:]
            assert sorted(from_service for from_service, _ in ends) == [False, True]
            assert all("F" in flags for _, flags in ends)


def test_tcpdump_reads_it_live_and_finds_no_fault(pair: Pair, tmp_path: Path) -> None:
    tool = find_tool("tcpdump")
    if tool is None:
        pytest.skip("not installed: tcpdump")
    fifo = tmp_path / "live"
    os.mkfifo(fifo)
    with (
        pair.a.host.popen([tool, "-n", "-vv", "-l", "-r", str(fifo)]) as shown,
        pair.a.host.popen(["sh", "-c", f"exec {pair.a.wrapper} capture > {fifo}"]) as capture,
    ):
        capture.wait_for("^capturing all peers to standard output")
        pair.a.exchange("get", "peer-b", EXCHANGE_PORT, 50_000).result()
        shown.wait_for(rf"\.{EXCHANGE_PORT} > .*Flags \[F")
        finish(capture)
        assert shown.wait() == 0
    said = shown.output
    assert "Flags [S]" in said and "Flags [S.]" in said
    assert "incorrect" not in said and "bad-" not in said


def test_a_refused_flow_is_a_syn_and_a_reset(pair: Pair, tmp_path: Path) -> None:
    with start(pair.a, tmp_path / "a.pcap") as a, start(pair.b, tmp_path / "b.pcap") as b:
        curl_refused(pair.a)
        finish(a), finish(b)
    for name in ("a.pcap", "b.pcap"):
        (refused,) = conversations(packets(tmp_path / name), CLOSED_PORT)
        assert refused.flags == [(False, "S"), (True, "RA")]


def test_a_program_that_resets_is_shown_so_even_from_the_middle_on(pair: Pair, tmp_path: Path) -> None:
    with (
        start(pair.a, tmp_path / "a.pcap") as whole,
        pair.a.host.python("-c", RESETS, str(SOCKS_PORT), str(EXCHANGE_PORT)) as program,
    ):
        program.wait_for("^hello")
        with start(pair.b, tmp_path / "b.pcap") as late:
            program.tell("reset")
            assert program.wait() == 0
            pair.a.exchange("get", "peer-b", EXCHANGE_PORT, 10).result()  # what came before it is in the files
            finish(late), finish(whole)
    flow, _ = conversations(packets(tmp_path / "a.pcap"), EXCHANGE_PORT)
    assert flow.flags == [(False, "S"), (True, "SA"), (False, "RA")]
    assert (flow.streams[False], flow.streams[True]) == (b"echo\nhello\nlast", b"hello\nlast")
    middle, _ = conversations(packets(tmp_path / "b.pcap"), EXCHANGE_PORT)
    assert middle.flags == [(False, "RA")]
    assert (middle.streams[False], middle.streams[True]) == (b"last", b"last")


def test_udp_and_other_peers(pair: Pair, tmp_path: Path) -> None:
    with start(pair.a, tmp_path / "a.pcap") as capture:
        with pair.a.start_command("forward", f"127.0.0.1:5353:peer-b:{UDP_PORT}/udp") as forward:
            forward.wait_for(r"127\.0\.0\.1:(\d+)")
            done = pair.a.host.run(["socat", "-t", "2", "-", "UDP4:127.0.0.1:5353"], text="ping")
        assert done.stdout == "ping"
        finish(capture)
    there, back = [packet for packet in packets(tmp_path / "a.pcap") if "UDP" in packet]
    assert there["UDP"].dport == UDP_PORT == back["UDP"].sport
    assert bytes(there["UDP"].payload) == b"ping" == bytes(back["UDP"].payload)
    assert (there["IP"].src, there["UDP"].sport) == (back["IP"].dst, back["UDP"].dport)


def test_rotation_loses_nothing(pair: Pair, tmp_path: Path) -> None:
    with start(pair.a, tmp_path / "out.pcap", "--rotate-size", "1") as capture:
        got = pair.a.exchange("get", "peer-b", EXCHANGE_PORT, SIZE).result()
        finish(capture)
    files = sorted(tmp_path.glob("out-*.pcap"))
    assert len(files) >= 3
    (download,) = conversations(packets(*files), EXCHANGE_PORT)
    assert hashlib.sha256(download.streams[True]).hexdigest() == got["sha256"]


def test_a_reader_that_stands_still_holds_no_flow_back(pair: Pair, tmp_path: Path) -> None:
    fifo = tmp_path / "live"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with pair.a.host.popen(["sh", "-c", f"exec {pair.a.wrapper} capture > {fifo}"]) as capture:
        capture.wait_for("^capturing")
        got = pair.a.exchange("get", "peer-b", EXCHANGE_PORT, FLOOD).result()
        assert got["bytes"] == FLOOD and got["end"] == "clean"
        os.close(reader)
        assert capture.wait() == 128 + signal.SIGPIPE
        said = re.fullmatch(r"\d+ packets, (\d+) dropped", capture.output.splitlines()[-1])
        assert said and int(said[1]) > 0, capture.output


def test_what_is_wrong_is_one_line(pair: Pair, tmp_path: Path) -> None:
    done = pair.a.pvpn("capture", "-w", str(tmp_path / "x.pcap"), "--peer", "nobody", check=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())
