"""README and docs, true to the letter: commands parse, links lead somewhere, the demo prints what is shown."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import click
import pytest

from proxy_vpn.addresses import ForwardSpec, parse_port
from proxy_vpn.cli.command import cli
from proxy_vpn.cli.run import settings
from proxy_vpn.config import Expose
from proxy_vpn.keys import NetworkKey, write_key_file
from tests.support.tools import tool_environment

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
DEMO = "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/pvpn demo"
TESTS = "python3 -m venv .venv && .venv/bin/pip install -q '.[test]' && .venv/bin/pytest -q"
DEMO_S = 20.0
SEPARATORS = ("&&", "||", "|", ";", "&", ">", "<")


def fenced(text: str) -> Iterator[tuple[str, list[str]]]:
    """(language, lines) of each fenced block."""
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield match[1], match[2].splitlines()


def commands(text: str) -> Iterator[str]:
    """Command lines: all of a `sh` block, those after `$ ` in a `console` block."""
    for language, lines in fenced(text):
        if language == "sh":
            yield from (line for line in lines if line.strip() and not line.startswith("#"))
        elif language == "console":
            yield from (line.removeprefix("$ ") for line in lines if line.startswith("$ "))


def pvpn_calls(text: str) -> Iterator[list[str]]:
    """The words after each `pvpn` in fenced commands, in code spans and in ssh's ProxyCommand."""
    spans = re.findall(r"`(pvpn [^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = [*commands(text), *spans]
    lines += [found for line in lines for found in re.findall(r"ProxyCommand='([^']+)'", line)]
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        while words:
            end = next((at for at, word in enumerate(words) if word in SEPARATORS), len(words))
            if words[:1] and Path(words[0]).name == "pvpn" and len(words) > 1:
                yield words[1:end]
            words = words[end + 1 :]


CALLS = [(page.name, call) for page in PAGES for call in pvpn_calls(page.read_text())]


@pytest.mark.parametrize(("page", "call"), CALLS, ids=[f"{page}: pvpn {' '.join(call)}" for page, call in CALLS])
def test_pvpn_commands_parse(page: str, call: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("home", "work"):
        write_key_file(tmp_path / f"{name}.key", NetworkKey.generate(name))
    command: click.Command = cli
    while isinstance(command, click.Group) and call:
        assert call[0] in command.commands, f"{page}: there is no pvpn {call[0]}"
        command, call = command.commands[call[0]], call[1:]
    if call:  # else a page only mentions the command
        _check_values(command, _parse(command, call))


def test_the_two_commands_stand_alone() -> None:
    blocks = [lines for language, lines in fenced(README.read_text()) if language == "sh"]
    assert [DEMO] in blocks
    assert [TESTS] in blocks


def test_every_command_is_in_the_table() -> None:
    listed = re.findall(r"^\| `pvpn (\w+)", README.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(cli.commands)


def test_every_example_is_listed() -> None:
    text = README.read_text()
    files = [path for path in (ROOT / "examples").iterdir() if path.is_file()]
    assert files
    assert not [path.name for path in files if f"(examples/{path.name})" not in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in _anchors(other), f"{other.name} has no heading #{anchor}"


def test_the_demo_prints_what_the_readme_shows() -> None:
    text = README.read_text()
    (shown,) = [lines for language, lines in fenced(text) if language == "text" and "it works" in lines[-1]]
    done = subprocess.run(
        [sys.executable, "-m", "proxy_vpn", *shlex.split(DEMO)[-1:]],
        cwd=ROOT,
        env=tool_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEMO_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert _without_numbers(done.stdout.splitlines()) == _without_numbers(shown)


def test_keygen_prints_what_the_readme_shows(tmp_path: Path) -> None:
    (shown,) = [lines for _, lines in fenced(README.read_text()) if lines[0] == "$ pvpn keygen home.key"]
    words = [sys.executable, "-m", "proxy_vpn", "keygen", "home.key"]
    environment = tool_environment({"PYTHONPATH": str(ROOT)})
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert _without_fingerprint(done.stdout.splitlines()) == _without_fingerprint(shown[1:])


def _parse(command: click.Command, arguments: list[str]) -> dict[str, Any]:
    """The command's parameters, as click reads them."""
    with command.make_context(command.name, _without_placeholders(arguments)) as context:
        return dict(context.params)


def _without_placeholders(arguments: list[str]) -> list[str]:
    """With words that stand for a value, such as `SPEC`, replaced by one."""
    values = {"SPEC": "2222:peer-b:22", "PORT": "22", "PEER": "peer-b", "NAME": "peer-b", "FILE": "home.key"}
    values |= {"FILE...": "home.key", "DIR": "state", "%h": "peer-b", "%p": "22"}
    return [values.get(word, word) for word in arguments]


def _check_values(command: click.Command, given: dict[str, Any]) -> None:
    """What click leaves as text must mean something too."""
    if command.name == "run" and given.get("keys"):
        known = {name: value for name, value in given.items() if name in signature(settings).parameters}
        settings(**known)
    elif command.name == "forward" and given.get("spec"):
        ForwardSpec.parse(given["spec"])
    elif command.name == "expose" and given.get("spec") not in (None, "2222:peer-b:22"):
        Expose.parse(given["spec"])
    elif command.name == "connect" and given:
        parse_port(given["port"])


def _anchors(page: Path) -> set[str]:
    """The anchors GitHub gives to a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _without_numbers(lines: list[str]) -> list[str]:
    return [re.sub(r"\d+", "0", line).replace("  ", " ").strip() for line in lines]


def _without_fingerprint(lines: list[str]) -> list[str]:
    return [re.sub(r"fingerprint \S+", "fingerprint", line) for line in lines]
