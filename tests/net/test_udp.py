"""The UDP socket on loopback: segments out and in, addresses of its own, and a bounded queue."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.errors import StateError
from proxy_vpn.net import udp
from proxy_vpn.net.udp import Batch, Path, UdpSocket

WAIT_S = 10.0


@contextmanager
def sockets(*addresses: str) -> Iterator[list[UdpSocket]]:
    opened = [UdpSocket(Address(ip, 0)) for ip in addresses]
    try:
        yield opened
    finally:
        for one in opened:
            one.close()


def to(one: UdpSocket, ip: str = "", local: str = "") -> Path:
    return Path(local, 0, Address(ip or one.address.ip, one.address.port))


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(WAIT_S):
            await test()

    asyncio.run(main())


async def batches(one: UdpSocket, done: Callable[[list[Batch]], bool]) -> list[Batch]:
    """What arrives until `done`."""
    received: list[Batch] = []
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(one.fileno(), readable.set)
    try:
        while not done(received):
            readable.clear()
            while (batch := one.receive()) is not None:
                received.append(batch)
            if not done(received):
                await readable.wait()
    finally:
        loop.remove_reader(one.fileno())
    return received


def segments(received: list[Batch]) -> list[bytes]:
    return [
        batch.data[at : at + batch.segment_bytes]
        for batch in received
        for at in range(0, len(batch.data), batch.segment_bytes)
    ]


async def datagrams(one: UdpSocket, count: int) -> list[bytes]:
    return segments(await batches(one, lambda received: len(segments(received)) >= count))


def some(count: int, size: int, seed: int = 1) -> list[bytes]:
    rest = random.Random(seed)
    return [number.to_bytes(4, "big") + rest.randbytes(size - 4) for number in range(count)]


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_one_big_send_arrives_complete_and_in_order(ip: str) -> None:
    async def test() -> None:
        with sockets(ip, ip) as (one, two):
            sent = [*some(500, 1400), b"short last"]
            one.send(sent, to(two))
            received = await batches(two, lambda received: len(segments(received)) >= len(sent))
            assert segments(received) == sent
            assert len(received) < len(sent) / 4, "the kernel joined what we sent as segments"
            assert all(batch.path == Path(ip, 0, one.address) for batch in received)

    run(test)


def test_sizes_may_change_within_one_send() -> None:
    async def test() -> None:
        with sockets("127.0.0.1", "127.0.0.1") as (one, two):
            sizes = [1200, 1200, 40, 1400, 1400, 1400, 9, 9, 9, 10, 1200, 1, 1, 2000, 1999, 1999]
            sent = [bytes([number]) * size for number, size in enumerate(sizes)]
            one.send(sent, to(two))
            assert await datagrams(two, len(sent)) == sent

    run(test)


def test_without_segmentation_the_same_datagrams_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        with sockets("127.0.0.1", "127.0.0.1") as (one, two):
            monkeypatch.setattr(one, "_segmentation", False)
            sent = some(100, 1200)
            one.send(sent, to(two))
            assert await datagrams(two, 100) == sent

    run(test)


class Refusing:
    """A socket whose kernel refuses segmented sends with `code`."""

    def __init__(self, inner: socket.socket, code: int) -> None:
        self._inner = inner
        self._code = code
        self.refused = 0

    def sendmsg(self, buffers: list[bytes], *rest: Any) -> int:
        if len(buffers) > 1:
            self.refused += 1
            raise OSError(self._code, "not today")
        return self._inner.sendmsg(buffers, *rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL, errno.ENOPROTOOPT])
def test_a_device_without_segmentation_is_noticed_at_run_time_and_nothing_is_lost(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        with sockets("127.0.0.1", "127.0.0.1") as (one, two):
            refusing = Refusing(one._socket, code)
            monkeypatch.setattr(one, "_socket", refusing)
            sent = some(100, 1200)
            one.send(sent[:50], to(two))
            one.send(sent[50:], to(two))
            assert await datagrams(two, 100) == sent
            assert refusing.refused == 1, "tried once"

    run(test)


def test_a_segment_too_large_for_the_path_does_not_end_segmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        with sockets("127.0.0.1", "127.0.0.1") as (one, two):
            refusing = Refusing(one._socket, errno.EMSGSIZE)
            monkeypatch.setattr(one, "_socket", refusing)
            sent = some(10, 1200)
            one.send(sent, to(two))
            assert await datagrams(two, 10) == sent
            monkeypatch.undo()
            one.send(sent, to(two))
            received = await batches(two, lambda received: len(segments(received)) >= 10)
            assert len(received) < 10

    run(test)


@pytest.mark.parametrize("local", ["127.0.0.1", "127.0.0.2", "127.7.7.7"])
def test_a_wildcard_socket_knows_where_it_was_reached_and_answers_from_there(local: str) -> None:
    async def test() -> None:
        with sockets("0.0.0.0", "127.0.0.9") as (wildcard, other):
            other.send([b"hello"], to(wildcard, local))
            (batch,) = await batches(wildcard, bool)
            assert batch.path == Path(local, 0, other.address)
            wildcard.send([b"hello back", b"again here"], batch.path)
            received = await batches(other, lambda received: len(segments(received)) >= 2)
            assert {batch.path.remote for batch in received} == {Address(local, wildcard.address.port)}

    run(test)


def test_an_ipv6_wildcard_socket_takes_no_ipv4_and_keeps_its_address() -> None:
    async def test() -> None:
        with sockets("::", "::1") as (wildcard, other):
            UdpSocket(Address("0.0.0.0", wildcard.address.port)).close()
            other.send([b"hello"], to(wildcard, "::1"))
            (batch,) = await batches(wildcard, bool)
            assert batch.path == Path("::1", 0, other.address)
            wildcard.send([b"back"], batch.path)
            (answer,) = await batches(other, bool)
            assert answer.path.remote == Address("::1", wildcard.address.port)

    run(test)


def test_an_address_that_is_not_ours_is_a_lost_datagram_and_no_error() -> None:
    async def test() -> None:
        with sockets("127.0.0.1", "127.0.0.1") as (one, two):
            one.send([b"lost", b"lost"], to(two, local="192.0.2.77"))
            one.send([b"x"], Path("", 0, Address("255.255.255.255", 9)))
            one.send([b"x" * 65507, b"x" * 65600], to(two, local=""))
            one.send([b"found"], to(two))
            assert (await datagrams(two, 2))[-1] == b"found"

    run(test)


def test_a_taken_port_and_a_foreign_address_are_state_errors() -> None:
    with sockets("127.0.0.1") as (one,):
        for address in (one.address, Address("192.0.2.77", 0)):
            with pytest.raises(StateError, match="--listen"):
                UdpSocket(address)


class Congested:
    """A socket whose kernel takes nothing until `open`."""

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner
        self.open = False

    def sendmsg(self, *arguments: Any) -> int:
        if not self.open:
            raise BlockingIOError
        return self._inner.sendmsg(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_full_kernel_makes_a_bounded_queue_that_keeps_order(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        with sockets("127.0.0.1", "127.0.0.1") as (one, two):
            kernel = Congested(one._socket)
            monkeypatch.setattr(one, "_socket", kernel)
            woken: list[bool] = []
            one.watch_writable(lambda: woken.append(True))
            assert not one.congested
            sent = some(udp.QUEUED_SENDS_LIMIT + 30, 100)
            for datagram in sent:
                one.send([datagram], to(two))
            assert one.congested and woken == [True], "asked to be woken once"
            assert not one.flush() and one.congested
            kernel.open = True
            assert one.flush() and not one.congested
            one.send([b"after"], to(two))
            assert await datagrams(two, udp.QUEUED_SENDS_LIMIT + 1) == [*sent[: udp.QUEUED_SENDS_LIMIT], b"after"]

    run(test)


def test_nothing_is_left_behind_by_close() -> None:
    with sockets("127.0.0.1") as (one,):
        one.close()
        assert one.fileno() == -1
        one.close()
