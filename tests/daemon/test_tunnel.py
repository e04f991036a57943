"""Which name servers a machine that uses an exit may ask."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy_vpn.daemon.tunnel import check_resolver
from proxy_vpn.errors import StateError

OURS = "100.87.0.53"


@pytest.mark.parametrize(
    ("servers", "resolved_asks"),
    [(["192.0.2.53"], False), ([OURS], False), (["192.0.2.53", "fd00::53"], True), (["127.0.0.53"], True), ([], True)],
)
def test_who_is_reached_through_the_exit_may_be_asked(servers: list[str], resolved_asks: bool, tmp_path: Path) -> None:
    check_resolver(OURS, resolved_asks=resolved_asks, path=written(tmp_path, servers))


@pytest.mark.parametrize(
    ("servers", "resolved_asks", "named"),
    [
        (["127.0.0.1"], False, "127.0.0.1"),
        (["127.0.0.53"], False, "127.0.0.53"),
        (["127.0.0.1"], True, "127.0.0.1"),
        ([OURS, "::1"], True, "::1"),
        (["fe80::1%eth0"], True, "fe80::1%eth0"),
        ([], False, "127.0.0.1"),
    ],
)
def test_who_would_ask_around_it_may_not(servers: list[str], resolved_asks: bool, named: str, tmp_path: Path) -> None:
    with pytest.raises(StateError, match=f"ask {named} for names.* - put 'nameserver {OURS}'"):
        check_resolver(OURS, resolved_asks=resolved_asks, path=written(tmp_path, servers))


def written(directory: Path, servers: list[str]) -> Path:
    path = directory / "resolv.conf"
    path.write_text("".join(f"nameserver {server}\n" for server in servers))
    return path
