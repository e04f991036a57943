"""A daemon that is only memory, and a control server for it on its own thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from proxy_vpn.addresses import ForwardSpec
from proxy_vpn.config import Expose
from proxy_vpn.daemon.control import ControlServer
from proxy_vpn.daemon.findings import Check, DoctorReply
from proxy_vpn.daemon.messages import ForgetReply, PingReply
from proxy_vpn.daemon.status import (
    DaemonStatus,
    DhtStatus,
    ExposeStatus,
    ForwardStatus,
    NetworkStatus,
    OpenPort,
    PeerStatus,
)
from proxy_vpn.errors import FlowError, Status, UsageError

STATUS = DaemonStatus(
    version="0.1.0",
    pid=4321,
    name="peer-a",
    started=1_700_000_000.0,
    listen=("0.0.0.0:41641",),
    proxies=("127.0.0.1:1080",),
    networks=(
        NetworkStatus(name="home", id="00" * 16, fingerprint="aaaa-bbbb", generation=1, device_id="aa" * 32),
        NetworkStatus(name="office", id="01" * 16, fingerprint="cccc-dddd", generation=1, device_id="ab" * 32),
    ),
    expose=ExposeStatus(open=(OpenPort(port=8000, protocol="tcp", address="0.0.0.0"),)),
    dht=DhtStatus(state="announced", nodes=120, external=("203.0.113.9:41641",)),
    peers=(
        PeerStatus(name="peer-c", id="cc" * 32, network="office", state="lost", since=1_700_000_000.0),
        PeerStatus(
            name="peer-b",
            id="bb" * 32,
            network="home",
            state="live",
            path="direct 203.0.113.7:41641",
            rtt_ms=12.34,
            tx_bytes=1_200_000,
            rx_bytes=3_400_000,
            since=1_700_000_000.0,
            engine="qh3",
            version="0.1.0",
        ),
    ),
)


FINDINGS = DoctorReply(
    checks=(
        Check(name="udp", state="good", text="port 41641: datagrams go out and answers come back"),
        Check(name="peer-c", state="bad", text="no direct path and no relay", hint="is it on?"),
    )
)


class FakeDaemon:
    """Implements control.Daemon; `changed` is set whenever the forwards change."""

    def __init__(self) -> None:
        self.specs: dict[ForwardSpec, bool] = {}
        self.rules = Expose()
        self.reason = ""
        self.offline = False
        self.failure: Exception | None = None
        self.pinging = threading.Event()
        self.hung_up = threading.Event()
        self.changed = threading.Condition()

    def status(self) -> DaemonStatus:
        if self.failure:
            raise self.failure
        return msgspec.structs.replace(STATUS, forwards=self.forwards())

    def doctor(self) -> DoctorReply:
        return FINDINGS

    def unready(self) -> str:
        return self.reason

    async def ping(self, name: str, net: str) -> PingReply:
        if name == "silent":
            self.pinging.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.hung_up.set()
        if name != "peer-b":
            raise FlowError(Status.NO_SUCH_NAME, f"there is no peer {name!a}", "see 'pvpn peers'")
        if self.offline:
            raise FlowError(Status.UNREACHABLE, f"{name} is offline", "start pvpn there")
        return PingReply(peer=name, network=net or "home", rtt_ms=12.34, path="direct 203.0.113.7:41641")

    async def add_forward(self, spec: ForwardSpec, *, held: bool) -> ForwardSpec:
        resolved = spec if spec.path or spec.port else replace(spec, port=40000 + len(self.specs))
        if resolved in self.specs:
            raise UsageError(f"there is a forward {resolved} already", "see 'pvpn forward --list'")
        with self.changed:
            self.specs[resolved] = held
            self.changed.notify_all()
        return resolved

    def remove_forward(self, spec: ForwardSpec) -> None:
        if spec not in self.specs:
            raise UsageError(f"there is no forward {spec}", "see 'pvpn forward --list'")
        with self.changed:
            del self.specs[spec]
            self.changed.notify_all()

    def forwards(self) -> tuple[ForwardStatus, ...]:
        return tuple(ForwardStatus(spec=str(spec), held=held) for spec, held in self.specs.items())

    async def expose(self, spec: str) -> ExposeStatus:
        self.rules = self.rules.extended(spec)
        return ExposeStatus(rules=str(self.rules), open=())

    async def forget(self, name: str, net: str) -> ForgetReply:
        if name != "peer-b":
            raise UsageError(f"no peer {name!a} was ever seen", "see 'pvpn peers'")
        return ForgetReply(peer=name, network=net or "home", id="bb" * 32)

    def wait_for_forwards(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.specs) == count, timeout=20)


@contextmanager
def serving(daemon: FakeDaemon, path: Path) -> Iterator[None]:
    """Serve the control API of `daemon` at `path` from another thread."""
    started, loop, done = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        server = ControlServer(daemon, path)
        await server.start()
        started.set()
        await done.wait()
        await server.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert started.wait(20)
        yield
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(20)
        assert not thread.is_alive()
        loop.close()
