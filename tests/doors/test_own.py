"""What counts as reaching this process itself."""

from __future__ import annotations

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.doors.own import OwnListeners


@pytest.mark.parametrize(
    ("listener", "target", "forbidden"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("::1", "::", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "::1", False),
        ("0.0.0.0", "127.9.9.9", True),
        ("::", "127.0.0.1", True),
        ("::", "::1", True),
        ("0.0.0.0", "198.51.100.7", False),
        ("::", "2001:db8::7", False),
        ("::1%lo", "::1", True),
    ],
)
def test_forbids(listener: str, target: str, forbidden: bool) -> None:
    own = OwnListeners()
    own.add(Address(listener, 1080))
    assert own.forbids(Address(target, 1080)) is forbidden
    assert not own.forbids(Address(target, 1081))
    assert not own.forbids(Address(target, 1080), udp=True)
    own.discard(Address(listener, 1080))
    own.discard(Address(listener, 1080))
    assert not own.forbids(Address(target, 1080))
