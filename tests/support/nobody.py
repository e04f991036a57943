"""Programs of an ordinary user: `nobody`, where root runs the tests, and whoever runs them otherwise.

As a program (`python -m tests.support.nobody COMMAND`, as root) it becomes nobody and then COMMAND. Before, in a mount
namespace of its own, it opens what lies in root's private directories - this interpreter, its packages, this checkout -
and the TUN driver, as udev does on most systems.
"""

from __future__ import annotations

import ctypes
import functools
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

NOBODY = 65534
ROOT = Path(__file__).resolve().parents[2]
_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_TUN_NUMBER = os.makedev(10, 200)
_OPEN_TUN = "import os; os.open('/dev/net/tun', os.O_RDWR)"


def python() -> list[str]:
    """This interpreter, for the ordinary user."""
    return [sys.executable]


def as_nobody(argv: Sequence[str]) -> list[str]:
    """The command line by which an ordinary user runs `argv`."""
    return [*python(), "-m", "tests.support.nobody", *argv] if os.geteuid() == 0 else list(argv)


def environment(more: dict[str, str]) -> dict[str, str]:
    """This process's, without what belongs to its own user."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PVPN_", "XDG_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **more}


@functools.cache
def forbidden(ordinary: bool) -> str:
    """Why commands can have no network of their own here; empty if they can."""
    if not sys.platform.startswith("linux"):
        return "namespaces need Linux"
    user = ["--user", "--map-current-user"] if ordinary or os.geteuid() != 0 else []
    tries = {
        "namespaces are forbidden here": ["unshare", *user, "--net", "--mount", "true"],
        "/dev/net/tun can't be opened": [*python(), "-c", _OPEN_TUN],
    }
    for reason, argv in tries.items():
        words = as_nobody(argv) if ordinary else argv
        try:
            done = subprocess.run(words, cwd="/", env=environment({}), capture_output=True, timeout=30, check=False)
        except FileNotFoundError as error:
            return f"not installed: {error.filename}"
        if done.returncode != 0:
            return f"{reason}: {done.stderr.decode(errors='replace').strip()[-200:]}"
    return ""


def _open_up(needed: Sequence[Path]) -> None:
    """Make each of `needed` reachable for everybody, in this mount namespace."""
    stage = Path(tempfile.mkdtemp(prefix="pvpn-nobody-"))
    _mount("none", str(stage), "tmpfs")
    closed: dict[Path, list[Path]] = {}
    for path in needed:
        above = next((each for each in reversed(path.parents) if not each.stat().st_mode & stat.S_IXOTH), None)
        if above is not None:
            closed.setdefault(above, []).append(path)
    for number, path in enumerate(path for paths in closed.values() for path in paths):
        (stage / str(number)).mkdir()
        _mount(str(path), str(stage / str(number)), flags=_MS_BIND | _MS_REC)
    number = 0
    for above, paths in closed.items():
        _mount("none", str(above), "tmpfs", data="mode=755")
        for path in paths:
            path.mkdir(parents=True, exist_ok=True)
            _mount(str(stage / str(number)), str(path), flags=_MS_BIND | _MS_REC)
            number += 1
    _libc().umount2(os.fsencode(stage), 2)
    stage.rmdir()


def _open_tun() -> None:
    if os.path.exists("/dev/net/tun"):
        _mount("none", "/dev/net", "tmpfs", data="mode=755")
        os.mknod("/dev/net/tun", 0o666 | stat.S_IFCHR, _TUN_NUMBER)
        os.chmod("/dev/net/tun", 0o666)


def _mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    words = (os.fsencode(source), os.fsencode(target), os.fsencode(kind) or None)
    if _libc().mount(*words, ctypes.c_ulong(flags), os.fsencode(data) or None) < 0:
        raise OSError(ctypes.get_errno(), f"mount {target}: {os.strerror(ctypes.get_errno())}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def main(argv: Sequence[str]) -> None:
    if _libc().unshare(_CLONE_NEWNS) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    _mount("none", "/", flags=_MS_REC | _MS_PRIVATE)
    _open_up(list(dict.fromkeys(Path(each).resolve() for each in (sys.base_prefix, sys.prefix, ROOT))))
    _open_tun()
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    os.execvp(argv[0], list(argv))


if __name__ == "__main__":
    main(sys.argv[1:])
