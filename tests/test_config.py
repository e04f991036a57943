"""Settings: what flags become."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_vpn import config
from proxy_vpn.addresses import Address, Target, valid_name
from proxy_vpn.config import Expose, Settings, default_name, load_keys, parse_listen, parse_proxy
from proxy_vpn.errors import KeyFileError, UsageError
from proxy_vpn.keys import NetworkKey, write_key_file

KEY = NetworkKey("home", bytes(16), bytes(32))


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("peer-b", "peer-b"),
        ("Anna's Mac.local", "anna-s-mac"),
        ("web01.example.org", "web01"),
        ("x" * 40, "x" * 32),
        ("x" * 31 + "_y", "x" * 31),
        ("localhost", "peer"),
        ("PVPN", "peer"),
        ("", "peer"),
        ("___", "peer"),
        ("Büro", "b-ro"),
    ],
)
def test_the_default_name_is_the_hosts_made_valid(host: str, name: str) -> None:
    assert default_name(host) == name


@given(st.text(max_size=80))
def test_any_host_name_gives_a_valid_name(host: str) -> None:
    assert valid_name(default_name(host))


def test_settings_refuse_what_can_not_run() -> None:
    assert Settings(keys=(KEY,), name="peer-b").dht_bootstrap == config.DHT_ROUTERS
    with pytest.raises(UsageError, match="keygen"):
        Settings(keys=(), name="peer-b")
    with pytest.raises(UsageError, match="--name"):
        Settings(keys=(KEY,), name="Peer B")
    with pytest.raises(UsageError, match="--no-dht"):
        Settings(keys=(KEY,), name="peer-b", dht=False, dht_serve=True)


def test_key_files_are_loaded_and_told_apart(tmp_path: Path) -> None:
    home, office, twin = tmp_path / "home.key", tmp_path / "office.key", tmp_path / "twin.key"
    write_key_file(home, KEY)
    write_key_file(office, NetworkKey("office", b"o" * 16, bytes(32)))
    write_key_file(twin, NetworkKey("home", b"t" * 16, bytes(32)))
    assert [key.name for key in load_keys([home, office])] == ["home", "office"]
    with pytest.raises(UsageError, match="already given"):
        load_keys([home, home])
    with pytest.raises(UsageError, match="called home"):
        load_keys([home, twin])
    with pytest.raises(KeyFileError):
        load_keys([tmp_path / "missing.key"])


def test_more_networks_than_the_bound_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "MAX_NETWORKS", 1)
    for number in range(2):
        write_key_file(tmp_path / str(number), NetworkKey(f"n{number}", bytes([number]) * 16, bytes(32)))
    with pytest.raises(UsageError, match="second pvpn"):
        load_keys([tmp_path / "0", tmp_path / "1"])


def test_where_a_proxy_listens() -> None:
    assert parse_proxy("1080") == Target("127.0.0.1", 1080)
    assert parse_proxy("localhost:1080") == Target("127.0.0.1", 1080)
    assert parse_proxy("0") == Target("127.0.0.1", 0)
    assert parse_proxy("0.0.0.0:1080") == Target("0.0.0.0", 1080)
    assert parse_proxy("[::1]:0") == Target("::1", 0)


def test_where_udp_listens() -> None:
    assert parse_listen("41641") == (Address("0.0.0.0", 41641), Address("::", 41641))
    assert parse_listen("192.0.2.1:0") == (Address("192.0.2.1", 0),)
    assert parse_listen("[2001:db8::1]:5") == (Address("2001:db8::1", 5),)


@pytest.mark.parametrize(
    "text",
    ["", "65536", "name:80", "::1:80", "127.0.0.1", "127.0.0.1:", ":80", "-1", "٣", "1" * 5000, "[fe80::1%eth0]:5"],
)
def test_what_is_no_address_to_listen_at(text: str) -> None:
    with pytest.raises(UsageError):
        parse_proxy(text)
    with pytest.raises(UsageError):
        parse_listen(text)


def test_expose_specs_add_up() -> None:
    assert Expose.parse("8000") == Expose("default", frozenset({8000}))
    assert Expose.parse("8000, 9000-9002").ports == {8000, 9000, 9001, 9002}
    assert Expose.parse("none") == Expose("none")
    assert Expose.parse("all").extended("22") == Expose("all", frozenset({22}))
    assert Expose.parse("22").extended("none") == Expose("none")
    assert Expose.parse("none, 80") == Expose("none", frozenset({80}))
    assert Expose.parse("80,none") == Expose("none")
    assert Expose.parse("none").extended("22") == Expose("none", frozenset({22}))
    assert Expose.parse("none").extended("22").extended("default") == Expose("default", frozenset({22}))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("default", "default"),
        ("none", "none"),
        ("8000", "default,8000"),
        ("none,8000", "none,8000"),
        ("9001,8000,9000", "default,8000,9000-9001"),
        ("1-65535", "default,1-65535"),
    ],
)
def test_expose_rules_as_text(text: str, shown: str) -> None:
    rules = Expose.parse(text)
    assert str(rules) == shown
    assert Expose.parse(shown) == rules


@pytest.mark.parametrize("text", ["", "0", "65536", "10-9", "a", "8000,", "-", "1-", "none,", "22/udp", "1" * 5000])
def test_what_can_not_be_exposed(text: str) -> None:
    with pytest.raises(UsageError, match="can't be exposed"):
        Expose.parse(text)


@given(st.text(max_size=30))
def test_noise_is_refused_or_understood(text: str) -> None:
    for parse in (Expose.parse, parse_proxy, parse_listen):
        try:
            parse(text)
        except UsageError as error:
            assert "\n" not in str(error)
