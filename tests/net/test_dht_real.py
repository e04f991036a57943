"""Members meet through nodes that others wrote: libtorrent's and aria2's."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.net.dht import Dht
from tests.net.dht_member import Member, run
from tests.support.libtorrent_dht import libtorrent_dht

HASH = b"\x24" * 20
READY_S = 20.0


def free_port(ip: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((ip, 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[tuple[str, int]]]:
    """Five libtorrent sessions, each on its own loopback network."""
    pytest.importorskip("libtorrent", reason="libtorrent is not installed")
    listen = [(ip, free_port(ip)) for ip in (f"127.0.{number}.1" for number in range(101, 106))]
    with libtorrent_dht(listen):
        yield listen


def test_readers_meet_through_libtorrent_alone(nodes: list[tuple[str, int]]) -> None:
    async def main() -> None:
        async with Member("127.0.120.1", nodes[:1]) as one:
            handle = one.join(HASH)
            await one.until(lambda: (handle.announced or 0) >= 4)
            async with Member("127.0.121.1", nodes[1:2]) as two:
                two.join(HASH, port=None)
                source = await two.finds(one.address)
                assert tuple(source) in nodes
                assert one.dht.status().external4 == one.address
                # No node takes a reader into its table, so hardly anyone asks it anything; and it never answers.
                assert two.unanswered_queries + one.unanswered_queries <= 10

    run(main())


def test_restart_from_saved_state_through_libtorrent(nodes: list[tuple[str, int]]) -> None:
    async def main() -> None:
        info_hash = b"\x25" * 20
        async with Member("127.0.122.1", nodes[:1]) as one:
            one.join(info_hash)
            async with Member("127.0.123.1", nodes[:1]) as two:
                two.join(info_hash)
                await two.finds(one.address)
                await two.until(lambda: two.dht.status().good4 >= 4)
                state = two.dht.export_state()
        async with Member("127.0.123.1", [], state=state) as again:
            again.join(info_hash)
            await again.finds(one.address)

    run(main())


def test_a_serving_node_is_one_of_them(nodes: list[tuple[str, int]]) -> None:
    """libtorrent asks our serving node, and a member meets another through it alone."""

    async def main() -> None:
        info_hash = b"\x26" * 20
        async with Member("127.0.124.1", nodes, serve=True) as server:
            await server.until(lambda: server.dht.status().good4 >= 4)
            # libtorrent pings the newcomer that asked it, and is answered.
            await server.until(lambda: server.unanswered_queries > 0)
            async with (
                Member("127.0.125.1", [server.address]) as one,
                Member("127.0.126.1", [server.address]) as two,
            ):
                one.join(info_hash)
                two.join(info_hash)
                await two.finds(one.address)
                await one.until(lambda: one.dht.status().good4 >= 5)

    run(main())


@pytest.mark.parametrize("end", ["stdin", "signal"])
def test_the_nodes_as_a_program(end: str) -> None:
    pytest.importorskip("libtorrent", reason="libtorrent is not installed")
    program = Path(__file__).parent.parent / "support" / "libtorrent_dht.py"
    listen = [f"{ip}:{free_port(ip)}" for ip in ("127.0.140.1", "127.0.141.1")]
    with subprocess.Popen(
        [sys.executable, str(program), *listen], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready 2\n"
        if end == "stdin":
            process.stdin.close()
        else:
            process.terminate()
        assert process.wait(READY_S) == 0


@contextlib.contextmanager
def aria2(directory: Path) -> Iterator[Address]:
    """One aria2c with its DHT on, alone in the world."""
    program = shutil.which("aria2c")
    if program is None:
        pytest.skip("aria2c is not installed")
    ip = "127.0.130.1"
    address = Address(ip, free_port(ip))
    process = subprocess.Popen(
        [
            program,
            "--enable-dht=true",
            f"--dht-listen-port={address.port}",
            f"--dht-file-path={directory / 'dht.dat'}",
            f"--interface={ip}",
            f"--listen-port={free_port(ip)}",
            f"--dir={directory}",
            "--no-conf=true",
            "--quiet=true",
            "--bt-enable-lpd=false",
            f"magnet:?xt=urn:btih:{'ab' * 20}",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_bound(address, process)
        yield address
    finally:
        process.terminate()
        process.wait(READY_S)


def _wait_until_bound(address: Address, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.settimeout(0.2)
            probe.connect(address)
            with contextlib.suppress(OSError):
                probe.send(b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t4:aaaa1:y1:qe")
                probe.recv(2048)
                return
    pytest.fail("aria2c did not start")


def test_readers_meet_through_a_single_aria2(tmp_path: Path) -> None:
    async def main(address: Address) -> None:
        async with Member("127.0.131.1", [address]) as one:
            handle = one.join(HASH)
            await one.until(lambda: handle.announced == 1)
            async with Member("127.0.132.1", [address]) as two:
                two.join(HASH)
                # aria2 heeds the announced port only, so this also shows that it is the right one.
                assert await two.finds(one.address) == address

    with aria2(tmp_path) as address:
        run(main(address))


def test_the_defaults_name_the_public_nodes() -> None:
    """Nothing is sent or resolved before start."""
    dht = Dht(lambda *_: pytest.fail("sent before start"), lambda size: bytes(size))
    assert dht.status().bootstrap_reachable is None
    assert dht.good_nodes() == []
