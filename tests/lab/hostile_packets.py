"""Sends malformed, cut, fragmented and overlapping packets into a TUN device.

Arguments: the device, this machine's address and a peer's (IPv4, then IPv6), how many packets, a seed.
"""

from __future__ import annotations

import random
import socket
import sys
import time

from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, UDPerror, fragment
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment

BURST = 64  # about what the device's reader takes at once


def base_packets(own: str, peer: str, own6: str, peer6: str) -> list[bytes]:
    """Sound ones, of every kind that the door reads."""
    there, there6 = IP(src=own, dst=peer), IPv6(src=own6, dst=peer6)
    large = fragment(there / UDP(sport=9, dport=9) / (b"x" * 3000), fragsize=1000)
    quoted = IPerror(src=peer, dst=own) / UDPerror(sport=9, dport=9)
    return [
        bytes(each)
        for each in (
            there / TCP(sport=5000, dport=9, flags="S", options=[("MSS", 1200)]),
            there / TCP(sport=5001, dport=9, flags="A") / b"data",
            there / UDP(sport=5002, dport=9) / b"data",
            there / UDP(sport=5002, dport=53) / DNS(qd=[DNSQR(qname="peer-b.pvpn")]),
            there / ICMP() / b"data",
            there / ICMP(type="dest-unreach", code=3) / quoted,
            *large,
            there6 / TCP(sport=5000, dport=9, flags="S"),
            there6 / UDP(sport=5002, dport=9) / b"data",
            there6 / ICMPv6EchoRequest(data=b"data"),
            there6 / ICMPv6DestUnreach() / bytes(there6 / UDP(sport=1, dport=2)),
            there6 / IPv6ExtHdrFragment(nh=17, offset=0, m=1, id=1) / (b"x" * 64),
            there6 / IPv6ExtHdrFragment(nh=17, offset=4, m=0, id=1) / (b"x" * 64),
            IP(src="192.0.2.7", dst=peer) / TCP(flags="S"),
            IP(src=own, dst="224.0.0.1") / UDP() / b"x",
        )
    ]


def mutated(packet: bytes, dice: random.Random) -> bytes:
    """The packet with some bytes changed, cut, repeated, or as it is."""
    data = bytearray(packet)
    for _time in range(dice.choice((0, 1, 1, 2, 8))):
        data[dice.randrange(len(data))] = dice.randrange(256)
    kind = dice.randrange(6)
    if kind == 0:
        del data[dice.randrange(1, len(data)) :]
    elif kind == 1:
        data += dice.randbytes(dice.randrange(40))
    return bytes(data)


def main(device: str, own: str, peer: str, own6: str, peer6: str, count: str, seed: str) -> None:
    dice = random.Random(int(seed))
    bases = base_packets(own, peer, own6, peer6)
    sent = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sock:
        for number in range(int(count)):
            packet = mutated(dice.choice(bases), dice)
            try:
                sock.sendto(packet, (device, 0x86DD if packet[0] >> 4 == 6 else 0x0800))
                sent += 1
            except OSError:  # larger than the device takes
                continue
            if number % BURST == 0:
                time.sleep(0.002)  # a pace at which the reader keeps up: what its queue drops was no test
    print("sent", sent, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
