"""The state directory: locking, privacy, and what survives a crash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.daemon import files, state
from proxy_vpn.daemon.state import KnownPeer, NetworkMemory, StateDirectory
from proxy_vpn.dht.saved import Saved, dump
from proxy_vpn.errors import StateError

NETWORK_ID = bytes(range(16))
PEER = KnownPeer(
    name="peer-b",
    id=b"b" * 32,
    addresses=(Address("192.0.2.1", 41641), Address("2001:db8::1", 41641)),
    last_seen=1e9,
)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_everything_is_remembered(tmp_path: Path) -> None:
    where = tmp_path / "deep" / "state"
    memory = NetworkMemory(peers=(PEER,), pins={"peer-b": PEER.id}, seen={b"\xff" * 16: 1.5})
    dht = dump(Saved(nodes=[b"n" * 26], closest=[(b"t" * 20, [b"n" * 38])], ids=[(4, b"i" * 20)]))
    with StateDirectory.open(where) as first:
        assert (first.starts, first.first_run, first.udp_port) == (0, True, 0)
        first.count_start()
        assert (first.starts, first.first_run) == (1, True)
        assert (first.network(NETWORK_ID).load(), first.load_dht()) == (NetworkMemory(), dump(Saved()))
        first.save_udp_port(41641)
        first.save_dht(dht)
        first.network(NETWORK_ID).save(memory)
        identity = first.network(NETWORK_ID).identity()
    with StateDirectory.open(where) as second:
        second.count_start()
        assert (second.starts, second.first_run, second.udp_port) == (2, False, 41641)
        assert second.load_dht() == dht
        assert second.network(NETWORK_ID).load() == memory
        assert second.network(NETWORK_ID).identity() == identity
        assert second.network(b"o" * 16).identity() != identity


def test_a_start_that_failed_leaves_the_first_run_to_the_next(tmp_path: Path) -> None:
    StateDirectory.open(tmp_path / "state").close()
    with StateDirectory.open(tmp_path / "state") as directory:
        assert directory.first_run


def test_all_of_it_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with StateDirectory.open(tmp_path / "state") as directory:
            network = directory.network(NETWORK_ID)
            network.identity()
            network.save(NetworkMemory(peers=(PEER,)))
    finally:
        os.umask(before)
    for path in [tmp_path / "state", *(tmp_path / "state").rglob("*")]:
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path


def test_a_second_process_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    held = StateDirectory.open(tmp_path / "state")
    script = (
        "import sys\nfrom pathlib import Path\nfrom proxy_vpn.daemon.state import StateDirectory\n"
        "StateDirectory.open(Path(sys.argv[1]))"
    )
    result = subprocess.run([sys.executable, "-c", script, str(held.path)], capture_output=True, text=True, timeout=60)
    assert f"another pvpn (process {os.getpid()}) uses" in result.stderr
    with pytest.raises(StateError, match=r"another pvpn .* --state"):
        StateDirectory.open(tmp_path / "state")
    held.close()
    held.close()
    StateDirectory.open(tmp_path / "state").close()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom proxy_vpn.daemon.state import StateDirectory\n"
        "held = StateDirectory.open(Path(sys.argv[1]))\nos.kill(os.getpid(), 9)"
    )
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path / "state")], timeout=60)
    assert result.returncode == -9
    StateDirectory.open(tmp_path / "state").close()


def test_damaged_files_are_set_aside_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    where = tmp_path / "state"
    with StateDirectory.open(where) as directory:
        directory.count_start()
        directory.save_udp_port(5)
        directory.network(NETWORK_ID).save(NetworkMemory(peers=(PEER,)))
        directory.save_dht(dump(Saved()))
    network = where / "networks" / NETWORK_ID.hex()
    damaged = [where / "process.json", where / "dht.json", network / "peers.json"]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-5] + b"\x1b[2J")
    with StateDirectory.open(where) as directory:
        assert (directory.starts, directory.first_run, directory.udp_port) == (0, True, 0)
        assert directory.load_dht() == dump(Saved())
        assert directory.network(NETWORK_ID).load() == NetworkMemory()
    for path in damaged:
        assert path.with_name(path.name + ".damaged").exists()
        assert path.name in caplog.text
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        b'{"peers": [{"name": "../x", "id": "%s"}]}',
        b'{"peers": [{"name": "x", "id": "AAAA"}]}',
        b'{"peers": [{"name": "x", "id": "%s", "addresses": [["nowhere", 5]]}]}',
        b'{"peers": [{"name": "x", "id": "%s", "addresses": [["fe80::1%%eth0", 5]]}]}',
        b'{"peers": [{"name": "x", "id": "%s", "addresses": [["192.0.2.1", 0]]}]}',
        b"[" * 100_000,
        b"",
        b"\xff",
    ],
)
def test_what_no_pvpn_wrote_is_not_believed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "peers.json"
    path.write_bytes(content % (b"A" * 43 + b"=") if b"%s" in content else content)
    assert files.read_json(path, NetworkMemory) is None
    assert not path.exists()


def test_too_large_a_file_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_STATE_FILE_BYTES", 10)
    path = tmp_path / "peers.json"
    path.write_bytes(b'{"version": 1, "peers": []}')
    assert files.read_json(path, NetworkMemory) is None


def test_files_of_a_newer_version_are_read_as_far_as_they_are_known(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    path.write_bytes(b'{"version": 2, "pins": {}, "colour": "blue"}')
    assert files.read_json(path, NetworkMemory) == NetworkMemory(version=2)


@pytest.mark.parametrize("content", [b"", b"pvpn-identity 1\n", b"pvpn-identity 1\nseed " + b"0" * 64 + b"\nid 00\n"])
def test_a_damaged_identity_is_never_replaced(tmp_path: Path, content: bytes) -> None:
    with StateDirectory.open(tmp_path / "state") as directory:
        network = directory.network(NETWORK_ID)
        network.identity()
        (network.path / "identity").write_bytes(content)
        with pytest.raises(StateError, match="damaged - restore it"):
            network.identity()
        assert (network.path / "identity").read_bytes() == content


def test_every_cut_of_an_identity_is_caught(tmp_path: Path) -> None:
    with StateDirectory.open(tmp_path / "state") as directory:
        network = directory.network(NETWORK_ID)
        network.identity()
        path = network.path / "identity"
        whole = path.read_bytes()
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            with pytest.raises(StateError):
                network.identity()


def test_an_identity_others_can_read_is_refused_with_the_chmod(tmp_path: Path) -> None:
    with StateDirectory.open(tmp_path / "state") as directory:
        network = directory.network(NETWORK_ID)
        network.identity()
        (network.path / "identity").chmod(0o644)
        with pytest.raises(StateError, match="chmod 600"):
            network.identity()


def test_memory_is_bounded_by_what_was_seen_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "MAX_KNOWN_PEERS", 2)
    monkeypatch.setattr(state, "MAX_ADDRESSES_PER_PEER", 1)
    monkeypatch.setattr(state, "MAX_PINS", 1)
    monkeypatch.setattr(state, "MAX_SEEN", 1)
    peers = tuple(msgspec.structs.replace(PEER, last_seen=float(at)) for at in (1, 3, 2))
    bounded = NetworkMemory(peers=peers, pins={"a": PEER.id, "b": PEER.id}, seen={b"x": 2, b"y": 1}).bounded()
    assert [peer.last_seen for peer in bounded.peers] == [3, 2]
    assert bounded.peers[0].addresses == PEER.addresses[:1]
    assert list(bounded.pins) == ["b"]
    assert bounded.seen == {b"x": 2}


def test_many_new_names_do_not_push_out_the_owner_of_an_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "MAX_PINS", 3)
    pins = {"nas": PEER.id, **{f"new-{n}": bytes([n]) * 32 for n in range(9)}}
    bounded = NetworkMemory(peers=(PEER,), pins=pins).bounded()
    assert len(bounded.pins) == 3 and bounded.pins["nas"] == PEER.id


def test_a_directory_others_can_look_into_is_refused(tmp_path: Path) -> None:
    home, used = tmp_path / "home", tmp_path / "used"
    home.mkdir()
    (home / "thesis.txt").write_text("")
    home.chmod(0o755)
    with pytest.raises(StateError, match="choose an empty one with --state"):
        StateDirectory.open(home)
    with StateDirectory.open(used) as directory:
        directory.count_start()
    used.chmod(0o755)
    with pytest.raises(StateError, match="chmod 700"):
        StateDirectory.open(used)


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write_atomic(path, b"old")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(StateError, match="No space left"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_a_crash_are_swept(tmp_path: Path) -> None:
    StateDirectory.open(tmp_path / "state").close()
    leftover = tmp_path / "state" / "process.json.abc.tmp"
    leftover.write_bytes(b"half")
    StateDirectory.open(tmp_path / "state").close()
    assert not leftover.exists()
