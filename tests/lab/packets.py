"""What an outsider does to a peer: watch the wire, and send what should be ignored.

`watch PEER` counts the datagrams to and from one IPv4 address on `eth0`; `capture PEER FILE` also keeps the UDP
payloads; both need CAP_NET_RAW, which every lab host has. `send` throws datagrams at `HOST:PORT`, paced; with
`--as IP:PORT` they carry a forged source. Sending starts and stops with lines `go` and `halt` on standard input.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ETH_P_ALL = 0x0003
ETH_P_IP = 0x0800
PACKET_BUFFER_BYTES = 64 << 20
BATCH_S = 0.005
CAPTURED_MAX = 20_000
LENGTH = struct.Struct("!H")


class Datagram(NamedTuple):
    """One IPv4 packet as seen on the wire; `payload` is empty when it is not UDP."""

    source: str
    target: str
    protocol: int
    payload: bytes


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("watch", "capture"):
        command = commands.add_parser(name)
        command.add_argument("peer")
        if name == "capture":
            command.add_argument("file", type=Path)
    send = commands.add_parser("send")
    send.add_argument("target")
    send.add_argument("--kind", choices=["random", "replay", "mutated", "dht"], required=True)
    send.add_argument("--file", type=Path)
    send.add_argument("--count", type=int, default=0, help="0: until halted")
    send.add_argument("--rate", type=int, default=10_000, help="datagrams a second")
    send.add_argument("--as", dest="forged", default="")
    options = parser.parse_args()
    if options.command == "send":
        payloads = make_payloads(options.kind, options.file)
        throw(options.target, payloads, options.count, options.rate, options.forged)
    else:
        watch(options.peer, getattr(options, "file", None))


def watch(peer: str, file: Path | None) -> None:
    """Count until standard input ends; prints `out N` and `in N` as they double, at the end a line of JSON."""
    counts = {"in": 0, "in_bytes": 0, "out": 0, "out_bytes": 0}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PACKET_BUFFER_BYTES)
        wire.bind(("eth0", ETH_P_ALL))
        print("watching", flush=True)
        with open(file or "/dev/null", "wb") as kept:
            while True:
                if sys.stdin in select.select([wire, sys.stdin], [], [])[0]:
                    break
                datagram = parse(wire.recv(65536))
                if datagram is None or peer not in (datagram.source, datagram.target):
                    continue
                way = "in" if datagram.source == peer else "out"
                counts[way] += 1
                counts[f"{way}_bytes"] += len(datagram.payload)
                if datagram.payload and counts["in"] + counts["out"] <= CAPTURED_MAX:
                    kept.write(LENGTH.pack(len(datagram.payload)) + datagram.payload)
                    kept.flush()
                if counts[way] & (counts[way] - 1) == 0:
                    print(way, counts[way], flush=True)
    print(json.dumps(counts), flush=True)


def parse(frame: bytes) -> Datagram | None:
    """An Ethernet frame, if it holds IPv4."""
    if len(frame) < 34 or frame[12:14] != ETH_P_IP.to_bytes(2, "big"):
        return None
    header = (frame[14] & 15) * 4
    body = frame[14 + header : 14 + int.from_bytes(frame[16:18], "big")]
    payload = body[8:] if frame[23] == socket.IPPROTO_UDP else b""
    return Datagram(socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34]), frame[23], payload)


def captured(file: Path) -> list[bytes]:
    """The payloads a capture kept."""
    data, payloads, at = file.read_bytes(), [], 0
    while at + LENGTH.size <= len(data):
        (size,) = LENGTH.unpack_from(data, at)
        payloads.append(data[at + LENGTH.size : at + LENGTH.size + size])
        at += LENGTH.size + size
    return payloads


def make_payloads(kind: str, file: Path | None) -> Iterator[bytes]:
    """An endless supply; `replay` and `mutated` draw on a capture."""
    dice = random.Random(93)
    real = captured(file) if file else []
    makers: dict[str, Callable[[], bytes]] = {
        "random": lambda: dice.randbytes(dice.choice((1, 20, 48, 200, 1200, 1232, 1452))),
        "replay": lambda: dice.choice(real),
        "mutated": lambda: mutate(dice.choice(real), dice),
        "dht": lambda: dht_like(dice),
    }
    make = makers[kind]
    while True:
        yield make()


def mutate(payload: bytes, dice: random.Random) -> bytes:
    """The payload with a few bits, its end or its beginning changed."""
    changed = bytearray(payload)
    how = dice.randrange(4)
    if how == 0:
        for _ in range(dice.randrange(1, 5)):
            changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    elif how == 1:
        del changed[dice.randrange(len(changed)) :]
    elif how == 2:
        changed += dice.randbytes(dice.randrange(1, 40))
    else:
        changed[0] = dice.randrange(256)
    return bytes(changed[:1452]) or b"\0"


def dht_like(dice: random.Random) -> bytes:
    """A well-formed or nearly well-formed KRPC message nobody asked for."""
    node, transaction = dice.randbytes(20), dice.randbytes(dice.choice((2, 4)))
    tail = b"1:t%d:%b1:y1:" % (len(transaction), transaction)
    query = b"d1:ad2:id20:" + node
    hashed = b"9:info_hash20:" + dice.randbytes(20)
    whole = dice.choice(
        [
            query + b"e1:q4:ping" + tail + b"qe",
            query + b"6:target20:" + dice.randbytes(20) + b"e1:q9:find_node" + tail + b"qe",
            query + hashed + b"e1:q9:get_peers" + tail + b"qe",
            query + hashed + b"4:porti6881e5:token8:" + dice.randbytes(8) + b"e1:q13:announce_peer" + tail + b"qe",
            b"d1:rd2:id20:" + node + b"5:nodes208:" + dice.randbytes(208) + b"e" + tail + b"re",
            b"d1:eli201e7:whoknowse" + tail + b"ee",
        ]
    )
    return whole if dice.random() < 0.9 else mutate(whole, dice)


def throw(target: str, payloads: Iterator[bytes], count: int, rate: int, forged: str) -> None:
    """Send `count` datagrams (0: endless) at `rate`, obeying `go` and `halt`; prints how many went and from where."""
    host, port = target.rsplit(":", 1)
    send = _forger(host, int(port), forged) if forged else _sender(host, int(port))
    batch = max(1, int(rate * BATCH_S))
    sent, running, due = 0, bool(count), time.monotonic()
    print("ready", flush=True)
    while not count or sent < count:
        wait = max(0.0, due - time.monotonic()) if running else None
        if select.select([sys.stdin], [], [], wait)[0]:
            order = sys.stdin.readline().strip()
            if not order:
                break
            running, due = order == "go", time.monotonic()
            print("went", order, sent, flush=True)
            continue
        for _ in range(min(batch, count - sent) if count else batch):
            send(next(payloads))
            sent += 1
        # A late sender catches up a little, never in one burst: a lab with two cores is late now and then.
        due = max(due + BATCH_S, time.monotonic() - 10 * BATCH_S)
    print(json.dumps({"sent": sent}), flush=True)


def _sender(host: str, port: int) -> Callable[[bytes], object]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((host, port))

    def send(payload: bytes) -> None:
        try:
            sock.send(payload)
        except ConnectionRefusedError:  # an ICMP answer; `watch` counts it
            sock.send(payload)

    return send


def _forger(host: str, port: int, forged: str) -> Callable[[bytes], object]:
    """UDP in hand-made IPv4, so that it seems to come from `forged`."""
    source, source_port = forged.rsplit(":", 1)
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)

    def send(payload: bytes) -> None:
        udp = struct.pack("!HHHH", int(source_port), port, 8 + len(payload), 0)
        ends = socket.inet_aton(source) + socket.inet_aton(host)
        packet = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(payload), 0, 0, 64, socket.IPPROTO_UDP, 0) + ends
        sock.sendto(packet + udp + payload, (host, 0))

    return send


if __name__ == "__main__":
    main()
