"""Listeners: real ports, Unix sockets and their files, and what is said when it can't be."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.doors.listen import bind_udp, listen_tcp, listen_unix
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.errors import StateError


def test_a_tcp_port_of_its_own() -> None:
    async def main() -> None:
        own = OwnListeners()
        listener = await listen_tcp("127.0.0.1", 0, own)
        assert isinstance(listener.where, Address) and listener.where.port
        assert own.forbids(listener.where) and not own.forbids(listener.where, udp=True)
        with pytest.raises(StateError) as caught:
            await listen_tcp("127.0.0.1", listener.where.port, own)
        assert "in use" in str(caught.value) and " - " in str(caught.value)
        listener.close()
        listener.close()
        assert not own.forbids(listener.where)

    asyncio.run(main())


def test_a_udp_port_of_its_own() -> None:
    async def main() -> None:
        own = OwnListeners()
        listener = await bind_udp("::1", 0, own)
        assert isinstance(listener.where, Address) and listener.where.ip == "::1"
        assert own.forbids(listener.where, udp=True) and not own.forbids(listener.where)
        with pytest.raises(StateError):
            await bind_udp("::1", listener.where.port, own)
        listener.close()

    asyncio.run(main())


@pytest.mark.parametrize("host", ["192.0.2.77", "no such host", "a..b"])
def test_addresses_that_are_not_ours(host: str) -> None:
    with pytest.raises(StateError):
        asyncio.run(listen_tcp(host, 0, OwnListeners()))


def test_every_address() -> None:
    async def main() -> None:
        listener = await listen_tcp("", 0, OwnListeners())
        assert isinstance(listener.where, Address) and listener.where.ip in ("0.0.0.0", "::")
        listener.close()

    asyncio.run(main())


def test_a_unix_socket_is_private_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "door"
    before = os.umask(0)
    try:
        listener = listen_unix(str(path), OwnListeners())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and listener.where == str(path)
    with pytest.raises(StateError) as caught:
        listen_unix(str(path), OwnListeners())
    assert "another process listens" in str(caught.value)
    listener.close()
    assert not path.exists()


def test_a_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "door")
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(path)
    listener = listen_unix(path, OwnListeners())
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(path)
        listener.close()
        assert os.path.exists(path), "the file of another one's socket was removed"


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(StateError):
        listen_unix(str(path), OwnListeners())
    assert path.read_text() == "data"


def test_paths_that_no_socket_fits(tmp_path: Path) -> None:
    with pytest.raises(StateError) as caught:
        listen_unix(str(tmp_path / ("x" * 120)), OwnListeners())
    assert "too long" in str(caught.value)
    with pytest.raises(StateError):
        listen_unix(str(tmp_path / "missing" / "door"), OwnListeners())
