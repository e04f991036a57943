"""TunTcp without a device: what it answers to packets, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP

from proxy_vpn.addresses import Target
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.tun_table import HALF_CLOSED_KEPT_S
from proxy_vpn.doors.tun_tcp import TunTcp, socket_here
from proxy_vpn.errors import FlowError, Status
from proxy_vpn.wire.packet import VNET_BYTES, Packet

OWN, FAR = "127.0.0.1", "10.9.8.7"


class Device:
    """Keeps what is written, as scapy reads it."""

    def __init__(self) -> None:
        self.written: list[Any] = []

    def write(self, packet: bytes | memoryview) -> None:
        self.written.append(IP(bytes(packet)[VNET_BYTES:]))


class Outgoing:
    """Opens nothing; every wish waits for `answer`."""

    def __init__(self) -> None:
        self.asked: list[Target] = []
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def open_tcp(self, target: Target) -> Any:
        self.asked.append(target)
        return await asyncio.shield(self.answer)


class Stage:
    def __init__(self) -> None:
        listener = socket.create_server((OWN, 0))
        self.device, self.outgoing = Device(), Outgoing()
        self.told: list[FlowError] = []
        self.tcp = TunTcp(self.device, [listener], self.outgoing, OwnListeners(), self._tell, socket_here)  # type: ignore[arg-type]

    def _tell(self, packet: Packet, error: FlowError) -> None:
        self.told.append(error)

    def send(self, flags: str, port: int = 22, **more: Any) -> None:
        self.take(IP(src=OWN, dst=FAR) / TCP(sport=4000, dport=port, flags=flags, **more))

    def answer(self, flags: str, port: int = 4000) -> None:
        """A packet of the listener's."""
        self.take(IP(src=OWN, dst=FAR) / TCP(sport=self.tcp.own[socket.inet_aton(OWN)], dport=port, flags=flags))

    def take(self, packet: Any) -> None:
        buffer = bytearray(VNET_BYTES) + bytes(packet)
        self.tcp.take(buffer, len(buffer), asyncio.get_running_loop().time())


def play(scene: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        stage = Stage()
        try:
            await asyncio.wait_for(scene(stage), 10)
        finally:
            await stage.tcp.close()
        assert not stage.tcp.opening

    asyncio.run(main())


def test_a_syn_asks_once_and_a_refusal_is_a_reset() -> None:
    async def scene(stage: Stage) -> None:
        for _time in range(3):  # the kernel sends it again while it waits
            stage.send("S", seq=7)
            await asyncio.sleep(0)
        assert stage.outgoing.asked == [Target(FAR, 22)] and not stage.device.written
        stage.outgoing.answer.set_exception(FlowError(Status.REFUSED, "nobody listens"))
        for _turn in range(3):
            await asyncio.sleep(0)
        (reset,) = stage.device.written
        assert (reset.src, reset.dst, reset[TCP].flags, reset[TCP].ack) == (FAR, OWN, "RA", 8)

    play(scene)


def test_what_can_not_be_reached_is_told() -> None:
    async def scene(stage: Stage) -> None:
        stage.outgoing.answer.set_exception(FlowError(Status.UNREACHABLE, "it is away"))
        stage.send("S")
        for _turn in range(3):
            await asyncio.sleep(0)
        assert [error.status for error in stage.told] == [Status.UNREACHABLE] and not stage.device.written

    play(scene)


@pytest.mark.parametrize("turns", [0, 2])
def test_a_program_that_gives_up_leaves_nothing(turns: int) -> None:
    """Also in the same turn of the loop, before anything was asked for; and it may try again at once."""

    async def scene(stage: Stage) -> None:
        for _time in range(3):
            stage.send("S")
            for _turn in range(turns):
                await asyncio.sleep(0)
            stage.send("R")
            assert not stage.tcp.opening
        stage.send("S")
        for _turn in range(3):
            await asyncio.sleep(0)
        assert stage.tcp.opening == 1

    play(scene)


def test_packets_of_no_connection_are_reset_or_dropped() -> None:
    async def scene(stage: Stage) -> None:
        stage.send("A", ack=5)
        (reset,) = stage.device.written
        assert (reset[TCP].flags, reset[TCP].seq) == ("R", 5)
        stage.send("R")
        for source, target in (("192.0.2.1", FAR), (OWN, OWN), (OWN, "224.0.0.1")):
            packet = bytearray(VNET_BYTES) + bytes(IP(src=source, dst=target) / TCP(flags="S"))
            stage.tcp.take(packet, len(packet), 0.0)
        assert len(stage.device.written) == 1 and not stage.tcp.opening

    play(scene)


def test_a_dialled_connection_is_done_with_when_its_socket_is_closed() -> None:
    async def scene(stage: Stage) -> None:
        with socket.create_server((OWN, 0)) as service:
            here = socket.inet_aton(OWN)
            dialled = await stage.tcp.dial(here, here, service.getsockname()[1])
            ports = dialled.getsockname()[1], service.getsockname()[1]
            connection = stage.tcp.table.connection(here, here, *ports)
            assert connection is not None and stage.tcp.is_unfinished() and not connection.done
            dialled.close()
            assert not stage.tcp.is_unfinished()
            assert connection.is_over(connection.used + HALF_CLOSED_KEPT_S + 1)

    play(scene)


class Flow:
    """A flow that nothing happens to."""

    def __init__(self) -> None:
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1


def test_a_syn_ack_that_is_sent_again_after_the_program_s_end_reaches_it() -> None:
    async def scene(stage: Stage) -> None:
        stage.outgoing.answer.set_result(Flow())
        stage.send("S")
        for _turn in range(3):
            await asyncio.sleep(0)
        stage.answer("SA")
        stage.send("FA")
        stage.answer("SA")  # by its timer, before the listener's kernel saw an answer
        assert [str(packet[TCP].flags) for packet in stage.device.written] == ["S", "SA", "FA", "SA"]

    play(scene)


def test_who_has_ended_makes_room(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("proxy_vpn.doors.tun_table.MAX_CONNECTIONS", 4)

    async def scene(stage: Stage) -> None:
        flow = Flow()
        stage.outgoing.answer.set_result(flow)
        for port in range(1, 21):
            stage.send("S", port)
            for _turn in range(3):
                await asyncio.sleep(0)
            stage.send("R", port)
        assert len(stage.tcp.table) == 4 and flow.resets == 16 and not caplog.records
        assert all(packet[TCP].flags != "RA" for packet in stage.device.written)
        for port in range(21, 29):
            stage.send("S", port)
            for _turn in range(3):
                await asyncio.sleep(0)
        assert len(stage.tcp.table) == 4 and [packet[TCP].flags for packet in stage.device.written[-4:]] == ["RA"] * 4
        assert len(caplog.records) == 1 and "new ones are refused" in caplog.text

    play(scene)
