from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.net.dht import Dht, RendezvousHandle, Urgency
from proxy_vpn.net.private_dht import PrivateDht
from tests.net.dht_member import Member, run

HASH = b"\x42" * 20


def test_two_readers_meet_through_a_private_dht() -> None:
    async def main() -> None:
        async with PrivateDht(8) as dht, Member("127.0.60.1", dht.addresses[:1]) as one:
            handle = one.join(HASH)
            await one.until(lambda: handle.announced == 8)
            async with Member("127.0.61.1", dht.addresses[1:2]) as two:
                two.join(HASH, port=None)
                source = await two.finds(one.address)
                assert source in dht.addresses
                status = one.dht.status()
                assert (status.nodes4, status.good4, status.announced) == (8, 8, 8)
                assert status.bootstrap_reachable
                assert (status.external4, status.symmetric4) == (one.address, False)
                assert (status.nodes6, status.external6) == (0, None)
                assert one.unanswered_queries == 0
                assert two.address not in one.found

    run(main())


def test_restart_from_saved_state_without_bootstrap() -> None:
    async def main() -> None:
        async with PrivateDht(6) as dht, Member("127.0.60.1", dht.addresses[:1]) as one:
            one.join(HASH)
            async with Member("127.0.61.1", dht.addresses[:1]) as two:
                two.join(HASH)
                await two.finds(one.address)
                state = msgspec.msgpack.decode(msgspec.msgpack.encode(two.dht.export_state()))
            async with Member("127.0.61.1", [], state=state) as again:
                again.join(HASH)
                await again.finds(one.address)
                assert again.dht.status().bootstrap_reachable is None

    run(main())


def test_nodes_given_by_a_peer_are_enough() -> None:
    async def main() -> None:
        async with PrivateDht(4) as dht, Member("127.0.60.1", dht.addresses[:1]) as one:
            one.join(HASH)
            await one.until(lambda: one.dht.status().good4 == 4)
            given = one.dht.good_nodes(3)
            assert len(given) == 3
            assert set(given) <= set(dht.addresses)
            async with Member("127.0.61.1", []) as two:
                two.join(HASH)
                two.dht.add_nodes(given)
                await two.until(lambda: two.dht.status().good4 >= 3)
                two.handles[0].poke()
                await two.finds(one.address)

    run(main())


def test_bootstrap_by_name_is_quiet_about_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with PrivateDht(3) as dht:
            target, asked = dht.addresses[0], []

            async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
                asked.append(host)
                if host != "good.example":
                    raise socket.gaierror("no such host")
                return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (target.ip, target.port))]

            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
            names = [("bad.example", 1), ("good.example", 2), ("x" * 300, 3)]
            async with Member("127.0.60.1", names) as one:
                handle = one.join(HASH)
                await one.until(lambda: handle.announced == 3)
                assert asked[:2] == ["bad.example", "good.example"]
                assert one.dht.status().bootstrap_reachable

    run(main())


def test_a_closed_dht_sends_nothing_and_close_is_idempotent() -> None:
    async def main() -> None:
        sent: list[bytes] = []
        dht = Dht(lambda datagram, _: sent.append(datagram), os.urandom, [("192.0.2.1", 6881), ("name.invalid", 1)])
        dht.start()
        handle = dht.rendezvous(lambda _: [HASH], lambda: 5000, lambda *_: None, lambda: Urgency.NONE_LIVE)
        assert sent
        await dht.close()
        await dht.close()
        sent.clear()
        handle.poke()
        handle.close()
        handle.close()
        dht.receive(b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe", Address("192.0.2.1", 6881))
        dht.add_nodes([Address("192.0.2.2", 6881)])
        assert sent == []
        assert dht.status().announced is None

    run(main())


def test_a_closed_handle_hears_nothing_and_a_send_that_fails_is_survived() -> None:
    async def main() -> None:
        def refuse(datagram: bytes, address: Address) -> None:
            raise OSError("network is unreachable")

        calls: list[float] = []

        def topics(now: float) -> list[bytes]:
            calls.append(now)
            return [HASH]

        dht = Dht(refuse, os.urandom, [("192.0.2.1", 6881)])
        dht.start()
        handle: RendezvousHandle = dht.rendezvous(topics, lambda: 5000, lambda *_: None, lambda: Urgency.NONE_LIVE)
        assert abs(calls[0] - time.time()) < 60
        handle.close()
        calls.clear()
        handle.poke()
        assert calls == []
        await dht.close()

    run(main())


def test_both_families() -> None:
    async def main() -> None:
        try:
            probe = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            probe.bind(("::1", 0))
            probe.close()
        except OSError:
            pytest.skip("no IPv6 on loopback")
        async with Member("::1", [], serve=True) as server, Member("::1", [server.address]) as one:
            handle = one.join(HASH)
            await one.until(lambda: handle.announced == 1)
            assert (one.dht.status().nodes6, one.dht.status().nodes4) == (1, 0)
            async with Member("::1", [server.address]) as two:
                two.join(HASH)
                await two.finds(one.address)

    run(main())


def test_a_private_dht_leaves_no_socket_behind() -> None:
    async def main() -> None:
        async with PrivateDht(3) as dht:
            addresses = list(dht.addresses)
            assert len(set(addresses)) == 3
            assert all(address.ip == f"127.0.{number}.1" for number, address in enumerate(addresses, 1))
        for address in addresses:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
                await _eventually(lambda again=again, address=address: again.bind(tuple(address)))  # type: ignore[misc]

    run(main())


async def _eventually(action: Callable[[], Awaitable[None] | None]) -> None:
    for _ in range(100):
        try:
            action()
            return
        except OSError:
            await asyncio.sleep(0)
    action()
