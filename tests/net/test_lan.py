"""LAN discovery by real multicast on the loopback interface: found, told apart, rotated, withdrawn, fed with junk."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.net import lan as lan_module
from proxy_vpn.net import mdns
from proxy_vpn.net.lan import Lan
from tests.net.mdns_wire import LOOPBACK, Bystander, announcement, mutated, name, question, record, response

WAIT_S = 20.0
SETTLE_S = 0.4
ONE, TWO = Address("192.0.2.1", 4001), Address("192.0.2.2", 4002)
TWO6 = Address("2001:db8::2", 4002)


class Ear:
    """Collects what a network's on_peer is told."""

    def __init__(self) -> None:
        self.heard: list[Address] = []
        self._changed = asyncio.Event()

    def __call__(self, address: Address) -> None:
        self.heard.append(address)
        self._changed.set()

    async def hear(self, *wanted: Address, count: int = 1) -> None:
        while any(self.heard.count(address) < count for address in wanted):
            self._changed.clear()
            await self._changed.wait()


def run(test: Callable[[], Awaitable[None]]) -> None:
    """On a loop of its own, where nothing may be raised into the loop nor be left behind."""

    async def main() -> None:
        faults: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        async with asyncio.timeout(WAIT_S):
            await test()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not faults

    asyncio.run(main())


@asynccontextmanager
async def lan(
    addresses: Sequence[Address], *networks: tuple[Callable[[], Sequence[str]], Ear], started: bool = True
) -> AsyncIterator[Lan]:
    one = Lan(lambda: addresses, os.urandom, interfaces=[LOOPBACK])
    for tags, ear in networks:
        one.add(tags, ear)
    if started:
        one.start()
    try:
        yield one
    finally:
        await one.close()


def tag() -> str:
    return os.urandom(13).hex()


async def quiet(*ears: Ear) -> None:
    """Time enough for what would be found to be found; nothing can be waited for where nothing shall come."""
    await asyncio.sleep(SETTLE_S)
    assert not any(ear.heard for ear in ears)


def test_two_find_each_other() -> None:
    async def test() -> None:
        home, ear_one, ear_two = tag(), Ear(), Ear()
        async with lan([ONE], (lambda: [home], ear_one)), lan([TWO, TWO6], (lambda: [home], ear_two)):
            await ear_one.hear(TWO, TWO6)
            await ear_two.hear(ONE)
            assert set(ear_one.heard) == {TWO, TWO6} and set(ear_two.heard) == {ONE}

    run(test)


def test_a_newcomer_finds_one_that_was_there() -> None:
    async def test() -> None:
        home, ear = tag(), Ear()
        async with Bystander() as bystander, lan([ONE], (lambda: [home], Ear())):
            await bystander.hear(home.encode())
            began = time.monotonic()
            async with lan([TWO], (lambda: [home], ear)):
                await ear.hear(ONE)
            print(f"found after {time.monotonic() - began:.3f} s")

    run(test)


def test_networks_do_not_hear_each_other() -> None:
    async def test() -> None:
        home, work, shared = tag(), tag(), tag()
        ears = [Ear() for _ in range(4)]
        ours = ((lambda: [home], ears[0]), (lambda: [shared], ears[1]))
        theirs = ((lambda: [work], ears[2]), (lambda: [shared], ears[3]))
        async with lan([ONE], *ours), lan([TWO], *theirs):
            await ears[1].hear(TWO)
            await ears[3].hear(ONE)
            await quiet(ears[0], ears[2])

    run(test)


def test_tags_rotate_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lan_module, "CHECK_S", 0.05)

    async def test() -> None:
        old, new = tag(), tag()
        tags, ear = [old], Ear()
        async with Bystander() as bystander, lan([ONE], (lambda: tags, Ear())):
            await bystander.hear(old.encode(), b"\0\0\0\x78")
            tags[:] = [new, old]
            await bystander.hear(new.encode(), b"\0\0\0\x78")
            tags[:] = [new]
            goodbye = await bystander.hear(old.encode(), b"\0\0\0\0")
            assert new.encode() not in goodbye
            async with lan([TWO], (lambda: [new], ear)):
                await ear.hear(ONE)
            bystander.heard.clear()
            bystander.say(question())
            await bystander.hear(new.encode())
            assert not any(old.encode() in datagram and b"\0\0\0\x78" in datagram for datagram in bystander.heard)

    run(test)


