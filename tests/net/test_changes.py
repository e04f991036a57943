"""The watch on the host's network and on lost time, with clocks and addresses of the test's own."""

from __future__ import annotations

import asyncio

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.net import changes
from proxy_vpn.net.changes import SLEPT_S, NetworkWatch

WAIT_S = 10.0
SOON_S = 0.01


async def heard_after(change: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the watch calls back once `change` has happened."""
    lag, addresses = [5.0], [Address("192.0.2.1", 1)]
    monkeypatch.setattr(changes, "CLOCK_EVERY_S", SOON_S)
    monkeypatch.setattr(changes, "ADDRESSES_EVERY_S", 0.0)
    monkeypatch.setattr(changes, "SETTLE_S", 0.0)
    monkeypatch.setattr(changes, "reachable_addresses", lambda bound: list(addresses))
    monkeypatch.setattr(changes.sys, "platform", "somewhere else")
    monkeypatch.setattr(NetworkWatch, "_lag", staticmethod(lambda: lag[0]))
    heard = asyncio.Event()
    looks = asyncio.Semaphore(0)
    watch = NetworkWatch(heard.set)
    look = watch._look

    def counted() -> None:
        look()
        looks.release()

    monkeypatch.setattr(watch, "_look", counted)
    try:
        await looks.acquire()
        assert not heard.is_set(), "nothing has changed yet"
        if change == "sleep":
            lag[0] += SLEPT_S + 1.0
        elif change == "address":
            addresses.append(Address("192.0.2.2", 1))
        for _ in range(3):
            await asyncio.wait_for(looks.acquire(), WAIT_S)
        return heard.is_set()
    finally:
        watch.close()
        watch.close()


@pytest.mark.parametrize(("change", "heard"), [("sleep", True), ("address", True), ("nothing", False)])
def test_what_is_heard(change: str, heard: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asyncio.run(heard_after(change, monkeypatch)) is heard
