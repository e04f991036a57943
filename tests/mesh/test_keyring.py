"""Which key opens what: indexes first, standing keys after, and nothing for nobody."""

from __future__ import annotations

from collections.abc import Callable

from proxy_vpn.addresses import Address
from proxy_vpn.mesh.keyring import Keyring
from proxy_vpn.net.udp import Path
from proxy_vpn.wire.seal import SealKey

PATH = Path("", 0, Address("192.0.2.1", 1))


def taker(heard: list[str], name: str) -> Callable[[bytes, Path], None]:
    def take(datagram: bytes, path: Path) -> None:
        heard.append(name)

    return take


def test_a_datagram_goes_to_whom_its_hint_names() -> None:
    keyring, heard = Keyring(), list[str]()
    standing, keyed = SealKey(b"\x01" * 32), SealKey(b"\x02" * 32, b"abcd")
    keyring.add_standing(lambda: [(standing, taker(heard, "standing"))])
    keyring.add_index(b"abcd", taker(heard, "keyed"))
    for key in (keyed, standing, SealKey(b"\x03" * 32), SealKey(b"\x01" * 32, b"wxyz")):
        assert keyring.receive(key.seal(b"n" * 12, b""), PATH) is None
    assert heard == ["keyed", "standing"]


def test_standing_keys_are_asked_for_anew_each_time() -> None:
    keyring, heard = Keyring(), list[str]()
    keys: list[SealKey] = []
    keyring.add_standing(lambda: [(key, taker(heard, "x")) for key in keys])
    datagram = SealKey(b"\x01" * 32).seal(b"n" * 12, b"")
    keyring.receive(datagram, PATH)
    keys.append(SealKey(b"\x01" * 32))
    keyring.receive(datagram, PATH)
    assert heard == ["x"]


def test_an_index_is_forgotten_only_by_whom_it_belongs_to() -> None:
    keyring, heard = Keyring(), list[str]()
    datagram = SealKey(b"\x02" * 32, b"abcd").seal(b"n" * 12, b"")
    old, new = taker(heard, "old"), taker(heard, "new")
    keyring.add_index(b"abcd", old)
    keyring.add_index(b"abcd", new)
    keyring.remove_index(b"abcd", old)
    keyring.receive(datagram, PATH)
    keyring.remove_index(b"abcd", new)
    keyring.remove_index(b"abcd", new)
    keyring.receive(datagram, PATH)
    assert heard == ["new"]
