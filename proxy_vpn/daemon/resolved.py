"""systemd-resolved, where it runs: which names it asks our name server for, until the interface goes."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from proxy_vpn.addresses import TOP_LABEL

RUNNING: Final = Path("/run/systemd/resolve")
STUBS: Final = frozenset({"127.0.0.53", "127.0.0.54"})
RESOLVECTL_S: Final = 5.0
_DOMAINS = re.compile(r"(?:Global|Link \d+ \((?P<name>.+?)\)): (?P<domains>.+)")
_log = logging.getLogger(__name__)


def tell(name: str, dns: Sequence[str], *, everything: bool) -> bool:
    """Let it ask `dns` about peers or everything, through the interface; False where it doesn't run.

    Blocking. It wants CAP_NET_ADMIN of who asks, or polkit's word.
    """
    if not RUNNING.is_dir():
        return False
    for verb, *words in (
        ("dns", *dns),
        # Without ~ it is searched too, for names of one label. It asks us itself where our own addresses belong.
        ("domain", TOP_LABEL, *(["~."] if everything else [])),
        ("default-route", "yes" if everything else "no"),
        # Nobody answers these there, and every name of one label that nobody has would wait for them: 8 s.
        ("llmnr", "no"),
        ("mdns", "no"),
    ):
        done = _resolvectl(verb, name, *words)
        if done is None:
            return False
        if done.returncode != 0:
            _log.warning("systemd-resolved does not ask us: %s", done.stderr.strip())
            return False
    return True


def asked_elsewhere(name: str) -> dict[str, list[str]]:
    """The domains under which it asks others than us, whatever it was told, by interface ("" for all); blocking."""
    done = _resolvectl("domain")
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines() if done else []:
        match = _DOMAINS.fullmatch(line.strip())
        if match and match["name"] != name:
            domains = [domain for domain in match["domains"].split() if domain.lstrip("~") != TOP_LABEL]
            if domains:
                found[match["name"] or ""] = domains
    return found


def _resolvectl(*words: str) -> subprocess.CompletedProcess[str] | None:
    program = shutil.which("resolvectl")
    if program is None:
        return None
    try:
        return subprocess.run(
            [program, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=RESOLVECTL_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
