"""The proxy door with real clients: curl, raw sockets, noise; peers are in-memory flows, direct hosts real services."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.addresses import Address, Target
from proxy_vpn.doors import proxy as proxy_module
from proxy_vpn.doors.direct import Direct
from proxy_vpn.doors.join import join
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.proxy import ProxyDoor
from proxy_vpn.doors.tcp import TcpDuplex
from proxy_vpn.errors import FlowError, Status
from tests.support.duplex_pair import FakeRouter, MemoryDuplex, RecordingSink
from tests.support.loopback import break_off, connect, echo, receive, receive_all, send, tcp_service
from tests.support.ports import free_tcp_port

BULK = bytes(range(256)) * (16 * 1024)
SOCKS_PEER = b"\x05\x01\x00\x05\x01\x00\x03\x06peer-b\x1f\x40"
GRANTED = b"\x05\x00\x05\x00\x00\x01" + bytes(6)


class World:
    """A proxy door, its router, and an HTTP server that peer-b leads to."""

    def __init__(self, door: ProxyDoor, router: FakeRouter, where: Address | str, web: Address) -> None:
        self.door = door
        self.router = router
        self.where = where
        self.web = web
        self.requests: list[bytes] = []

    @property
    def host_port(self) -> str:
        return str(self.where)

    async def curl(self, *args: str) -> tuple[int, bytes]:
        process = await asyncio.create_subprocess_exec(
            "curl", "-sS", "--max-time", "20", *args, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await asyncio.wait_for(process.communicate(), 25)
        assert process.returncode is not None
        return process.returncode, output


async def read_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def length_of(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


@asynccontextmanager
async def world(
    direct: bool = True, credentials: tuple[str, str] | None = None, path: Path | None = None
) -> AsyncIterator[World]:
    made: list[World] = []

    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_head(reader)
        made[0].requests.append(head)
        if b"100-continue" in head:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if b"chunked" in head.lower():
            size = 0
            while chunk := int((await reader.readline()).strip(), 16):
                size += len(await reader.readexactly(chunk))
                await reader.readline()
            await reader.readline()
        else:
            size = len(await reader.readexactly(length_of(head)))
        body = BULK if b"/bulk" in head else b"got %d" % size
        # It does not obey `Connection: close`, as some don't.
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        await reader.read()

    async with tcp_service(web) as service:
        router = FakeRouter()
        own = OwnListeners()
        door = ProxyDoor(
            router, str(path) if path else ("127.0.0.1", 0), Direct(own) if direct else None, own, credentials
        )
        made.append(World(door, router, await door.start(), service))
        tasks: set[asyncio.Task[None]] = set()

        async def lead_to_web(far: MemoryDuplex) -> None:
            await join(TcpDuplex(await connect(service)), far)

        def peer(far: MemoryDuplex, _target: Target) -> None:
            task = asyncio.get_running_loop().create_task(lead_to_web(far))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        router.peers["peer-b"] = peer
        try:
            yield made[0]
        finally:
            await door.close()
            for task in tuple(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert door.clients == 0


def run(test: Callable[[World], Awaitable[None]], **options: object) -> None:
    async def main() -> None:
        async with world(**options) as made:  # type: ignore[arg-type]
            await test(made)

    asyncio.run(main())


PROXIES = [["-x", "socks5h://{}"], ["-x", "socks4a://{}"], ["-x", "http://{}"], ["-p", "-x", "http://{}"]]


@pytest.mark.parametrize("flags", PROXIES, ids=lambda flags: "+".join(flags))
@pytest.mark.parametrize("host", ["peer-b", "127.0.0.1"])
def test_curl_downloads(flags: list[str], host: str) -> None:
    async def check(made: World) -> None:
        flags_ = [flag.format(made.host_port) for flag in flags]
        code, body = await made.curl(*flags_, f"http://{host}:{made.web.port}/bulk")
        assert (code, body) == (0, BULK)
        assert made.requests[0].startswith(b"GET /bulk HTTP/1.1\r\nHost: %s:%d\r\n" % (host.encode(), made.web.port))
        assert b"proxy" not in made.requests[0].lower()

    run(check)


@pytest.mark.parametrize("flags", PROXIES, ids=lambda flags: "+".join(flags))
@pytest.mark.parametrize("chunked", [False, True])
def test_curl_uploads(flags: list[str], chunked: bool, tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(BULK)
    more = ["-H", "Transfer-Encoding: chunked"] if chunked else []

    async def check(made: World) -> None:
        flags_ = [flag.format(made.host_port) for flag in flags] + more
        code, body = await made.curl(*flags_, "--data-binary", f"@{upload}", f"http://peer-b:{made.web.port}/up")
        assert (code, body) == (0, b"got %d" % len(BULK))

    run(check)


def test_curl_through_a_unix_socket(tmp_path: Path) -> None:
    async def check(made: World) -> None:
        code, body = await made.curl("-x", f"socks5h://localhost{made.where}", "http://peer-b:8000/x")
        assert (code, body) == (0, b"got 0")

    run(check, path=tmp_path / "door")


def test_curl_with_a_password() -> None:
    async def check(made: World) -> None:
        for scheme in ("socks5h", "http"):
            code, body = await made.curl("-x", f"{scheme}://me:secret@{made.host_port}", "http://peer-b:8000/x")
            assert (code, body) == (0, b"got 0")
            code, _ = await made.curl("-x", f"{scheme}://me:wrong@{made.host_port}", "-f", "http://peer-b:8000/x")
            assert code != 0
        code, _ = await made.curl("-x", f"socks4a://me@{made.host_port}", "http://peer-b:8000/x")
        assert code != 0
        assert len(made.requests) == 2

    run(check, credentials=("me", "secret"))


@pytest.mark.parametrize(
    ("status", "socks", "http"),
    [
        (Status.POLICY, 2, 403),
        (Status.REFUSED, 5, 502),
        (Status.TIMEOUT, 6, 504),
        (Status.UNREACHABLE, 4, 503),
        (Status.NO_SUCH_NAME, 4, 502),
        (Status.LIMIT, 1, 503),
        (Status.INTERNAL, 1, 500),
    ],
)
def test_failures_are_told_in_each_protocol(status: Status, socks: int, http: int) -> None:
    async def check(made: World) -> None:
        made.router.errors["peer-b"] = FlowError(status, "peer-b is asleep", "wake it")
        with await connect(made.where) as sock:
            await send(sock, SOCKS_PEER)
            assert await receive_all(sock) == b"\x05\x00\x05" + bytes((socks,)) + b"\x00\x01" + bytes(6)
        with await connect(made.where) as sock:
            await send(sock, b"CONNECT peer-b:1 HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = await receive_all(sock)
            assert answer.startswith(b"HTTP/1.1 %d " % http)
            assert answer.endswith(b"\r\n\r\npvpn: peer-b is asleep - wake it\n")
        with await connect(made.where) as sock:
            await send(sock, b"\x04\x01\x00\x50\x00\x00\x00\x01\x00peer-b\x00")
            assert await receive_all(sock) == b"\x00\x5b" + bytes(6)

    run(check)


def test_a_bug_behind_the_door_is_an_answer_too() -> None:
    async def check(made: World) -> None:
        def fail(_far: MemoryDuplex, _target: Target) -> None:
            raise RuntimeError("bug")

        made.router.peers["peer-b"] = fail
        code, body = await made.curl("-x", f"http://{made.host_port}", "http://peer-b/")
        assert code == 0 and b"pvpn itself failed: RuntimeError" in body

    run(check)


def test_without_direct_only_peers_are_reached() -> None:
    async def check(made: World) -> None:
        code, body = await made.curl("-x", f"http://{made.host_port}", f"http://127.0.0.1:{made.web.port}/")
        assert code == 0 and b"is no peer" in body and not made.requests

    run(check, direct=False)


def test_the_proxy_is_not_its_own_target() -> None:
    async def check(made: World) -> None:
        assert isinstance(made.where, Address)
        code, body = await made.curl("-x", f"http://{made.host_port}", f"http://127.0.0.1:{made.where.port}/")
        assert code == 0 and b"is this pvpn itself" in body
        code, body = await made.curl(f"http://{made.host_port}/")
        assert code == 0 and b"this is a proxy" in body

    run(check)


def test_nobody_listens_is_said() -> None:
    async def check(made: World) -> None:
        code, body = await made.curl("-x", f"http://{made.host_port}", f"http://127.0.0.1:{free_tcp_port()}/")
        assert code == 0 and b"refused" in body.lower()

    run(check)


@pytest.mark.parametrize("step", [1, 4, 1000])
def test_handshakes_in_pieces_with_early_data(step: int) -> None:
    async def check(made: World) -> None:
        sinks: list[RecordingSink] = []
        made.router.peers["peer-b"] = lambda far, _target: sinks.append(RecordingSink(far))
        for wire, answer in (
            (SOCKS_PEER, GRANTED),
            (b"CONNECT peer-b:8000 HTTP/1.1\r\nHost: p\r\n\r\n", b"HTTP/1.1 200 Connection established\r\n\r\n"),
            (b"\x04\x01\x1f\x40\x00\x00\x00\x01\x00peer-b\x00", b"\x00\x5a" + bytes(6)),
        ):
            with await connect(made.where) as sock:
                data = wire + b"early"
                for at in range(0, len(data), step):
                    await send(sock, data[at : at + step])
                assert await receive(sock, len(answer)) == answer
                await sinks[-1].until(lambda s: s.data == b"early")
                sock.shutdown(socket.SHUT_WR)
                await sinks[-1].until(lambda s: s.events == ["eof"])
        assert made.router.asked == [Target("peer-b", 8000)] * 3

    run(check)


def test_a_lost_peer_is_an_rst_and_a_clean_end_is_one() -> None:
    async def check(made: World) -> None:
        flows: list[MemoryDuplex] = []
        made.router.peers["peer-b"] = lambda far, _target: flows.append(far)
        with await connect(made.where) as lost, await connect(made.where) as ended:
            for sock in (lost, ended):
                await send(sock, SOCKS_PEER)
                assert await receive(sock, len(GRANTED)) == GRANTED
            for flow in flows:
                RecordingSink(flow)
            flows[0].reset()
            with pytest.raises(ConnectionResetError):
                await receive_all(lost)
            flows[1].write(b"bye")
            flows[1].write_eof()
            assert await receive_all(ended) == b"bye"

    run(check)


def test_a_client_that_breaks_off_resets_the_flow() -> None:
    async def check(made: World) -> None:
        flows: list[MemoryDuplex] = []
        made.router.peers["peer-b"] = lambda far, _target: flows.append(far)
        sock = await connect(made.where)
        await send(sock, SOCKS_PEER)
        await receive(sock, len(GRANTED))
        sink = RecordingSink(flows[0])
        break_off(sock)
        await sink.until(lambda s: s.events == ["lost"])

    run(check)


def test_a_stalled_peer_stalls_the_program() -> None:
    async def check(made: World) -> None:
        flows: list[MemoryDuplex] = []
        made.router.window_bytes = 100_000
        made.router.peers["peer-b"] = lambda far, _target: flows.append(far)
        with await connect(made.where) as sock:
            await send(sock, SOCKS_PEER)
            await receive(sock, len(GRANTED))
            sink = RecordingSink(flows[0], eager=False)
            sending = asyncio.ensure_future(send(sock, BULK * 8))
            await sink.until(lambda s: len(s.data) >= 100_000)
            for _turn in range(50):
                await asyncio.sleep(0)
            assert flows[0].other.most_queued_bytes < 1 << 20 and not sending.done()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    run(check)


def test_an_answer_that_is_not_http_is_said() -> None:
    async def check(made: World) -> None:
        async def ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-Example\r\n")
            await reader.read()

        async with tcp_service(ssh) as service:
            code, body = await made.curl("-x", f"http://{made.host_port}", f"http://{service}/")
            assert code == 0 and b"not HTTP" in body

    run(check)


def test_a_truncated_answer_is_never_whole() -> None:
    async def check(made: World) -> None:
        async def short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            await writer.drain()

        async with tcp_service(short) as service:
            code, _ = await made.curl("-x", f"http://{made.host_port}", f"http://{service}/")
            assert code != 0

    run(check)


def test_an_early_answer_to_an_upload_arrives(tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(BULK * 4)

    async def check(made: World) -> None:
        async def full(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_head(reader)
            writer.write(b"HTTP/1.1 413 Full\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfull")
            await writer.drain()
            writer.write_eof()
            while await reader.read(1 << 16):
                pass

        async with tcp_service(full) as service:
            code, body = await made.curl(
                "-x", f"http://{made.host_port}", "--data-binary", f"@{upload}", "-H", "Expect:", f"http://{service}/"
            )
            assert body.startswith(b"full"), (code, body)

    run(check)


def test_clients_over_the_limit_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_module, "MAX_CLIENTS", 2)

    async def check(made: World) -> None:
        with await connect(made.where) as one, await connect(made.where) as two:
            for sock in (one, two):
                await send(sock, b"\x05\x01\x00")
                assert await receive(sock, 2) == b"\x05\x00"
            with pytest.raises(ConnectionError), await connect(made.where) as three:
                await receive_all(three)
            assert made.door.clients == 2

    run(check)


def test_slow_handshakes_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_module, "HANDSHAKE_TIMEOUT_S", 0.05)

    async def check(made: World) -> None:
        for start in (b"", b"\x05", b"GET http://p/ HTTP/1.1\r\n"):
            with await connect(made.where) as sock:
                await send(sock, start)
                with pytest.raises(ConnectionResetError):
                    await receive_all(sock)

    run(check)


def test_closing_the_door_ends_every_client() -> None:
    async def check(made: World) -> None:
        flows: list[MemoryDuplex] = []
        made.router.peers["peer-b"] = lambda far, _target: flows.append(far)
        with await connect(made.where) as open_, await connect(made.where) as half:
            await send(open_, SOCKS_PEER)
            await receive(open_, len(GRANTED))
            await send(half, b"\x05\x01\x00")
            await receive(half, 2)
            await made.door.close()
            await made.door.close()
            for sock in (open_, half):
                with pytest.raises(ConnectionResetError):
                    await receive_all(sock)
            assert flows[0].other.was_reset
            with pytest.raises(ConnectionRefusedError):
                await connect(made.where)

    run(check)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.binary(min_size=1, max_size=80), max_size=4), min_size=1, max_size=6))
def test_noise_at_the_live_door(clients: list[list[bytes]]) -> None:
    async def check(made: World) -> None:
        for pieces in clients:
            with await connect(made.where) as sock, contextlib.suppress(ConnectionError):
                for piece in pieces:
                    await send(sock, piece)
                sock.shutdown(socket.SHUT_WR)
                await receive_all(sock)
        with await connect(made.where) as sock:
            await send(sock, SOCKS_PEER)
            assert await receive(sock, len(GRANTED)) == GRANTED

    run(check, direct=False)


def test_a_hundred_at_once() -> None:
    async def check(made: World) -> None:
        async with tcp_service(echo) as service:

            async def one(number: int) -> None:
                with await connect(made.where) as sock:
                    await send(sock, f"CONNECT {service} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    await receive(sock, 39)
                    await send(sock, b"%08d" % number)
                    assert await receive(sock, 8) == b"%08d" % number

            await asyncio.gather(*(one(number) for number in range(100)))

    run(check)
