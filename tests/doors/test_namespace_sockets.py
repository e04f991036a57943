"""Sockets from a process that makes them: answers, refusals, waits that were given up, and ends."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Awaitable, Callable

import pytest

from proxy_vpn.doors import namespace_sockets
from proxy_vpn.doors.namespace_giver import give
from proxy_vpn.doors.namespace_sockets import SocketSource

WAIT_S = 10.0


def play(scene: Callable[[SocketSource, socket.socket], Awaitable[None]]) -> None:
    """With a source and the other end of its line; no descriptor may be left."""
    before = len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        source = SocketSource(near)
        with far:
            try:
                await asyncio.wait_for(scene(source, far), WAIT_S)
            finally:
                source.close()

    asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) == before


def test_sockets_of_both_families_and_the_end() -> None:
    async def scene(source: SocketSource, far: socket.socket) -> None:
        giver = threading.Thread(target=give, args=(far,))
        giver.start()
        try:
            for family in (socket.AF_INET, socket.AF_INET6) * 150:
                with await source.make(family) as made:
                    assert (made.family, made.type) == (family, socket.SOCK_STREAM)
        finally:
            source.close()
            await asyncio.to_thread(giver.join, WAIT_S)
        assert not giver.is_alive(), "it ends with its line"
        with pytest.raises(OSError):
            await source.make(socket.AF_INET)

    play(scene)


def test_the_answer_to_one_who_gave_up_is_not_the_next_one_s() -> None:
    async def scene(source: SocketSource, far: socket.socket) -> None:
        asking = asyncio.ensure_future(source.make(socket.AF_INET))
        first = await request(far)
        asking.cancel()
        await asyncio.wait([asking])
        with socket.socket() as late, socket.socket(socket.AF_INET6) as wanted:
            socket.send_fds(far, [first[:1] + b"\0"], [late.fileno()])
            asking = asyncio.ensure_future(source.make(socket.AF_INET6))
            socket.send_fds(far, [(await request(far))[:1] + b"\0"], [wanted.fileno()])
            with await asking as made:
                assert made.family == socket.AF_INET6

    play(scene)


@pytest.mark.parametrize("wrong", ["errno", "empty", "file", "datagram", "family"])
def test_answers_that_are_none(wrong: str) -> None:
    async def scene(source: SocketSource, far: socket.socket) -> None:
        asking = asyncio.ensure_future(source.make(socket.AF_INET))
        number = (await request(far))[:1]
        kinds = {"datagram": (socket.AF_INET, socket.SOCK_DGRAM), "family": (socket.AF_INET6, socket.SOCK_STREAM)}
        if wrong == "errno":
            far.send(number + bytes((errno.EMFILE,)))
        elif wrong == "empty":
            far.close()
        elif wrong == "file":
            file = os.open(os.devnull, os.O_RDONLY)
            socket.send_fds(far, [number + b"\0"], [file])
            os.close(file)
        else:
            with socket.socket(*kinds[wrong]) as other:
                socket.send_fds(far, [number + b"\0"], [other.fileno()])
        with pytest.raises(OSError) as raised:
            await asking
        assert wrong != "errno" or raised.value.errno == errno.EMFILE

    play(scene)


def test_one_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace_sockets, "ANSWER_S", 0.05)

    async def scene(source: SocketSource, far: socket.socket) -> None:
        with pytest.raises(TimeoutError):
            await source.make(socket.AF_INET)

    play(scene)


async def request(far: socket.socket) -> bytes:
    """The next one."""
    return await asyncio.to_thread(far.recv, 2)
