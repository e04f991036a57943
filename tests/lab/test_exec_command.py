"""`pvpn exec` as real processes in real namespaces; behind the socket stands a door that leads nowhere."""

from __future__ import annotations

import asyncio
import os
import pty
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from proxy_vpn.doors.namespace import Inside, NamespaceDoor
from proxy_vpn.doors.namespace_wire import Wish
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.tun_setup import TunPlan
from proxy_vpn.errors import UsageError
from tests.cli.pvpn import Capture, fails
from tests.support import nobody
from tests.support.tools import find_tool

WAIT_S = 30.0
PLAN = TunPlan(
    name="pvpn0",
    mtu=1400,
    addresses=(ip_interface("100.64.1.1/24"), ip_interface("fd00:1::1/64")),
    routes=(ip_network("0.0.0.0/0"), ip_network("::/0")),
    dns=("100.64.1.253", "fd00:1::fd"),
)
PEER_ROUTES = (ip_network("100.64.2.0/24"), ip_network("fd00:2::/64"))
SIGPIPE_BIT = 1 << signal.SIGPIPE - 1


def read(path: str) -> str:
    return Path(path).read_text()


class NoWay:
    """A door that leads nowhere."""

    def __init__(self, inside: Inside) -> None:
        self.inside = inside
        self.closed = asyncio.Event()

    async def start(self) -> None: ...

    async def finish(self) -> None: ...

    async def close(self) -> None:
        self.closed.set()


class World:
    """A NamespaceDoor and commands that it serves, run by the user of the tests or by an ordinary one."""

    def __init__(self, state: Path, ordinary: bool) -> None:
        self.state = state
        self.ordinary = ordinary
        self.doors: list[NoWay] = []
        self.processes: list[asyncio.subprocess.Process] = []
        self.door = NamespaceDoor(str(state / "exec.sock"), self._plan, self._build, OwnListeners())

    def _plan(self, wish: Wish) -> TunPlan:
        if wish.net not in ("", "home"):
            raise UsageError("no network is called that here", "see 'pvpn status'")
        return replace(PLAN, routes=PEER_ROUTES) if wish.only_peers else PLAN

    def _build(self, inside: Inside) -> NoWay:
        self.doors.append(NoWay(inside))
        return self.doors[-1]

    async def begin(self, *arguments: str, **more: Any) -> asyncio.subprocess.Process:
        argv = [*(nobody.python() if self.ordinary else [sys.executable]), "-m", "proxy_vpn.cli", "exec", *arguments]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *(nobody.as_nobody(argv) if self.ordinary else argv),
            env=nobody.environment({"PVPN_STATE": str(self.state), "HOME": str(self.state)}),
            cwd=self.state,
            **{"stdin": asyncio.subprocess.DEVNULL, "stdout": pipe, "stderr": pipe, **more},
        )
        self.processes.append(process)
        return process

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, output and complaints of a command."""
        process = await self.begin(*arguments)
        output, complaints = await asyncio.wait_for(process.communicate(), WAIT_S)
        assert process.returncode is not None
        return process.returncode, output.decode(), complaints.decode()

    async def output(self, *arguments: str) -> str:
        code, output, complaints = await self.run(*arguments)
        assert (code, complaints) == (0, "")
        return output

    async def none_left(self) -> None:
        """Wait until every command's door is closed."""
        for door in self.doors:
            await asyncio.wait_for(door.closed.wait(), WAIT_S)


Run = Callable[[Callable[[World], Awaitable[None]]], None]


