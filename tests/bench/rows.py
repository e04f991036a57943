"""What is compared: no tunnel, ssh -D, and pvpn with each engine, all between the same two hosts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.daemon import Daemon, make_key
from tests.lab.hosts import Host
from tests.support import sshd
from tests.support.dialing import Way

SSH_PORT = 2222
SSH_SOCKS_PORT = 1090
FIRST_SOCKS_PORT = 1081
FIRST_UDP_PORT = 41641


@dataclass(frozen=True)
class Row:
    """A way from the client's host to the server's, and the processes that carry it, one or more on each."""

    name: str
    way: Way
    roots: list[int] = field(default_factory=list)


class Unavailable(RuntimeError):
    """This row can't be measured here; the text says why."""


def direct(_client: Host, server: Host, _directory: Path) -> Row:
    """TCP from host to host."""
    return Row("direct", Way(server.address))


def ssh(client: Host, server: Host, directory: Path) -> Row:
    """OpenSSH's own SOCKS proxy with its default cipher."""
    if reason := sshd.unavailable():
        raise Unavailable(reason)
    directory.mkdir()
    keys = sshd.Sshd.prepare(directory)
    listener = server.popen(keys.server(SSH_PORT), as_self=True)
    listener.wait_for("listening on")
    # A local command runs once the forwarding is in place: an event to wait for.
    ready = ["-o", "PermitLocalCommand=yes", "-o", "LocalCommand=echo ready", "-o", "ExitOnForwardFailure=yes"]
    where = ["-p", str(SSH_PORT), "-N", "-D", f"127.0.0.1:{SSH_SOCKS_PORT}", server.address]
    proxy = client.popen(keys.client(*ready, *where))
    try:
        proxy.wait_for("^ready$")
    except AssertionError as error:
        raise Unavailable(f"{error}; the server: {listener.output}") from None
    return Row("ssh -D", Way("127.0.0.1", SSH_SOCKS_PORT), [proxy.pid, listener.pid])


def pvpn(client: Host, server: Host, directory: Path, engine: str, number: int) -> Row:
    """Two peers with this engine; `number` tells this pair's ports from other pairs'."""
    directory.mkdir()
    key = make_key(directory)
    options = ("--no-dht", "--engine", engine)
    udp_port, socks_port = FIRST_UDP_PORT + number, FIRST_SOCKS_PORT + number
    far = Daemon(server, key, "far", *options, udp_port=udp_port, socks_port=socks_port).start()
    near = Daemon(
        client, key, "near", *options, "--peer", far.endpoint, udp_port=udp_port, socks_port=socks_port
    ).start()
    near.meet(far)
    far.meet(near)
    assert near.process is not None and far.process is not None
    return Row(f"pvpn {engine}", Way("far", near.socks_port), [near.process.pid, far.process.pid])
