from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.addresses import Address
from proxy_vpn.dht.ids import crc32c, distance, family_of, host, id_fits, make_id, shared_bits, subnet

VECTORS = [
    ("124.31.75.21", 1, "5fbfbff10c5d6a4ec8a88e4c6ab4c28b95eee401"),
    ("21.75.31.124", 86, "5a3ce9c14e7a08645677bbd1cfe7d8f956d53256"),
    ("65.23.51.170", 22, "a5d43220bc8f112a3d426c84764f8c2a1150e616"),
    ("84.124.73.14", 65, "1b0321dd1bb1fe518101ceef99462b947a01ff41"),
    ("43.213.53.83", 90, "e56f6cbf5b7c4be0237986d5243b87aa6d51305a"),
]


def test_crc32c_check_value() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize(("ip", "random", "node_id"), VECTORS)
def test_the_vectors_of_bep_42(ip: str, random: int, node_id: str) -> None:
    value = bytes.fromhex(node_id)
    assert value[-1] == random
    assert id_fits(value, ip)
    assert not id_fits(value, "124.31.75.22")
    assert not id_fits(bytes([value[0] ^ 0x80]) + value[1:], ip)
    # The five highest bits of the third byte count, the three lowest don't.
    assert id_fits(value[:2] + bytes([value[2] ^ 0x07]) + value[3:], ip)
    assert not id_fits(value[:2] + bytes([value[2] ^ 0x08]) + value[3:], ip)


@given(st.ip_addresses().map(str))
@settings(max_examples=50)
def test_a_made_id_fits(ip: str) -> None:
    assert id_fits(make_id(ip, os.urandom), ip)


@pytest.mark.parametrize("ip", ["10.1.2.3", "127.0.0.1", "192.168.1.1", "169.254.3.4", "::1", "fd00::1", "fe80::1"])
def test_local_addresses_are_exempt(ip: str) -> None:
    assert id_fits(bytes(20), ip)


def test_relations() -> None:
    assert distance(b"\x00" * 20, b"\x00" * 19 + b"\x05") == 5
    assert shared_bits(bytes(20), bytes(20)) == 160
    assert shared_bits(bytes(20), b"\x01" + bytes(19)) == 7
    assert subnet("192.0.2.7") == subnet("192.0.2.200") != subnet("192.0.3.7")
    assert host("2001:db8::1") == host("2001:db8::2") != host("2001:db8:0:1::1")
    assert (family_of(Address("192.0.2.1", 1)), family_of(Address("::1", 1))) == (4, 6)
