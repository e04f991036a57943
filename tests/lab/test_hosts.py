"""The laboratory itself: hosts reach each other and nothing else, and nothing of it remains."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab.hosts import Lab
from tests.lab.scenes import curl


def _namespaces() -> set[str]:
    """The network namespaces some process of this machine lives in."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(os.readlink(link))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def test_hosts_reach_each_other_and_no_internet(lab: Lab, tmp_path: Path) -> None:
    a, b = lab.host("a"), lab.host("b", addresses=2)
    (tmp_path / "hello").write_text("hello from b")
    server = b.python("-m", "http.server", "8000", "--bind", "::", "--directory", str(tmp_path))
    server.wait_for("Serving HTTP")
    for address in (*b.addresses, f"[{b.address6}]"):
        assert curl(a, f"http://{address}:8000/hello") == "hello from b"
    assert a.run(["curl", "-sS", "--max-time", "5", "http://192.0.2.1/"], check=False).returncode == 7


def test_links_carry_1500_bytes(lab: Lab) -> None:
    host = lab.host("a")
    assert "mtu 1500" in host.run(["ip", "link", "show", "dev", "eth0"]).stdout


@pytest.mark.usefixtures("lab")
def test_nothing_remains() -> None:
    with Lab() as another:
        process = another.host("a").popen(["cat"])
        process.tell("here")
        process.wait_for("here")
        inside = os.readlink(f"/proc/{process.pid}/ns/net")
        assert inside in _namespaces() and inside != os.readlink("/proc/self/ns/net")
    assert not process.running
    assert inside not in _namespaces()
