"""Where a program's resolver looks: in a mount namespace of its own, made to ask pvpn's name server and nobody else.

glibc reads /etc/resolv.conf, but before it asks what listens on Unix sockets, which know no network namespaces: nscd,
and through nss-resolve systemd-resolved. So their directories are covered too; both then count as not running, and
every nsswitch.conf goes on to `dns`. Programs that bring their own resolver (Go, musl, c-ares) read the same file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from proxy_vpn.doors.unshare import MS_BIND, detach, mount
from proxy_vpn.errors import StateError

RESOLV_CONF: Final = "/etc/resolv.conf"
ASKED_FIRST: Final = ("/run/systemd/resolve", "/run/nscd", "/var/run/nscd")
MAX_NAME_SERVERS: Final = 3  # glibc's MAXNS: it ignores further ones
MAX_HOST_FILE_BYTES: Final = 65536
_COVER: Final = "size=64k,mode=755"


def cover(content: str, staging: str) -> None:
    """Let everything in this mount namespace, which is our own, read `content` as its resolv.conf.

    `staging` is any directory; something is mounted there for a moment. Raises StateError.
    """
    real = os.path.realpath(RESOLV_CONF)
    place = os.path.dirname(real)
    try:
        for directory in {os.path.realpath(path) for path in ASKED_FIRST} - {place}:
            if os.path.isdir(directory):
                mount("pvpn", directory, "tmpfs", data=_COVER)
        if place.startswith("/run/") and os.path.isdir(place):
            # A network manager's own directory. Covered whole, because a file that is replaced (a rename) would
            # uncover itself, and these are replaced at every change of network.
            mount("pvpn", place, "tmpfs", data=_COVER)
            Path(real).write_text(content)
        else:
            _cover_file(content, real, staging)
    except FileNotFoundError:
        raise StateError(f"there is no {RESOLV_CONF} to stand in for", "make one, it may be empty") from None
    except OSError as error:
        hint = "in a container: allow mount (its seccomp and AppArmor profiles)"
        raise StateError(f"can't give the command its own {RESOLV_CONF}: {error.strerror}", hint) from None


def resolv_conf(servers: Sequence[str], net: str, host: str) -> str:
    """A resolv.conf that asks `servers`; bare names are peers' first (of network `net` before others).

    The search domains of the `host`'s own resolv.conf follow, for names that are no peer's.
    """
    ours = [f"{net}.pvpn", "pvpn"] if net else ["pvpn"]
    search = dict.fromkeys([*ours, *_search_domains(host)])
    lines = [*(f"nameserver {server}" for server in servers[:MAX_NAME_SERVERS]), f"search {' '.join(search)}"]
    return "\n".join(["# pvpn exec", *lines, ""])


def host_resolv_conf() -> str:
    """The file as it is now; empty if there is none."""
    try:
        with open(RESOLV_CONF, errors="replace") as file:
            return file.read(MAX_HOST_FILE_BYTES)
    except OSError:
        return ""


def _search_domains(resolv_conf: str) -> list[str]:
    """resolv.conf(5): the last `search` or `domain` line is the one that holds."""
    lines = [line.split() for line in resolv_conf.splitlines()]
    listed = [words[1:] for words in lines if words[:1] in (["search"], ["domain"])]
    return [word for word in (listed[-1] if listed else []) if word != "."]


def _cover_file(content: str, real: str, staging: str) -> None:
    mount("pvpn", staging, "tmpfs", data=_COVER)
    try:
        source = os.path.join(staging, "resolv.conf")
        Path(source).write_text(content)
        mount(source, real, flags=MS_BIND)
    finally:
        detach(staging)
