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
from proxy_vpn.net.recvmmsg import ManyReceiver, Received, available
from proxy_vpn.net.udp import MANY_AFTER, MISFITS_LIMIT, Batch, Path, UdpSocket
from proxy_vpn.wire.segments import HEAD_BYTES, Laid, Segments
from proxy_vpn.wire.train import DATAGRAM_LIMIT_BYTES, cut

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
            while several := one.receive():
                received += [batch._replace(segments=kept(batch.segments)) for batch in several]
            if not done(received):
                await readable.wait()
    finally:
        loop.remove_reader(one.fileno())
    return received


def kept(segments: Segments) -> Laid:
    """Past the next read."""
    return Laid(segments.data, segments.segment_bytes)


def segments(received: list[Batch]) -> list[bytes]:
    return [each for batch in received for each in cut(batch.segments.data, batch.segments.segment_bytes)]


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


@pytest.mark.parametrize("segmentation", [True, False])
def test_datagrams_may_be_laid_end_to_end(segmentation: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        with sockets("127.0.0.1", "127.0.0.1") as (one, two):
            monkeypatch.setattr(one, "_segmentation", segmentation)
            laid = [bytes([n + 1]) * size for n, size in enumerate([9600, 9600, 1200, 9600, 2900, 700, 1200, 54_000])]
            one.send(laid, to(two), segment_bytes=1200)
            singly = [each for data in laid for each in cut(data, 1200)]
            assert {len(each) for each in singly} == {1200, 700, 500}
            assert await datagrams(two, len(singly)) == singly

    run(test)


def test_whole_trains_share_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        with sockets("127.0.0.1", "127.0.0.1") as (one, two):
            counting = Refusing(one._socket, 0)
            monkeypatch.setattr(one, "_socket", counting)
            one.send([bytes(8 * 1452)] * 20, to(two), segment_bytes=1452)
            assert counting.calls == [5] * 4, "a receiver that joins datagrams gets none in halves"
            assert await datagrams(two, 160) == [bytes(1452)] * 160

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
    """A socket whose kernel refuses segmented sends with `code`, if that is not 0; it counts a call's buffers."""

    def __init__(self, inner: socket.socket, code: int) -> None:
        self._inner = inner
        self._code = code
        self.refused = 0
        self.calls: list[int] = []

    def sendmsg(self, buffers: list[bytes], *rest: Any) -> int:
        self.calls.append(len(buffers))
        if self._code and any(kind == 103 for _level, kind, _value in rest[0]):  # UDP_SEGMENT
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
            fit = udp.QUEUED_BYTES_LIMIT // (udp._CALL_BYTES + 1000)
            sent = some(fit + 30, 1000)
            for datagram in sent:
                one.send([datagram], to(two))
            assert one.congested and woken == [True], "asked to be woken once"
            assert not one.flush() and one.congested
            kernel.open = True
            assert one.flush() and not one.congested
            one.send([b"after"], to(two))
            assert await datagrams(two, fit + 1) == [*sent[:fit], b"after"]
            assert not one._queued_bytes

    run(test)


def test_what_waits_leaves_before_a_socket_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        with sockets("127.0.0.1", "127.0.0.1") as (one, two):
            kernel = Congested(one._socket)
            monkeypatch.setattr(one, "_socket", kernel)
            one.send([b"goodbye"], to(two))
            kernel.open = True
            one.close()
            assert await datagrams(two, 1) == [b"goodbye"]

    run(test)


def test_nothing_is_left_behind_by_close() -> None:
    with sockets("127.0.0.1") as (one,):
        one.close()
        assert one.fileno() == -1
        one.close()


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_large_datagrams_that_come_alone_are_read_many_at_a_time(ip: str) -> None:
    """As on interfaces whose driver joins none; what else comes meanwhile keeps its bounds and its source."""

    async def main() -> None:
        one, other, two = (UdpSocket(Address(ip, 0)) for _ in range(3))
        path = Path("", 0, two.address)
        sent: list[tuple[Address, bytes]] = []

        def send(source: UdpSocket, *data: bytes) -> None:
            for each in data:
                sent.append((source.address, each))
                source.send([each], path)

        async def received() -> list[Batch]:
            there = await batches(two, lambda some: len(segments(some)) >= len(sent))
            assert [(batch.path.remote, each) for batch in there for each in segments([batch])] == sent
            sent.clear()
            return there

        try:
            send(one, *some(MANY_AFTER + 40, 1452))
            assert max(batch.segments.size for batch in await received()) == 40 * 1452
            send(one, *some(20, 1452), *some(1, 700))
            (whole,) = await received()
            assert whole.path == Path(ip, 0, one.address) and whole.segments.segment_bytes == 1452
            send(one, *some(3, 1452), *some(2, 60_000), b"x", *some(2, 1452), *some(1, HEAD_BYTES), *some(1, 1452))
            send(other, *some(3, 1452))
            send(one, *some(2, 1452))
            assert len(await received()) > 3
            for _ in range(3):  # what the kernel joined has the length of one datagram here
                pair = [*some(1, 1000), *some(1, 452)]
                one.send(pair, path)
                sent.extend((one.address, each) for each in pair)
            await received()
            one.send(some(10, 1452), path)
            sent.extend((one.address, each) for each in some(10, 1452))
            await received()
            for _ in range(MISFITS_LIMIT + 1):
                send(one, b"small")
                await received()
            assert two._many is None
            send(one, *some(MANY_AFTER + 40, 1200))
            assert max(batch.segments.size for batch in await received()) == 40 * 1200
        finally:
            for each in (one, other, two):
                each.close()

    if not available():
        pytest.skip("this system has no recvmmsg")
    asyncio.run(main())


def test_larger_datagrams_than_any_of_ours_say_nothing_of_what_to_expect() -> None:
    async def main() -> None:
        with sockets("127.0.0.1", "127.0.0.1") as (one, two):
            for number in range(2 * MANY_AFTER):
                one.send(some(1, DATAGRAM_LIMIT_BYTES + 1 + number), to(two))
                await datagrams(two, 1)
            assert two._many is None

    asyncio.run(main())


def test_a_system_that_refuses_the_call_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: ManyReceiver, fd: int) -> list[Received]:
        raise OSError(errno.ENOSYS, "not here")

    async def main() -> None:
        one, two = UdpSocket(Address("127.0.0.1", 0)), UdpSocket(Address("127.0.0.1", 0))
        try:
            for _ in range(2):
                for each in some(40, 1452):
                    one.send([each], Path("", 0, two.address))
                assert await datagrams(two, 40) == some(40, 1452)
            assert two._many is None
        finally:
            one.close()
            two.close()

    monkeypatch.setattr(ManyReceiver, "receive", refuse)
    asyncio.run(main())
