"""Namespaces of this process's own (Linux): the system calls behind `pvpn exec`, and why they may be forbidden.

Who may make network namespaces (root, mostly) only unshares them and stays who he is. Everybody else makes a user
namespace around them, in which his user and group are mapped to themselves: it gives every capability over what is
made inside, and `drop_gained` gives them back.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from proxy_vpn.doors import capabilities
from proxy_vpn.doors.capabilities import NET_ADMIN, SYS_ADMIN
from proxy_vpn.doors.tun_device import TUN_FILE
from proxy_vpn.errors import StateError

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_SLAVE: Final = 0x80000
MNT_DETACH: Final = 2
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_IFREQ: Final = struct.Struct("16sH22x")
_AS_ROOT: Final = "or run it as root"
_NO_USERS: Final = "this system lets only root make user namespaces"
_FORBIDDING: Final = (  # a setting, its value that forbids, one that allows, and what to say
    ("kernel.unprivileged_userns_clone", "0", "1", _NO_USERS),
    ("user.max_user_namespaces", "0", "63359", _NO_USERS),
    ("user.max_net_namespaces", "0", "63359", "this system forbids network namespaces"),
    ("user.max_mnt_namespaces", "0", "63359", "this system forbids mount namespaces"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0", "AppArmor forbids user namespaces to most programs"),
)

_libc = ctypes.CDLL(None, use_errno=True)


class Before(NamedTuple):
    """What this process could do before: as the bits of capabilities(7), itself and the programs it starts."""

    effective: int
    bounding: int

    @property
    def make_namespaces(self) -> bool:
        """Whether networks and mounts can be made without a user namespace."""
        return not ~self.effective & (NET_ADMIN | SYS_ADMIN)


def check_tun() -> None:
    """Raise StateError when this user can't open the TUN driver: before anything is made."""
    try:
        os.close(os.open(TUN_FILE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            hint = f"as root run: chmod 666 {TUN_FILE} (udev makes it so; it gives no right over any network)"
            raise StateError(f"only root may open {TUN_FILE}", hint) from None
        what = f"there is no {TUN_FILE}" if error.errno == errno.ENOENT else f"{TUN_FILE}: {error.strerror}"
        raise StateError(what, "as root run: modprobe tun (in a container: start it with that device)") from None


def enter_new_namespaces() -> Before:
    """Move this process, which must have one thread, into new network and mount namespaces; its user stays the same.

    The answer is what it could do before, for `drop_gained`. Loopback is up and `ping` needs no capability inside.
    Raises StateError, which says what forbids it and how to allow it.
    """
    before = Before(*capabilities.held())
    user, group = os.geteuid(), os.getegid()
    try:
        if before.make_namespaces:
            _call("unshare", CLONE_NEWNET | CLONE_NEWNS)
        else:
            _call("unshare", CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS)
            with suppress(FileNotFoundError):  # kernels older than this rule
                Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        # What the host mounts later shows up inside; what is mounted inside never shows up on the host.
        mount("none", "/", flags=MS_REC | MS_SLAVE)
        _loopback_up()
    except OSError as error:
        raise _forbidden(error, before) from None
    groups = "0 2147483647" if before.make_namespaces else f"{group} {group}"
    with suppress(OSError):  # /proc/sys is read-only in some containers: ping needs its capability there
        Path("/proc/sys/net/ipv4/ping_group_range").write_text(groups)
    return before


def drop_gained(before: Before) -> None:
    """Give back every capability that a user namespace brought, for this process and all that it starts.

    Programs that carry capabilities in their file get them as they do outside, over this namespace alone.
    """
    if not before.make_namespaces:
        capabilities.keep_only(0, for_programs=before.bounding)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); raises OSError."""
    words = [os.fsencode(word) if word else None for word in (source, target, kind)]
    _call("mount", *words, ctypes.c_ulong(flags), os.fsencode(data) if data else None)


def detach(target: str) -> None:
    """Take a mount off its place; what is open or bound elsewhere stays. Raises OSError."""
    _call("umount2", os.fsencode(target), MNT_DETACH)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        name, flags = _IFREQ.unpack(fcntl.ioctl(sock, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
        fcntl.ioctl(sock, _SIOCSIFFLAGS, _IFREQ.pack(name, flags | _IFF_UP))


def _forbidden(error: OSError, before: Before) -> StateError:
    """What keeps this user from a network of his own, as far as the system tells."""
    if before.make_namespaces:
        what = f"this system does not let root make a network namespace: {error.strerror}"
        return StateError(what, "in a container: allow unshare and mount (its seccomp and AppArmor profiles)")
    if not os.path.exists("/proc/self/ns/user"):
        return StateError("this kernel has no user namespaces", f"use one with CONFIG_USER_NS, {_AS_ROOT}")
    for setting, forbids, allows, what in _FORBIDDING:
        if _setting(setting) == forbids:
            return StateError(
                f"{what} ({setting} = {forbids})", f"as root run: sysctl -w {setting}={allows}, {_AS_ROOT}"
            )
    if error.errno in (errno.ENOSPC, errno.EUSERS):
        hint = "end some, or raise user.max_user_namespaces, user.max_net_namespaces and user.max_mnt_namespaces"
        return StateError("this user has as many namespaces as the system allows", hint)
    what = f"this system does not let users make namespaces: {error.strerror}"
    return StateError(what, f"in a container: allow unshare and mount (seccomp, AppArmor), {_AS_ROOT}")


def _setting(name: str) -> str:
    try:
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    except OSError:
        return ""
