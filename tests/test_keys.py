"""Keys: derivation, epochs, files, tokens, identities."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_vpn import keys
from proxy_vpn.errors import KeyFileError
from proxy_vpn.keys import Identity, NetworkKey, format_key_file, kdf, load_key_file, parse_key_file, write_key_file

KEY = NetworkKey("home", bytes(range(16)), bytes(range(32)))
networks = st.builds(
    NetworkKey,
    st.sampled_from(["home", "a", "x" * 32, "9-lives"]),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=32, max_size=32),
    st.integers(1, 2**32 - 1),
)


def test_the_kdf_is_keyed_blake2b_with_prefixed_fields() -> None:
    expected = hashlib.blake2b(b"\0\0\0\x01a\0\0\0\x02bc", key=b"k" * 32, person=b"pvpn1 x", digest_size=32).digest()
    assert kdf(b"k" * 32, "pvpn1 x", b"a", b"bc") == expected
    assert kdf(b"k" * 32, "pvpn1 x", b"ab", b"c") != expected


def test_the_root_depends_on_everything_but_the_name() -> None:
    fields = (bytes(range(16)), b"open", b"", (1).to_bytes(8, "big"))
    assert KEY.root == kdf(bytes(range(32)), "pvpn1 root", *fields)
    assert NetworkKey("other", KEY.network_id, KEY.secret).root == KEY.root
    assert NetworkKey("home", KEY.network_id, KEY.secret, 2).root != KEY.root
    assert NetworkKey("home", bytes(16), KEY.secret).root != KEY.root
    assert NetworkKey("home", KEY.network_id, bytes(32)).root != KEY.root


def test_every_derived_key_is_its_own() -> None:
    derived = [
        KEY.root,
        KEY.auth_key,
        KEY.discovery_key(0),
        KEY.discovery_key(1),
        KEY.device_key(b"x" * 32),
        KEY.device_key(b"y" * 32),
        KEY.reply_key(b"x" * 32),
        KEY.reply_key(b"x" * 16),
    ]
    assert len(set(derived)) == len(derived)
    assert {len(key) for key in derived} == {32}
    assert len(KEY.dht_topic(5)) == 20


def test_epochs_overlap_for_an_hour_around_a_boundary() -> None:
    boundary = next(t for t in range(2 * 86400) if KEY.epochs(t)[0] == KEY.epochs(0)[0] + 1)
    old = KEY.epochs(boundary - 1)[0]
    assert KEY.epochs(boundary - 3601) == [old]
    assert KEY.epochs(boundary - 3599) == [old, old + 1]
    assert KEY.epochs(boundary - 0.5) == [old, old + 1]
    assert KEY.epochs(boundary) == [old + 1, old]
    assert KEY.epochs(boundary + 3599.9) == [old + 1, old]
    assert KEY.epochs(boundary + 3600) == [old + 1]
    assert KEY.dht_topics(boundary) == [KEY.dht_topic(old + 1), KEY.dht_topic(old)]


def test_phases_differ_between_networks() -> None:
    crossings = set()
    for number in range(8):
        key = NetworkKey("home", bytes([number]) * 16, bytes(32))
        crossings.add(next(hour for hour in range(25) if key.epochs(hour * 3600)[0] != key.epochs(0)[0]))
    assert len(crossings) > 1


@given(st.floats(-1e6, 4e9))
def test_two_clocks_an_hour_apart_share_a_topic(now: float) -> None:
    assert set(KEY.epochs(now)) & set(KEY.epochs(now + 3599))


def test_the_secret_never_shows() -> None:
    secret = KEY.secret
    for text in (repr(KEY), str(KEY), KEY.fingerprint, repr(Identity(secret))):
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text
    assert len(KEY.fingerprint) == 19


def test_generate_takes_its_entropy_from_the_caller() -> None:
    key = NetworkKey.generate("home", entropy=lambda size: b"e" * size)
    assert (key.network_id, key.secret) == (b"e" * 16, b"e" * 32)
    assert NetworkKey.generate("home") != NetworkKey.generate("home")


@pytest.mark.parametrize(
    "parts",
    [
        ("Home", bytes(16), bytes(32)),
        ("", bytes(16), bytes(32)),
        ("localhost", bytes(16), bytes(32)),
        ("home", bytes(15), bytes(32)),
        ("home", bytes(16), bytes(31)),
        ("home", bytes(16), bytes(32), 0),
        ("home", bytes(16), bytes(32), 2**32),
        ("home", bytes(16), bytes(32), 1, "closed"),
        ("home", bytes(16), bytes(32), 1, "open", b"admin"),
    ],
)
def test_parts_that_make_no_key_are_refused(parts: tuple[object, ...]) -> None:
    with pytest.raises(KeyFileError):
        NetworkKey(*parts)  # type: ignore[arg-type]


@given(networks)
def test_files_and_tokens_bring_the_key_back(key: NetworkKey) -> None:
    assert parse_key_file(format_key_file(key)) == key
    assert NetworkKey.from_token(key.token()) == key
    assert NetworkKey.from_token("  " + key.token().upper() + "\n") == key


@given(st.binary(max_size=300))
def test_noise_is_no_key_file_and_no_token(noise: bytes) -> None:
    for data in (noise, b"pvpn-key 1\n" + noise):
        with pytest.raises(KeyFileError):
            parse_key_file(data)
    with pytest.raises(KeyFileError):
        NetworkKey.from_token("pvpn1:" + noise.decode("latin-1"))


def test_every_cut_and_every_changed_character_is_caught() -> None:
    text, token = format_key_file(KEY).rstrip(), KEY.token()
    for size in range(len(text)):
        with pytest.raises(KeyFileError):
            parse_key_file(text[:size])
    start = text.index(b"network ", text.index(b"pvpn-key"))
    for at in range(start, len(text)):
        if text[at : at + 1].isspace():
            continue
        with pytest.raises(KeyFileError):
            parse_key_file(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
    for at in range(len(token)):
        with pytest.raises(KeyFileError):
            NetworkKey.from_token(token[:at])
        changed = "b" if token[at] == "a" else "a"
        with pytest.raises(KeyFileError):
            NetworkKey.from_token(token[:at] + changed + token[at + 1 :])


def test_the_name_in_a_file_may_be_changed() -> None:
    key = parse_key_file(format_key_file(KEY).replace(b"name home", b"name office"))
    assert (key.name, key.root) == ("office", KEY.root)
    with pytest.raises(KeyFileError, match="name"):
        parse_key_file(format_key_file(KEY).replace(b"name home", b"name Caf\xe9"))


def test_a_file_from_the_future_says_so() -> None:
    with pytest.raises(KeyFileError, match="newer pvpn - update"):
        parse_key_file(format_key_file(KEY).replace(b"pvpn-key 1", b"pvpn-key 2"))
    with pytest.raises(KeyFileError, match="newer"):
        NetworkKey.from_token(KEY.token().replace("pvpn1:", "pvpn2:"))
    with pytest.raises(KeyFileError, match="damaged"):
        parse_key_file(format_key_file(KEY) + b"extra line\n")


def test_a_written_file_is_private_readable_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "home.key"
    write_key_file(path, KEY)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key_file(path) == KEY
    before = path.read_bytes()
    with pytest.raises(KeyFileError, match="not overwritten"):
        write_key_file(path, NetworkKey.generate("other"))
    assert path.read_bytes() == before
    link = tmp_path / "link.key"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError, match="not overwritten"):
        write_key_file(link, KEY)
    with pytest.raises(KeyFileError, match="can't write"):
        write_key_file(tmp_path / "missing" / "home.key", KEY)


def test_a_failed_write_leaves_no_half_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(KeyFileError, match="No space left"):
        write_key_file(tmp_path / "home.key", KEY)
    assert not list(tmp_path.iterdir())


def test_a_file_others_can_read_is_refused_with_the_chmod(tmp_path: Path) -> None:
    path = tmp_path / "my home.key"
    write_key_file(path, KEY)
    for mode in (0o640, 0o604, 0o620, 0o601):
        path.chmod(mode)
        with pytest.raises(KeyFileError, match=r"chmod 600 '/.*my home\.key'"):
            load_key_file(path)
    path.chmod(0o400)
    assert load_key_file(path) == KEY


@pytest.mark.parametrize("content", [b"", b"root:x:0:0:root:/root:/bin/sh\n", b"# pvpn-key 1\n", b"#" * 100_000])
def test_nobody_is_told_to_close_a_file_that_is_no_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "passwd"
    path.write_bytes(content)
    path.chmod(0o644)
    with pytest.raises(KeyFileError) as caught:
        load_key_file(path)
    assert "chmod" not in str(caught.value)
    assert "key file" in str(caught.value)


def test_file_names_are_shown_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"no key file ü\.key - make one with: pvpn keygen 'ü\.key'"):
        load_key_file("ü.key")
    with pytest.raises(KeyFileError, match=r"no key file a\\x1b\.key"):
        load_key_file("a\x1b.key")


def test_files_that_are_no_key_files_have_their_own_words(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="pvpn keygen"):
        load_key_file(tmp_path / "missing.key")
    with pytest.raises(KeyFileError, match="directory"):
        load_key_file(tmp_path)
    large = tmp_path / "large"
    large.write_bytes(b"#" * (keys.MAX_KEY_FILE_BYTES + 1))
    large.chmod(0o600)
    with pytest.raises(KeyFileError, match="too large"):
        load_key_file(large)
    with pytest.raises(KeyFileError, match="can't read"):
        load_key_file(large / "below")


def test_a_key_may_come_from_a_pipe() -> None:
    reader, writer = os.pipe()
    os.write(writer, format_key_file(KEY))
    os.close(writer)
    try:
        assert load_key_file(f"/dev/fd/{reader}") == KEY
    finally:
        os.close(reader)


def test_signatures() -> None:
    ours, theirs = Identity(bytes(32)), Identity.generate()
    signature = ours.sign(b"message")
    assert len(ours.id) == 32
    assert len(signature) == 64
    assert keys.verify(ours.id, signature, b"message")
    assert not keys.verify(ours.id, signature, b"massage")
    assert not keys.verify(theirs.id, signature, b"message")
    assert keys.short_id(b"\xab\x12" + bytes(30)) == "ab12"
    with pytest.raises(KeyFileError):
        Identity(bytes(31))


@given(st.binary(max_size=70), st.binary(max_size=70))
def test_malformed_signatures_are_only_false(identity: bytes, signature: bytes) -> None:
    assert not keys.verify(identity, signature, b"message")
    assert not keys.verify(identity[:32].ljust(32, b"\xff"), signature[:64].ljust(64, b"\0"), b"message")
