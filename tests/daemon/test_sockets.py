"""Where a process's Unix sockets are."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from proxy_vpn.daemon import sockets
from proxy_vpn.daemon.state import StateDirectory
from proxy_vpn.errors import StateError


def test_sockets_lie_in_the_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PVPN_STATE", "here")
    assert sockets.control_socket() == tmp_path.resolve() / "here" / "control.sock"
    assert sockets.proxy_socket(Path("/x")) == Path("/x/proxy.sock")
    monkeypatch.delenv("PVPN_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", "/var/somewhere")
    assert sockets.default_state_directory() == Path("/var/somewhere/pvpn")


def test_a_long_path_moves_to_a_private_directory(tmp_path: Path) -> None:
    where = tmp_path / ("x" * 60) / ("y" * 60)
    with StateDirectory.open(where) as directory:
        path = directory.control_socket
        assert len(os.fsencode(path)) <= sockets.MAX_UNIX_PATH_BYTES
        assert path == sockets.control_socket(where) != sockets.control_socket(where.parent / "z")
        assert path.parent == directory.proxy_socket.parent
        try:
            sockets.prepare(path)
            assert path.parent.stat().st_mode & 0o777 == 0o700
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
            sockets.prepare(path)
            assert not path.exists()
        finally:
            path.parent.rmdir()


def test_the_longest_path_that_fits_stays(tmp_path: Path) -> None:
    room = sockets.MAX_UNIX_PATH_BYTES - len(os.fsencode(tmp_path.resolve())) - len("//control.sock")
    fits, over = tmp_path / ("x" * room), tmp_path / ("x" * (room + 1))
    assert sockets.control_socket(fits).parent == fits.resolve()
    assert sockets.control_socket(over).parent != over.resolve()


def test_somebody_elses_directory_is_not_used(tmp_path: Path) -> None:
    ours, opened, link = tmp_path / "ours", tmp_path / "opened", tmp_path / "link"
    ours.mkdir(mode=0o700)
    opened.mkdir()
    opened.chmod(0o755)
    link.symlink_to(ours)
    sockets.prepare(ours / "control.sock")
    (ours / "control.sock").touch()
    with pytest.raises(StateError, match="others can look into"):
        sockets.prepare(opened / "control.sock")
    with pytest.raises(StateError, match="not a directory of this user's own"):
        sockets.prepare(link / "control.sock")
    assert (ours / "control.sock").exists(), "a file behind somebody else's link was removed"
