"""The interface of --tun: which name servers may be asked, and accepted routes that can't be set at once."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy_vpn.daemon import tunnel
from proxy_vpn.daemon.tunnel import check_resolver
from proxy_vpn.errors import StateError
from proxy_vpn.ranges import Network, parse_route

ONE, TWO, THREE = map(parse_route, ("192.168.7.0/24", "192.168.8.0/24", "fd00:7::/64"))
OURS = "100.87.0.53"


@pytest.mark.parametrize(
    ("servers", "resolved_asks"),
    [(["192.0.2.53"], False), ([OURS], False), (["192.0.2.53", "fd00::53"], True), (["127.0.0.53"], True), ([], True)],
)
def test_who_is_reached_through_the_exit_may_be_asked(servers: list[str], resolved_asks: bool, tmp_path: Path) -> None:
    check_resolver(OURS, resolved_asks=resolved_asks, path=written(tmp_path, servers))


@pytest.mark.parametrize(
    ("servers", "resolved_asks", "named"),
    [
        (["127.0.0.1"], False, "127.0.0.1"),
        (["127.0.0.53"], False, "127.0.0.53"),
        (["127.0.0.1"], True, "127.0.0.1"),
        ([OURS, "::1"], True, "::1"),
        (["fe80::1%eth0"], True, "fe80::1%eth0"),
        ([], False, "127.0.0.1"),
    ],
)
def test_who_would_ask_around_it_may_not(servers: list[str], resolved_asks: bool, named: str, tmp_path: Path) -> None:
    with pytest.raises(StateError, match=f"ask {named} for names.* - put 'nameserver {OURS}'"):
        check_resolver(OURS, resolved_asks=resolved_asks, path=written(tmp_path, servers))


def written(directory: Path, servers: list[str]) -> Path:
    path = directory / "resolv.conf"
    path.write_text("".join(f"nameserver {server}\n" for server in servers))
    return path


class Ways:
    """What is accepted, look by look; the last goes on."""

    def __init__(self, *looks: set[Network]) -> None:
        self._looks = list(looks)

    def accepted(self) -> Iterator[tuple[Network, Any, Any]]:
        look = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        return ((network, None, None) for network in look)


def test_routes_that_can_not_be_set_are_told_once_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    changes: list[tuple[set[Network], set[Network]]] = []
    answers: list[Exception | dict[Network, str]] = [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)), {TWO: "it is another's"}, {TWO: "it is another's"}, {}, {},
    ]  # fmt: skip

    async def main() -> None:
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def change(name: str, add: Iterable[Network], remove: Iterable[Network]) -> dict[Network, str]:
            changes.append((set(add), set(remove)))
            if len(changes) == len(answers):
                loop.call_soon_threadsafe(done.set)
            answer = answers[len(changes) - 1]
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(tunnel, "change_routes", change)
        monkeypatch.setattr(tunnel, "ROUTES_EVERY_S", 0.01)
        ways: Any = Ways(*[{ONE, TWO}] * 4, {TWO, THREE})
        task = asyncio.ensure_future(tunnel.keep_routes("pvpn0", ways))
        await asyncio.wait_for(done.wait(), 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert changes == [({ONE, TWO}, set()), ({ONE, TWO}, set()), ({TWO}, set()), ({TWO}, set()), ({THREE}, {ONE})]
    assert sorted(record.getMessage() for record in caplog.records if record.name == tunnel.__name__) == [
        f"the route to {network} through pvpn0: Too many open files" for network in (ONE, TWO)
    ]
