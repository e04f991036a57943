"""Direct connections: by name and by address, and what each failure is called."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from proxy_vpn.addresses import Address, Target
from proxy_vpn.doors.dial import dial_error
from proxy_vpn.doors.direct import Direct
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.errors import FlowError, Status
from tests.support.duplex_pair import RecordingSink
from tests.support.loopback import echo, tcp_service, udp_service
from tests.support.ports import free_tcp_port


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_tcp_to_a_service(host: str) -> None:
    async def main() -> None:
        async with tcp_service(echo) as service:
            duplex = await Direct(OwnListeners()).open_tcp(Target(host, service.port))
            sink = RecordingSink(duplex)
            duplex.write(b"hello")
            duplex.write_eof()
            await sink.until(lambda s: s.events == ["eof", "finished"])
            assert sink.data == b"hello"

    asyncio.run(main())


def test_udp_to_a_service() -> None:
    async def main() -> None:
        async with udp_service() as service:
            flow = await Direct(OwnListeners()).open_udp(Target("127.0.0.1", service.port))
            heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            flow.on_datagram = heard.set_result
            flow.send(b"hello")
            assert await asyncio.wait_for(heard, 10) == b"hello"
            flow.close()
            flow.close()
            flow.send(b"ignored")

    asyncio.run(main())


async def failure(target: Target, own: OwnListeners | None = None) -> FlowError:
    with pytest.raises(FlowError) as caught:
        await Direct(own or OwnListeners()).open_tcp(target)
    return caught.value


def test_nobody_listens() -> None:
    async def main() -> None:
        for host in ("127.0.0.1", "::1", "localhost"):
            assert (await failure(Target(host, free_tcp_port()))).status is Status.REFUSED

    asyncio.run(main())


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
def test_names_that_can_be_none(host: str) -> None:
    assert asyncio.run(failure(Target(host, 80))).status is Status.NO_SUCH_NAME


@pytest.mark.parametrize(
    ("number", "status"), [(socket.EAI_NONAME, Status.NO_SUCH_NAME), (socket.EAI_AGAIN, Status.UNREACHABLE)]
)
def test_what_the_resolver_says(number: int, status: Status, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        def answer(*_args: object, **_options: object) -> None:
            raise socket.gaierror(number, "no")

        monkeypatch.setattr(socket, "getaddrinfo", answer)
        assert (await failure(Target("example.org", 80))).status is status

    asyncio.run(main())


def test_own_listeners_are_no_target() -> None:
    async def main() -> None:
        own = OwnListeners()
        async with tcp_service(echo) as service:
            own.add(service)
            for host in ("127.0.0.1", "localhost", "0.0.0.0"):
                assert (await failure(Target(host, service.port), own)).status in (Status.POLICY, Status.REFUSED)

    asyncio.run(main())


def test_a_socket_never_talks_to_itself() -> None:
    """A port of the ephemeral range can be its own client: TCP's simultaneous open."""

    async def main() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            target = Target(*probe.getsockname())
        for _try in range(50):
            assert (await failure(target)).status is Status.REFUSED

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), Status.REFUSED),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), Status.TIMEOUT),
        (TimeoutError(), Status.TIMEOUT),
        (OSError(errno.ENETUNREACH, "no route"), Status.UNREACHABLE),
        (OSError("Multiple exceptions: ..."), Status.UNREACHABLE),
        (OSError(errno.EMFILE, "too many"), Status.LIMIT),
        (PermissionError(errno.EPERM, "no"), Status.POLICY),
        (OSError(errno.EIO, "odd"), Status.INTERNAL),
    ],
)
def test_errors_of_the_system(error: OSError, status: Status) -> None:
    assert dial_error(Address("192.0.2.1", 80), error).status is status
