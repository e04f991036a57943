"""Private directories: what is closed, what is refused, and which chmod is safe to advise."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy_vpn.daemon.private import MARK, check_private, make_private
from proxy_vpn.errors import StateError


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def opened(path: Path, permissions: int = 0o755, *files: str) -> Path:
    path.mkdir()
    for name in files:
        (path / name).write_text("")
    path.chmod(permissions)
    return path


def test_an_empty_directory_is_closed(tmp_path: Path) -> None:
    empty = opened(tmp_path / "empty")
    make_private(empty)
    assert mode(empty) == 0o700
    make_private(tmp_path / "deep" / "new")
    assert mode(tmp_path / "deep" / "new") == 0o700


@pytest.mark.parametrize("refuse", [make_private, check_private])
def test_the_chmod_is_advised_only_for_what_is_surely_ours(tmp_path: Path, refuse: object) -> None:
    assert callable(refuse)
    used = opened(tmp_path / "used", 0o755, MARK)
    inner = opened(used / "networks", 0o755, "0")
    for path in (used, inner):
        with pytest.raises(StateError, match=f"run: chmod 700 {path}$"):
            refuse(path)
    home = opened(tmp_path / "home", 0o755, "thesis.txt", "lock")
    shared = opened(tmp_path / "shared", 0o1777, MARK)
    for path in (home, shared):
        with pytest.raises(StateError, match=r" - choose an empty one with --state$"):
            refuse(path)
    assert (mode(home), mode(shared)) == (0o755, 0o1777)


def test_what_is_no_directory_of_ours_is_refused(tmp_path: Path) -> None:
    ours, link, file = tmp_path / "ours", tmp_path / "link", tmp_path / "file"
    make_private(ours)
    link.symlink_to(ours)
    file.write_text("")
    check_private(ours)
    check_private(tmp_path / "missing")
    for path in (link, file):
        with pytest.raises(StateError, match="not a directory of this user's own"):
            check_private(path)
    with pytest.raises(StateError, match="--state"):
        make_private(file)
