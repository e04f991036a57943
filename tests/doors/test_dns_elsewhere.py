"""Queries handed on to this host's own name servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from proxy_vpn.doors.dns_elsewhere import HostResolver

QUERY = b"\x12\x34\x01\x00" + bytes(8) + b"rest"


class Server(asyncio.DatagramProtocol):
    """Answers each query with what `reply` makes of it."""

    def __init__(self, reply: Callable[[bytes], list[bytes]]) -> None:
        self._reply = reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.DatagramTransport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        for answer in self._reply(data):
            self.transport.sendto(answer, addr)


def ask(path: Path, lines: str, reply: Callable[[bytes], list[bytes]], ours: str = "") -> bytes | None:
    path.write_text(lines)

    async def main() -> bytes | None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: Server(reply), ("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        try:
            return await HostResolver(lambda ip: ip == ours, path, port).ask(QUERY)
        finally:
            transport.close()

    return asyncio.run(main())


def answer(data: bytes) -> bytes:
    return data[:2] + b"\x81\x80" + data[4:]


def test_the_first_server_answers_and_noise_does_not(tmp_path: Path) -> None:
    said = ask(
        tmp_path / "resolv.conf",
        "# nameserver 192.0.2.1\nsearch x\nnameserver 127.0.0.1\n",
        lambda data: [b"", b"\0" * 20, data, b"\x99\x99" + answer(data)[2:], answer(data)],
    )
    assert said == answer(QUERY)


def test_a_server_that_is_not_there_is_passed_over(tmp_path: Path) -> None:
    lines = "nameserver 127.0.0.2\nnameserver nonsense\nnameserver 127.0.0.1\n"
    assert ask(tmp_path / "resolv.conf", lines, lambda data: [answer(data)]) == answer(QUERY)


def test_never_itself(tmp_path: Path) -> None:
    lines = "nameserver 127.0.0.1\n"
    assert ask(tmp_path / "resolv.conf", lines, lambda data: [answer(data)], ours="127.0.0.1") is None
    assert ask(tmp_path / "resolv.conf", "", lambda data: [answer(data)]) is None