def test_close_withdraws_within_a_second() -> None:
    async def test() -> None:
        home = tag()
        async with Bystander() as bystander, lan([ONE], (lambda: [home], Ear())) as one:
            await bystander.hear(home.encode())
            assert one.active
            began = time.monotonic()
            await one.close()
            assert time.monotonic() - began < 1.0
            assert not one.active
            bystander.say(question())
            await one.close()
            await asyncio.sleep(SETTLE_S)
            last = [datagram for datagram in bystander.heard if home.encode() in datagram][-1]
            assert b"\0\0\0\0" in last and b"\0\0\0\x78" not in last

    run(test)


def test_who_said_goodbye_is_new_when_back() -> None:
    async def test() -> None:
        home, ear = tag(), Ear()
        async with lan([ONE], (lambda: [home], ear)), lan([TWO], (lambda: [home], Ear())) as two:
            await ear.hear(TWO)
            two.network_changed()
            await ear.hear(TWO, count=2)

    run(test)


def test_an_address_that_changes_is_told_at_once() -> None:
    async def test() -> None:
        home, ear, places = tag(), Ear(), [TWO]
        async with lan([ONE], (lambda: [home], ear)), lan(places, (lambda: [home], Ear())) as two:
            await ear.hear(TWO)
            places[:] = [Address("192.0.2.3", 4002), Address("192.0.2.3", 4003)]
            two.network_changed()
            await ear.hear(*places)

    run(test)


def test_without_a_network_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lan_module, "RETRY_S", 0.05)

    async def test() -> None:
        home, ear, interfaces = tag(), Ear(), ["192.0.2.99"]
        waiting = Lan(lambda: [TWO], os.urandom, interfaces=interfaces)
        waiting.add(lambda: [home], Ear())
        waiting.start()
        async with lan([ONE], (lambda: [home], ear)):
            await quiet(ear)
            assert not waiting.active
            interfaces[:] = [LOOPBACK]
            await ear.hear(TWO)
        await waiting.close()

    run(test)


def test_close_at_any_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, while and after the sockets are made, each step of the loop being a moment; nothing is left open."""
    monkeypatch.setattr(lan_module, "JITTER_S", 0.0)

    async def test() -> None:
        async with lan([ONE], (lambda: ["abc"], Ear()), started=False):
            pass
        for steps in (*range(15), 40):
            async with lan([ONE], (lambda: ["abc"], Ear())):
                for _ in range(steps):
                    await asyncio.sleep(0)
        gc.collect()

    run(test)


@pytest.mark.parametrize("bad", ["", "Home", "a-b", "a.b", "a" * 47, "a\n"])
def test_tags_that_would_not_fit_are_refused(bad: str) -> None:
    async def test() -> None:
        with pytest.raises(ValueError, match="LAN tag"):
            Lan(lambda: [ONE], os.urandom).add(lambda: [bad], Ear())

    run(test)


def test_strangers_and_other_questions_get_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the plain question for our type, sent to the group from port 5353, is answered."""
    monkeypatch.setattr(lan_module, "ASK_AGAIN_S", ())  # its own questions are answered too

    async def test() -> None:
        home = tag()
        async with (
            Bystander() as bystander,
            Bystander(port=0) as stranger,
            lan([ONE], (lambda: [home], Ear())),
        ):
            await bystander.hear(home.encode())
            await asyncio.sleep(1.2)  # its own announcements are over
            bystander.heard.clear()
            for host in ("224.0.0.251", LOOPBACK):
                stranger.say(question(), host)
                stranger.say(question(unicast=True), host)
            bystander.say(question(), LOOPBACK)
            bystander.say(question(unicast=True))
            bystander.say(question("_services._dns-sd._udp.local"))
            bystander.say(question(kind=255))
            await asyncio.sleep(SETTLE_S)
            assert not stranger.heard
            assert not any(home.encode() in datagram for datagram in bystander.heard)
            bystander.say(question())
            await bystander.hear(home.encode())

    run(test)


