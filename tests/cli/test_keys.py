"""`pvpn keygen` and `pvpn key`."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from proxy_vpn.cli import main
from proxy_vpn.keys import NetworkKey, load_key_file
from tests.cli.pvpn import Capture, environment, fails, pvpn


def test_keygen_makes_a_key_and_says_what_next(capsys: Capture, tmp_path: Path) -> None:
    assert main(["keygen", "home.key"]) == 0
    said, made = capsys.readouterr().out, load_key_file("home.key")
    assert made.name == "home"
    assert made.fingerprint in said
    assert "scp home.key" in said
    assert "pvpn run home.key" in said
    assert made.secret.hex() not in said
    assert "not overwritten" in fails(capsys, 1, "keygen", "home.key")
    assert load_key_file("home.key") == made


@pytest.mark.parametrize(
    ("file", "typed"),
    [
        ("ü.key", "'ü.key'"),
        ("my flat.key", "'my flat.key'"),
        ("a\nb.key", "'a\\nb.key'"),
        ("b\udcfc.key", "'b\\udcfc.key'"),
    ],
)
def test_lines_to_copy_name_the_file_as_a_shell_takes_it(capsys: Capture, file: str, typed: str) -> None:
    assert main(["keygen", file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{typed[1:-1]}: network ")
    assert lines[2] == f"  scp {typed} other-machine:"
    assert lines[4] == f"  pvpn run {typed} --socks 1080"


def test_a_file_name_that_the_terminal_has_no_characters_for() -> None:
    command = [sys.executable, "-m", "proxy_vpn.cli", "keygen", "ü.key"]
    more = {**environment(), "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    result = subprocess.run(command, capture_output=True, timeout=60, env=more)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.startswith(b"\\xfc.key: network ")


@pytest.mark.parametrize(
    ("file", "name"), [("home.key", "home"), ("My Flat.key", "my-flat"), (".key", "home"), ("localhost.key", "home")]
)
def test_a_network_is_called_like_its_file(file: str, name: str) -> None:
    assert main(["keygen", file]) == 0
    assert load_key_file(file).name == name


def test_keygen_names(capsys: Capture) -> None:
    assert main(["keygen", "x.key", "--name", "office"]) == 0
    assert load_key_file("x.key").name == "office"
    capsys.readouterr()
    assert "--name" in fails(capsys, 2, "keygen", "y.key", "--name", "Our Office")
    assert not Path("y.key").exists()


def test_key_show_never_shows_the_secret(capsys: Capture) -> None:
    main(["keygen", "home.key"])
    capsys.readouterr()
    assert main(["key", "show", "home.key"]) == 0
    said, made = capsys.readouterr().out, load_key_file("home.key")
    assert made.network_id.hex() in said
    assert made.fingerprint in said
    assert made.secret.hex() not in said
    assert made.token() not in said
    Path("home.key").chmod(0o644)
    assert "chmod 600 home.key" in fails(capsys, 1, "key", "show", "home.key")


def test_a_token_writes_the_key_back(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["keygen", "home.key"])
    capsys.readouterr()
    assert main(["key", "show", "home.key", "--token"]) == 0
    token = capsys.readouterr().out
    assert main(["keygen", "copy.key", "--from-token", token.strip()]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(token.upper()))
    assert main(["keygen", "--from-token", "-", "renamed.key", "--name", "office"]) == 0
    made = load_key_file("home.key")
    assert load_key_file("copy.key") == made
    assert (load_key_file("renamed.key").name, load_key_file("renamed.key").root) == ("office", made.root)
    capsys.readouterr()
    assert "damaged" in fails(capsys, 1, "keygen", "bad.key", "--from-token", token.strip()[:-1])
    assert not Path("bad.key").exists()


def test_the_qr_code_carries_the_token(capsys: Capture) -> None:
    segno = pytest.importorskip("segno")
    main(["keygen", "home.key"])
    capsys.readouterr()
    assert main(["key", "show", "home.key", "--qr"]) == 0
    captured = capsys.readouterr()
    expected = io.StringIO()
    token = load_key_file("home.key").token()
    segno.make_qr(token.upper(), error="l").terminal(out=expected, border=2, compact=True)
    assert captured.out == expected.getvalue()
    assert "whoever scans it is in the network" in captured.err
    assert NetworkKey.from_token(token.upper()) == load_key_file("home.key")


def test_the_qr_code_needs_no_block_characters() -> None:
    assert pvpn("keygen", "home.key").returncode == 0
    command = [sys.executable, "-m", "proxy_vpn.cli", "key", "show", "home.key", "--qr"]
    result = subprocess.run(
        command, capture_output=True, timeout=60, env={**environment(), "PYTHONIOENCODING": "ascii"}
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.isascii()
    assert b"\x1b[7m" in result.stdout
