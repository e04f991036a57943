"""Lookups while a name server is silent: bounded, and nobody else waits for them, not even the end of the loop."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from proxy_vpn.doors.lookups import Lookups

WAIT_S = 10.0


class Resolver:
    """A getaddrinfo that says nothing about `silent.test` until `speak` is set."""

    def __init__(self) -> None:
        self.speak = threading.Event()
        self.asked = threading.Semaphore(0)
        self._real = socket.getaddrinfo

    def __call__(self, host: str, port: int, **options: object) -> object:
        if host != "silent.test":
            return self._real(host, port, **options)  # type: ignore[arg-type]
        self.asked.release()
        assert self.speak.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "too late")


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    yield made
    made.speak.set()


def look_up(lookups: Lookups, host: str) -> asyncio.Task[object]:
    return asyncio.ensure_future(lookups.look_up(host, 80, socket.SOCK_STREAM))


def test_an_answer_and_an_error() -> None:
    async def main() -> None:
        lookups = Lookups(limit=1)
        for _time in range(2):
            infos = await lookups.look_up("localhost", 80, socket.SOCK_STREAM)
            assert {info[4][0] for info in infos} <= {"127.0.0.1", "::1"} and infos[0][4][1] == 80
            with pytest.raises(UnicodeError):
                await lookups.look_up("a..b", 80, socket.SOCK_STREAM)

    asyncio.run(main())


def test_nothing_else_waits_for_silent_ones(resolver: Resolver) -> None:
    async def main() -> None:
        lookups = Lookups()
        waiting = [look_up(lookups, "silent.test") for _ in range(20)]
        for _one in waiting:
            assert await asyncio.to_thread(resolver.asked.acquire, timeout=WAIT_S)
        assert await asyncio.wait_for(lookups.look_up("localhost", 80, socket.SOCK_STREAM), WAIT_S)

    asyncio.run(main())  # cancels them, and has ended although the resolver still says nothing
    assert not resolver.speak.is_set()


def test_one_given_up_counts_until_the_resolver_ends_it(resolver: Resolver) -> None:
    async def main() -> None:
        lookups = Lookups(limit=1)
        given_up = look_up(lookups, "silent.test")
        assert await asyncio.to_thread(resolver.asked.acquire, timeout=WAIT_S)
        given_up.cancel()
        second = look_up(lookups, "localhost")
        await asyncio.wait((given_up,))
        assert not second.done() and given_up.cancelled()
        resolver.speak.set()
        assert await asyncio.wait_for(second, WAIT_S)

    asyncio.run(main())