def test_what_is_sent_holds_tag_and_token_only() -> None:
    async def test() -> None:
        home = tag()
        async with Bystander() as bystander, lan([ONE], (lambda: [home], Ear())):
            sent = await bystander.hear(home.encode())
            words = set(re.findall(rb"[ -~]{3,}", sent))
            text = b" ".join(words)
            for known in (home.encode(), b"_pvpn", b"_udp", b"local"):
                text = text.replace(known, b"")
            tokens = set(re.findall(rb"[0-9a-f]{16}", text))
            assert len(tokens) == 1
            assert not re.search(rb"[A-Za-z0-9_]{3,}", text.replace(tokens.pop(), b""))

    run(test)


def test_hostile_announcements_are_bounded_and_screened() -> None:
    async def test() -> None:
        home, ear = tag(), Ear()
        good = Address("192.0.2.77", 4077)
        async with Bystander() as bystander, lan([ONE], (lambda: [home], ear)) as one:
            await bystander.hear(home.encode())
            evil = ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::", "ff02::1", "fe80::1"]
            bystander.say(announcement(f"{home}-evil", 4000, evil))
            bystander.say(announcement(f"{home}-mapped", 4000, ["::ffff:127.0.0.1", "::ffff:192.0.2.70"]))
            bystander.say(announcement(f"{home}-low", 1023, ["192.0.2.71"]))
            bystander.say(announcement(f"{home}-many", 4000, [f"192.0.3.{n}" for n in range(1, 21)]))
            bystander.say(announcement(f"{tag()}-other", 4000, ["192.0.2.72"]))
            bystander.say(announcement(f"{home}", 4000, ["192.0.2.73"]))
            bystander.say(announcement(f"{home}-x\x1b[31m\n", 4000, ["192.0.2.74"]))
            for n in range(150):
                bystander.say(announcement(f"{home}-{n:x}", 4000, [f"198.51.{n}.1"], server=f"n{n}.local"))
                await asyncio.sleep(0)
            bystander.say(announcement(f"{home}-good", good.port, [good.ip]))
            await ear.hear(good)
            assert {a.ip for a in ear.heard} & {*evil, "192.0.2.71", "192.0.2.72", "192.0.2.73", "192.0.2.74"} == set()
            assert "192.0.2.70" in {a.ip for a in ear.heard}
            assert sum(a.ip.startswith("192.0.3.") for a in ear.heard) == 8
            assert len(one._networks[0].instances) <= 64
            assert cached(one) <= mdns.GOODBYES_AWAITED + 16

    run(test)


def test_noise_raises_nothing_and_leaves_nothing() -> None:
    async def test() -> None:
        home, ear, dice = tag(), Ear(), random.Random(1)
        whole = [
            announcement(f"{home}-noise", 4000, ["192.0.2.80", "2001:db8::80"]),
            announcement(f"{home}-noise", 4000, ["192.0.2.80"], ttl=0),
            response(record("_pvpn._udp.local", 12, name("x.local"), unique=False), record("x.local", 16, bytes(900))),
            response(record("_pvpn._udp.local", 12, b"\xc0\x0c", unique=False), *[record("a", 1, bytes(4))] * 60),
            question(),
        ]
        async with Bystander() as bystander, lan([ONE], (lambda: [home], ear)) as one:
            await bystander.hear(home.encode())
            for n in range(1200):
                bystander.say(mutated(dice.choice(whole), dice))
                if n % 20 == 0:
                    await asyncio.sleep(0.06)  # below what counts as a flood
            bystander.say(announcement(f"{home}-good", TWO.port, [TWO.ip]))
            await ear.hear(TWO)
            assert cached(one) <= mdns.GOODBYES_AWAITED + 16

    run(test)


def test_a_flood_makes_it_deaf_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mdns, "DATAGRAMS_PER_S", 20)
    monkeypatch.setattr(mdns, "DEAF_S", 0.5)

    async def test() -> None:
        home, ear = tag(), Ear()
        async with Bystander() as bystander, lan([ONE], (lambda: [home], ear)):
            await bystander.hear(home.encode())
            for n in range(200):
                bystander.say(announcement(f"{home}-{n:x}", 4000, [f"198.51.{n}.1"]))
                await asyncio.sleep(0.001)
            flood = len(ear.heard)
            assert 0 < flood < 100
            while TWO not in ear.heard:
                bystander.say(announcement(f"{home}-good", TWO.port, [TWO.ip]))
                await asyncio.sleep(0.1)

    run(test)


def cached(one: Lan) -> int:
    """How many records zeroconf holds."""
    assert one._responder is not None
    return sum(len(records) for records in one._responder._engine.zeroconf.cache.cache.values())
