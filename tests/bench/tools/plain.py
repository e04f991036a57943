"""What everybody has: no tunnel, and OpenSSH."""

from __future__ import annotations

from tests.bench.tools.tool import SOCKS_PORT, Pair, Tool
from tests.support import sshd
from tests.support.dialing import Way
from tests.support.processes import Process

SSH_PORT = 2222


class Direct(Tool):
    """TCP from host to host: the kernel's CUBIC."""

    title = "direct"

    def start_far(self, pair: Pair) -> list[Process]:
        return []

    def start_near(self, pair: Pair) -> list[Process]:
        return []

    def way(self, pair: Pair) -> Way:
        return Way(pair.server.address)


class Ssh(Tool):
    """OpenSSH's own SOCKS proxy with its default cipher."""

    title = "ssh -D"
    needs = ("sshd", "ssh", "ssh-keygen")

    def prepare(self, pair: Pair) -> None:
        sshd.Sshd.prepare(pair.path("keys"))

    def start_far(self, pair: Pair) -> list[Process]:
        listener = pair.server.popen(sshd.Sshd(pair.path("keys")).server(SSH_PORT), as_self=True)
        listener.wait_for("listening on")
        return [listener]

    def start_near(self, pair: Pair) -> list[Process]:
        where = ["-p", str(SSH_PORT), "-N", "-D", f"127.0.0.1:{SOCKS_PORT}", pair.server.address]
        return [pair.client.popen(sshd.Sshd(pair.path("keys")).client(*where))]

    def way(self, pair: Pair) -> Way:
        return Way("127.0.0.1", SOCKS_PORT)