@pytest.fixture(params=["ordinary user", "this user"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a test in a World: as an ordinary user (if root runs the tests: nobody), and as the user of the tests."""
    ordinary = request.param == "ordinary user"
    if reason := nobody.forbidden(ordinary):
        pytest.skip(reason)
    # Not below pytest's own directories, into which nobody else may look.
    state = Path(tempfile.mkdtemp(prefix="pvpn-exec-"))
    if ordinary and os.geteuid() == 0:
        os.chown(state, nobody.NOBODY, nobody.NOBODY)

    def test_in_world(test: Callable[[World], Awaitable[None]]) -> None:
        async def main() -> None:
            world = World(state, ordinary)
            await world.door.start()
            if ordinary and os.geteuid() == 0:
                os.chown(state / "exec.sock", nobody.NOBODY, nobody.NOBODY)
            try:
                await asyncio.wait_for(test(world), 120)
            finally:
                for process in world.processes:
                    with suppress(ProcessLookupError):
                        process.kill()
                    await process.communicate()
                await world.door.close()

        asyncio.run(main())

    yield test_in_world
    shutil.rmtree(state)


def test_what_makes_no_sense(capsys: Capture) -> None:
    assert "write for example: pvpn exec -- ssh peer-b" in fails(capsys, 2, "exec")
    assert "No such option" in fails(capsys, 2, "exec", "--no-such", "--", "true")
    assert "no pvpn is running" in fails(capsys, 1, "exec", "--", "true")
    assert "no command is called 'no-such-command'" in fails(capsys, 127, "exec", "no-such-command")


def test_a_command_that_can_not_be_executed(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").touch(mode=0o600)
    assert "can't be executed" in fails(capsys, 126, "exec", "--", "./plain")


def test_its_network_is_the_plan(run: Run) -> None:
    async def check(world: World) -> None:
        ip = find_tool("ip") or pytest.skip("not installed: ip")
        said = await world.output("--", "sh", "-c", f"{ip} -brief address; {ip} route; {ip} -6 route")
        assert "100.64.1.1/24 fd00:1::1/64" in said and "lo               UNKNOWN        127.0.0.1/8 ::1/128" in said
        assert said.count("default dev pvpn0") == 2
        said = await world.output("--only-peers", "--", "sh", "-c", f"{ip} route; {ip} -6 route")
        assert "100.64.2.0/24 dev pvpn0" in said and "fd00:2::/64 dev pvpn0" in said and "default" not in said

    run(check)


def test_names_are_asked_for_there_alone(run: Run) -> None:
    async def check(world: World) -> None:
        said = await world.output("--net", "home", "cat", "/etc/resolv.conf")
        lines = [line for line in said.splitlines() if not line.startswith("#")]
        assert lines[:2] == ["nameserver 100.64.1.253", "nameserver fd00:1::fd"]
        assert lines[2].startswith("search home.pvpn pvpn")
        before = read("/etc/resolv.conf")
        look = "ls -A . ; ls -A /run/systemd/resolve /run/nscd 2>&1 | grep sock; :"
        assert await world.output("--", "sh", "-c", look)
        assert read("/etc/resolv.conf") == before, "the host's own was touched"

    run(check)


def test_exit_codes_and_signals_are_the_commands_own(run: Run) -> None:
    async def check(world: World) -> None:
        assert (await world.run("--", "sh", "-c", "exit 7"))[0] == 7
        assert (await world.run("sh", "-c", "kill -TERM $$"))[0] == -signal.SIGTERM
        process = await world.begin(
            "--", "sh", "-c", "trap 'echo hup; exit 3' HUP; echo ready; while :; do sleep 1; done"
        )
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), WAIT_S) == b"ready\n"
        process.send_signal(signal.SIGHUP)
        output, _ = await asyncio.wait_for(process.communicate(), WAIT_S)
        assert (process.returncode, output) == (3, b"hup\n"), "the process is the command itself"
        await world.none_left()

    run(check)


def test_a_script_that_names_no_interpreter_is_the_shell_s(run: Run) -> None:
    async def check(world: World) -> None:
        script = world.state / "script"
        script.write_text('echo "$@"; exit 7\n')
        script.chmod(0o755)
        assert await world.run("--", str(script), "one", "a  b") == (7, "one a  b\n", "")
        script.write_text("#!/no/such/interpreter\n")
        code, _, complaints = await world.run("--", str(script))
        assert code == 126 and "can't be executed: No such file" in complaints

    run(check)


def test_the_command_is_whom_its_user_was_and_may_no_more(run: Run) -> None:
    async def check(world: World) -> None:
        said = await world.output("--", "sh", "-c", "id -u; id -g; cat /proc/self/status")
        user = nobody.NOBODY if world.ordinary and os.geteuid() == 0 else os.geteuid()
        group = nobody.NOBODY if world.ordinary and os.geteuid() == 0 else os.getegid()
        assert said.split()[:2] == [str(user), str(group)]
        status = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
        mine = dict(line.split(":", 1) for line in read("/proc/self/status").splitlines())
        effective = 0 if user else int(mine["CapEff"], 16)
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == effective
        assert int(status["CapBnd"], 16) == int(mine["CapBnd"], 16)
        assert not int(status["SigIgn"], 16) & SIGPIPE_BIT, "Python's ignored SIGPIPE is no business of the command"

    run(check)


def test_it_inherits_nothing_but_its_three_streams(run: Run) -> None:
    async def check(world: World) -> None:
        said = await world.output("--", "sh", "-c", "for f in /proc/self/fd/*; do readlink $f; done; true")
        assert "socket:" not in said and "pidfd" not in said and "tun" not in said, said

    run(check)


def test_the_network_ends_with_the_command_and_not_with_its_children(run: Run) -> None:
    async def check(world: World) -> None:
        process = await world.begin("--", "sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!; read line", stdin=-1)
        assert process.stdout is not None and process.stdin is not None
        child = int(await asyncio.wait_for(process.stdout.readline(), WAIT_S))
        try:
            assert not world.doors[0].closed.is_set()
            process.stdin.close()
            await world.none_left()
            os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)

    run(check)


def test_a_killed_command_leaves_nothing(run: Run) -> None:
    async def check(world: World) -> None:
        process = await world.begin("--", "sh", "-c", "echo ready; exec sleep 60")
        assert process.stdout is not None
        await asyncio.wait_for(process.stdout.readline(), WAIT_S)
        process.kill()
        await world.none_left()

    run(check)


def test_a_terminal_stays_the_commands(run: Run) -> None:
    async def check(world: World) -> None:
        master, terminal = pty.openpty()
        try:
            process = await world.begin(
                "--", "sh", "-c", "test -t 0 && test -t 1 && stty size", stdin=terminal, stdout=terminal
            )
            assert await asyncio.wait_for(process.wait(), WAIT_S) == 0
            assert os.read(master, 100) == b"0 0\r\n"
        finally:
            os.close(master)
            os.close(terminal)

    run(check)


def test_what_the_process_refuses_is_one_line(run: Run) -> None:
    async def check(world: World) -> None:
        code, output, complaints = await world.run("--net", "attic", "--", "true")
        assert (code, output) == (2, "")
        assert complaints == "pvpn: no network is called that here - see 'pvpn status'\n"
        await world.door.close()
        code, _, complaints = await world.run("--", "true")
        assert code == 1 and "no pvpn is running" in complaints and complaints.count("\n") == 1

    run(check)


def test_one_inside_another(run: Run) -> None:
    async def check(world: World) -> None:
        inner: Sequence[str] = ("exec", "--", "sh", "-c", "id -u; exit 5")
        python = nobody.python() if world.ordinary else [sys.executable]
        code, output, complaints = await world.run("--", *python, "-m", "proxy_vpn.cli", *inner)
        assert (code, complaints) == (5, "") and output.strip().isdigit()
        await world.none_left()

    run(check)


def test_the_socket_is_this_users_own(run: Run) -> None:
    async def check(world: World) -> None:
        assert stat.S_IMODE((world.state / "exec.sock").stat().st_mode) == 0o600

    run(check)
