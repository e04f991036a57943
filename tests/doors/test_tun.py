"""A TunDoor without an interface: what it does before packets come."""

from __future__ import annotations

import asyncio
import threading
from ipaddress import ip_interface
from typing import Any

import pytest

from proxy_vpn.addresses import Target
from proxy_vpn.doors import tun_icmp
from proxy_vpn.doors.outgoing import Outgoing
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.tun import TunDoor
from proxy_vpn.doors.tun_setup import TunPlan
from tests.doors.test_dns_server import OnePeer, query
from tests.doors.test_dns_stream import framed
from tests.support.duplex_pair import FakeRouter, RecordingSink

PLAN = TunPlan((ip_interface("100.64.0.2/16"),), dns=("100.64.0.53",))


class NoDevice:
    """Closed already."""

    def fileno(self) -> int:
        return -1

    def close(self) -> None: ...


def test_what_takes_long_to_import_is_imported_beside_the_loop_over_tcp_too(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded_in: list[threading.Thread] = []
    monkeypatch.setattr(tun_icmp, "load", lambda: loaded_in.append(threading.current_thread()))

    async def echo(ip: str) -> float:
        raise AssertionError

    async def main() -> None:
        device: Any = NoDevice()
        door = TunDoor(device, [], PLAN, Outgoing(FakeRouter(), None), echo, OnePeer(), OwnListeners())
        stream = await door._tcp._outgoing.open_tcp(Target("100.64.0.53", 53))
        sink = RecordingSink(stream)
        stream.write(framed(query("peer-b")))
        stream.write_eof()
        await sink.until(lambda sink: "finished" in sink.events)
        assert sink.data and loaded_in and loaded_in[0] is not threading.main_thread()
        await door.close()

    asyncio.run(main())
