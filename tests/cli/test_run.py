"""`pvpn run`: flags and variables as typed settings."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from proxy_vpn.addresses import Address, ForwardSpec, Target
from proxy_vpn.cli import main
from proxy_vpn.config import DHT_ROUTERS, Expose, Settings
from proxy_vpn.errors import StateError
from proxy_vpn.keys import load_key_file
from tests.cli.pvpn import Capture, fails


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings that `run` hands to the node."""
    main(["keygen", "home.key"])
    main(["keygen", "office.key"])
    seen: list[Settings] = []

    def run(settings: Settings) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setitem(sys.modules, "proxy_vpn.daemon.node", SimpleNamespace(run=run))
    return seen


def test_run_with_nothing_but_a_key(ran: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Peer_B.example.org")
    assert main(["run", "home.key"]) == 0
    expected = Settings(keys=(load_key_file("home.key"),), name="peer-b", state=tmp_path / "state")
    assert ran == [expected]
    assert ran[0].dht_bootstrap == DHT_ROUTERS


def test_every_flag_becomes_a_typed_value(ran: list[Settings]) -> None:
    line = (
        "run home.key office.key --name peer-b --socks 1080 --http 0.0.0.0:8080 --socks 1080"
        " --forward 2222:peer-b:22 --forward 5353:peer-b:53/udp --expose none --expose 8000 --no-direct"
        " --no-lan --no-port-mapping --no-relay"
        " --listen 192.0.2.1:41641 --listen 5 --peer peer.example.org:41641 --peer [::1]:5 --dht-serve"
        " --dht-bootstrap 127.0.0.1:6881 --engine aioquic --state there -vv"
    )
    assert main(line.split()) == 0
    assert ran == [
        Settings(
            keys=(load_key_file("home.key"), load_key_file("office.key")),
            name="peer-b",
            proxies=(Target("127.0.0.1", 1080), Target("0.0.0.0", 8080)),
            forwards=(ForwardSpec.parse("2222:peer-b:22"), ForwardSpec.parse("5353:peer-b:53/udp")),
            expose=Expose("none", frozenset({8000})),
            direct=False,
            relay=False,
            lan=False,
            port_mapping=False,
            listen=(Address("192.0.2.1", 41641), Address("0.0.0.0", 5), Address("::", 5)),
            peers=(Target("peer.example.org", 41641), Target("::1", 5)),
            dht_serve=True,
            dht_bootstrap=(Target("127.0.0.1", 6881),),
            engine="aioquic",
            state=Path("there"),
            verbosity=2,
        )
    ]


def test_every_flag_has_a_variable(ran: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "PVPN_KEYS": "home.key:office.key",
        "PVPN_NAME": "peer-b",
        "PVPN_SOCKS": "1080 1081",
        "PVPN_HTTP": "8080",
        "PVPN_FORWARD": "2222:peer-b:22 5353:peer-b:53/udp",
        "PVPN_EXPOSE": "none 8000",
        "PVPN_NO_DIRECT": "1",
        "PVPN_NO_LAN": "1",
        "PVPN_NO_PORT_MAPPING": "1",
        "PVPN_NO_RELAY": "1",
        "PVPN_LISTEN": "192.0.2.1:41641",
        "PVPN_PEER": "192.0.2.7:5 192.0.2.8:5",
        "PVPN_NO_DHT": "true",
        "PVPN_DHT_SERVE": "0",
        "PVPN_DHT_BOOTSTRAP": "127.0.0.1:6881",
        "PVPN_ENGINE": "qh3",
        "PVPN_STATE": "there",
        "PVPN_VERBOSE": "1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["run"]) == 0
    assert ran == [
        Settings(
            keys=(load_key_file("home.key"), load_key_file("office.key")),
            name="peer-b",
            proxies=(Target("127.0.0.1", 1080), Target("127.0.0.1", 1081), Target("127.0.0.1", 8080)),
            forwards=(ForwardSpec.parse("2222:peer-b:22"), ForwardSpec.parse("5353:peer-b:53/udp")),
            expose=Expose("none", frozenset({8000})),
            direct=False,
            relay=False,
            lan=False,
            port_mapping=False,
            listen=(Address("192.0.2.1", 41641),),
            peers=(Target("192.0.2.7", 5), Target("192.0.2.8", 5)),
            dht=False,
            dht_bootstrap=(Target("127.0.0.1", 6881),),
            engine="qh3",
            state=Path("there"),
            verbosity=1,
        )
    ]


@pytest.mark.parametrize(
    "text", ["home.key work.key", "home.key:work.key", " home.key  work.key:", "home.key:my own.key"]
)
def test_key_files_in_the_variable_are_apart_by_spaces_or_colons(
    ran: list[Settings], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    for name in ("work", "my own"):
        main(["keygen", f"{name}.key"])
    monkeypatch.setenv("PVPN_KEYS", text)
    assert main(["run"]) == 0
    assert [key.name for key in ran[0].keys] == ["home", "my-own" if "own" in text else "work"]


@pytest.mark.parametrize("command", ["run home.key", "status", "connect peer-b 22"])
def test_an_empty_state_directory_is_not_this_directory(ran: list[Settings], capsys: Capture, command: str) -> None:
    capsys.readouterr()
    assert "names no directory" in fails(capsys, 2, *command.split(), "--state", "")
    assert not ran


@pytest.mark.parametrize(
    ("line", "code", "what"),
    [
        ("run missing.key", 1, "pvpn keygen missing.key"),
        ("run home.key home.key", 2, "already given"),
        ("run home.key --name Peer_B", 2, "--name"),
        ("run home.key --socks peer-b:1080", 2, "not an address to listen at"),
        ("run home.key --forward foo:2222:peer-b:22", 2, "'foo' is not an address to listen at"),
        ("run home.key --forward 2222:peer_b:22", 2, "'peer_b' can't be a peer's name"),
        ("run home.key --forward x", 2, "is not a forward"),
        ("run home.key --expose x", 2, "can't be exposed"),
        ("run home.key --listen x", 2, "not an address to listen at"),
        ("run home.key --peer x", 2, "not HOST:PORT - write 192.0.2.1:41641 or [::1]:41641"),
        ("run home.key --dht-bootstrap x", 2, "not HOST:PORT - write router.example:6881 or [::1]:6881"),
        ("run home.key --no-dht --dht-serve", 2, "exclude each other"),
        ("run home.key --exit peer-b --offer-exit", 2, "exclude each other - leave one of them out"),
    ],
)
def test_bad_settings_stop_before_anything_starts(
    ran: list[Settings], capsys: Capture, line: str, code: int, what: str
) -> None:
    capsys.readouterr()
    assert what in fails(capsys, code, *line.split())
    assert not ran


def test_a_run_that_lives_with_its_stdin(ran: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[bool] = []
    monkeypatch.setattr("proxy_vpn.daemon.lifeline.stop_with_stdin", lambda: watched.append(True))
    assert main(["run", "home.key"]) == 0
    assert not watched
    assert main(["run", "home.key", "--until-eof"]) == 0
    assert (watched, len(ran)) == ([True], 2)


def test_what_run_and_demo_answer_is_the_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    main(["keygen", "home.key"])
    capsys.readouterr()

    def refuse(_: Settings) -> int:
        raise StateError("port 1080 is in use", "choose another one")

    monkeypatch.setitem(sys.modules, "proxy_vpn.daemon.node", SimpleNamespace(run=refuse))
    monkeypatch.setitem(sys.modules, "proxy_vpn.daemon.demo", SimpleNamespace(run=lambda: 3))
    assert fails(capsys, 1, "run", "home.key") == "pvpn: port 1080 is in use - choose another one\n"
    assert main(["demo"]) == 3
