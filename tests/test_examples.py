"""The examples, run as their first lines say, against two daemons on loopback that know only each other."""

from __future__ import annotations

import getpass
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy_vpn.keys import NetworkKey, write_key_file
from tests.support.ports import free_tcp_port
from tests.support.processes import Process
from tests.support.sshd import Sshd, unavailable
from tests.support.tools import find_tool, missing_tools, tool_environment

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
PAGE = b"hello from peer-b\n"
RUN_S = 60.0
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Mesh:
    """peer-a with a proxy, told of nothing but peer-b; on peer-b a web server that was exposed."""

    directory: Path
    key: Path
    proxy: str
    endpoint_b: str
    web_port: int

    @property
    def url(self) -> str:
        return f"http://peer-b:{self.web_port}/"

    @property
    def environment(self) -> dict[str, str]:
        """peer-a's user: `pvpn` is on PATH and means this checkout."""
        path = os.pathsep.join([str(self.directory / "bin"), tool_environment()["PATH"]])
        return tool_environment({"PATH": path, "PYTHONPATH": str(ROOT), "PVPN_STATE": str(self.directory / "a")})

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """A program of peer-a's user, to its end."""
        return subprocess.run(
            argv,
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    directory = tmp_path_factory.mktemp("examples")
    key = directory / "home.key"
    write_key_file(key, NetworkKey.generate("home"))
    _put_pvpn_on_path(directory / "bin")
    with ExitStack() as stack:
        web_port = stack.enter_context(_web_server())
        _daemon(stack, key, "b", "--listen", "127.0.212.1:0", "--expose", str(web_port))
        endpoint_b = _udp_endpoint(directory / "b")
        a = _daemon(stack, key, "a", "--listen", "127.0.211.1:0", "--peer", endpoint_b, "--socks", "0")
        proxy = a.wait_for(r"^proxy: socks5h://(\S+)")[1]
        a.wait_for(r"^\+ peer-b ")
        yield Mesh(directory, key, proxy, endpoint_b, web_port)


def test_python_api(mesh: Mesh) -> None:
    script = str(EXAMPLES / "python_api.py")
    done = mesh.run(sys.executable, script, str(mesh.key), "peer-b", str(mesh.web_port), "--at", mesh.endpoint_b)
    assert done.returncode == 0, done.stderr
    head, _, body = done.stdout.partition("\n\n")
    assert head.startswith("HTTP/1.0 200")
    assert body.strip() == PAGE.decode().strip()


def test_python_api_says_what_is_wrong(mesh: Mesh) -> None:
    done = mesh.run(sys.executable, str(EXAMPLES / "python_api.py"), "nowhere.key", "peer-b", "1")
    assert done.returncode == 1
    assert "nowhere.key" in done.stderr and "Traceback" not in done.stderr


def test_requests_through_proxy(mesh: Mesh) -> None:
    pytest.importorskip("httpx")
    pytest.importorskip("socksio", reason="httpx is installed without [socks]")
    script = str(EXAMPLES / "requests_through_proxy.py")
    for proxy in (f"socks5h://{mesh.proxy}", f"http://{mesh.proxy}"):
        done = mesh.run(sys.executable, script, mesh.url, proxy)
        assert (done.returncode, done.stdout) == (0, PAGE.decode()), done.stderr


def test_ssh_config(mesh: Mesh, tmp_path: Path) -> None:
    if reason := unavailable():
        pytest.skip(reason)
    sshd = Sshd.prepare(tmp_path)
    port = free_tcp_port()
    with Process(sshd.server(port), env=tool_environment()) as server:
        server.wait_for("listening")
        assert mesh.run("pvpn", "expose", str(port), "--state", str(mesh.directory / "b")).returncode == 0
        done = mesh.run(
            *("ssh", "-F", str(EXAMPLES / "ssh_config"), "-i", str(tmp_path / "client_key"), "-p", str(port)),
            *("-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "UserKnownHostsFile=/dev/null"),
            *("-o", "StrictHostKeyChecking=no", f"{getpass.getuser()}@peer-b.pvpn", "echo over ssh"),
        )
    assert (done.returncode, done.stdout) == (0, "over ssh\n"), done.stderr


def test_forward_in_a_script(mesh: Mesh) -> None:
    _needs("bash", "curl")
    done = mesh.run("bash", str(EXAMPLES / "forward_in_a_script.sh"), "peer-b", str(mesh.web_port))
    assert (done.returncode, done.stdout) == (0, PAGE.decode()), done.stderr
    _wait_until_no_forward(mesh)


def test_control_api(mesh: Mesh) -> None:
    _needs("sh", "curl")
    done = mesh.run("sh", str(EXAMPLES / "control_api.sh"), "peer-b")
    assert done.returncode == 0, done.stderr
    ready, peers, pong = (json.loads(line) for line in done.stdout.splitlines() if line)
    assert ready["ready"] is True
    assert "peer-b" in [peer["name"] for peer in peers["peers"]]
    assert pong["peer"] == "peer-b" and pong["rtt_ms"] > 0


def test_browser_gives_firefox_a_profile(mesh: Mesh, tmp_path: Path) -> None:
    shown = _browser(mesh, tmp_path, "firefox", 'for last; do :; done; cat "$3/user.js"; echo "$last"')
    host, _, port = mesh.proxy.partition(":")
    assert f'user_pref("network.proxy.socks", "{host}");' in shown
    assert f'user_pref("network.proxy.socks_port", {port});' in shown
    assert 'user_pref("network.proxy.socks_remote_dns", true);' in shown
    assert shown.splitlines()[-1] == mesh.url


def test_browser_gives_chromium_a_proxy(mesh: Mesh, tmp_path: Path) -> None:
    words = _browser(mesh, tmp_path, "chromium", 'printf "%s\\n" "$@"').splitlines()
    assert f"--proxy-server=socks5://{mesh.proxy}" in words
    assert words[-1] == mesh.url


def test_a_real_browser(mesh: Mesh) -> None:
    found = [name for name in CHROMIUMS if find_tool(name)]
    if not found:
        pytest.skip(f"not installed: any of {', '.join(CHROMIUMS)}")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    words = ["env", f"PROXY={mesh.proxy}", f"BROWSER={found[0]}", "sh", str(EXAMPLES / "browser.sh"), *flags, mesh.url]
    done = mesh.run(*words)
    assert PAGE.decode().strip() in done.stdout, done.stderr


def test_every_example_is_tested() -> None:
    text = Path(__file__).read_text()
    assert not [path.name for path in EXAMPLES.iterdir() if path.is_file() and f'"{path.name}"' not in text]


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _web_server() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _daemon(stack: ExitStack, key: Path, letter: str, *options: str) -> Process:
    """`pvpn run` as peer-<letter>, which has said that it is up."""
    words = [sys.executable, "-m", "proxy_vpn", "run", str(key), "--no-dht", "--name", f"peer-{letter}"]
    state = ["--state", str(key.parent / letter)]
    process = stack.enter_context(Process([*words, *state, *options], env=_clean_environment()))
    process.wait_for("^network home ")
    return process


def _udp_endpoint(state: Path) -> str:
    words = [sys.executable, "-m", "proxy_vpn", "status", "--json", "--state", str(state)]
    done = subprocess.run(words, env=_clean_environment(), capture_output=True, text=True, timeout=RUN_S, check=True)
    endpoint: str = json.loads(done.stdout)["listen"][0]
    return endpoint


def _clean_environment() -> dict[str, str]:
    """Without the PVPN_ settings of whoever runs the tests."""
    kept = tool_environment({"PYTHONPATH": str(ROOT)})
    return {name: value for name, value in kept.items() if not name.startswith("PVPN_")}


def _put_pvpn_on_path(directory: Path) -> None:
    directory.mkdir()
    script = directory / "pvpn"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m proxy_vpn "$@"\n')
    script.chmod(0o755)


def _browser(mesh: Mesh, directory: Path, name: str, body: str) -> str:
    """What browser.sh calls, seen by a stand-in that is a shell script."""
    stand_in = directory / name
    stand_in.write_text(f"#!/bin/sh\n{body}\n")
    stand_in.chmod(0o755)
    words = ["env", f"PROXY={mesh.proxy}", f"BROWSER={stand_in}", "sh", str(EXAMPLES / "browser.sh"), mesh.url]
    done = mesh.run(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _wait_until_no_forward(mesh: Mesh) -> None:
    """A forward ends with the connection that asked for it, a moment after its script."""
    script = 'until [ -z "$(pvpn forward --list)" ]; do :; done; echo gone'
    with Process(["sh", "-c", script], env=mesh.environment) as process:
        process.wait_for("^gone$")


def _needs(*programs: str) -> None:
    if reason := missing_tools(programs):
        pytest.skip(reason)
