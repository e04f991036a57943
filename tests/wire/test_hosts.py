"""Hosts as proxy clients send them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_vpn.errors import WireError
from proxy_vpn.wire.hosts import MAX_HOST_BYTES, parse_host


@pytest.mark.parametrize("text", ["peer-b", "Peer-B.pvpn", "192.0.2.1", "2001:db8::1", "_srv.example.org", "a" * 255])
def test_hosts_keep_their_case(text: str) -> None:
    assert parse_host(text.encode()) == text


@pytest.mark.parametrize("raw", [b"", b"a b", b"a\r\nb", b"a\0b", b"\xff", "ä".encode(), b"[::1]", b"a/b", b"a" * 256])
def test_what_could_bend_something_else_is_refused(raw: bytes) -> None:
    with pytest.raises(WireError):
        parse_host(raw)


@given(st.binary(max_size=MAX_HOST_BYTES + 2))
def test_noise_gives_a_host_or_a_wire_error(raw: bytes) -> None:
    try:
        assert parse_host(raw).encode() == raw
    except WireError as error:
        assert str(error).isprintable()
