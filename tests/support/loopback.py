"""Real sockets on loopback for tests: connected pairs, services, and a fetch that needs no thread."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

from proxy_vpn.addresses import Address

WAIT_S = 10.0


def tcp_pair(buffer_bytes: int = 0) -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection on loopback, non-blocking; `buffer_bytes` keeps the kernel's buffers small."""
    with socket.socket() as listener, socket.socket() as probe:
        if buffer_bytes:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        probe.connect(listener.getsockname())
        accepted, _address = listener.accept()
        if buffer_bytes:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        client = probe.dup()
    client.setblocking(False)
    accepted.setblocking(False)
    return client, accepted


async def connect(address: Address | str) -> socket.socket:
    """A non-blocking socket connected to a TCP address or a Unix path."""
    family = socket.AF_UNIX if isinstance(address, str) else address.family
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, address if isinstance(address, str) else tuple(address))
    except BaseException:
        sock.close()
        raise
    return sock


async def send(sock: socket.socket, data: bytes) -> None:
    """All of `data`."""
    async with asyncio.timeout(WAIT_S):
        await asyncio.get_running_loop().sock_sendall(sock, data)


async def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes, fewer only at the end."""
    data = b""
    async with asyncio.timeout(WAIT_S):
        while len(data) < size:
            piece = await asyncio.get_running_loop().sock_recv(sock, size - len(data))
            if not piece:
                break
            data += piece
    return data


async def receive_all(sock: socket.socket) -> bytes:
    """Everything until the end; raises ConnectionResetError for a connection that broke."""
    pieces = []
    async with asyncio.timeout(WAIT_S):
        while piece := await asyncio.get_running_loop().sock_recv(sock, 1 << 20):
            pieces.append(piece)
    return b"".join(pieces)


def break_off(sock: socket.socket) -> None:
    """Close with an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def tcp_service(talk: Talk, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Address]:
    """A TCP server that runs `talk` for each connection; its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, host, port)
    async with server:
        yield Address(*server.sockets[0].getsockname()[:2])


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends back what comes, and ends when it ends."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


class _UdpEcho(asyncio.DatagramProtocol):
    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(self._answer(data), addr)


@asynccontextmanager
async def udp_service(
    answer: Callable[[bytes], bytes] = lambda data: data, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Address]:
    """A UDP server that answers each datagram; its address."""
    transport, _protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _UdpEcho(answer), local_addr=(host, port)
    )
    try:
        yield Address(*transport.get_extra_info("sockname")[:2])
    finally:
        transport.close()


def udp_socket(host: str = "127.0.0.1") -> socket.socket:
    """A bound non-blocking UDP socket."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind((host, 0))
    return sock


async def datagram(sock: socket.socket) -> bytes:
    """The next datagram."""
    async with asyncio.timeout(WAIT_S):
        return await asyncio.get_running_loop().sock_recv(sock, 65536)
