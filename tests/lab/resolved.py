"""A host whose programs ask a real systemd-resolved: in a mount namespace of its own, with its own /run and /etc.

Debian's package can't be installed for that: it would replace this machine's /etc/resolv.conf. It is enough that it is
unpacked (tests.support.tools.UNPACKED), beside installed dbus-daemon and libsystemd-shared.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.lab.daemon import PVPN, Daemon
from tests.lab.hosts import Host
from tests.support.tools import SEARCH_PATH, UNPACKED, find_unpacked, missing_tools

PLACES = ("lib/systemd/systemd-resolved", "usr/lib/systemd/systemd-resolved")
STARTS_WITHIN = 100  # looks, a command's time each
# A bus that lets everybody do everything: what it may do on this host is for the caller's privileges to say.
BUS = """
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow send_destination="*" eavesdrop="false"/> <allow receive_sender="*"/>
  </policy>
</busconfig>
"""
# Its user exists here alone; nobody is 65534 everywhere. The anchor is what holds the namespace.
SET_UP = """
set -e
mount -t tmpfs -o mode=755 lab /run
mkdir -p /run/etc /run/dbus /run/systemd/resolve /run/systemd/resolved.conf.d
chown 65534:65534 /run/systemd/resolve
cp -a /etc/. /run/etc/
mount --bind /run/etc /etc
grep -q ^systemd-resolve: /etc/passwd || echo systemd-resolve:x:65534:65534::/:/bin/false >> /etc/passwd
ln -sf /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
printf '[Resolve]\\nDNS=%s\\nFallbackDNS=\\nDomains=%s\\nLLMNR=yes\\nMulticastDNS=yes\\n' "$1" "$2" \
    > /run/systemd/resolved.conf.d/lab.conf
printf '%s' "$3" > /run/dbus/lab.conf
echo ready
exec cat
"""


class ResolvedHost:
    """`host` with systemd-resolved, which asks `server`; skips the test where that can't be."""

    def __init__(self, host: Host, server: str, domains: Sequence[str] = ()) -> None:
        found = find_unpacked(*PLACES)
        if found is None:
            pytest.skip(f"no systemd-resolved: unpack its package (dpkg -x) and let {UNPACKED} name the directory")
        if reason := missing_tools(["dbus-daemon", "getent", "tcpdump"]):
            pytest.skip(reason)
        root, program = found
        self._host = host
        words = ("sh", "-c", SET_UP, "set-up", server, " ".join(domains), BUS)
        anchor = host.popen(["unshare", "--mount", "--propagation", "private", *words])
        anchor.wait_for("^ready$")
        path = os.pathsep.join([str(root / "usr/bin"), SEARCH_PATH])
        self._enter = ("nsenter", "--mount", "--target", str(anchor.pid), "--", "env", f"PATH={path}")
        bus = host.popen(
            [
                *self._enter,
                "dbus-daemon",
                "--config-file=/run/dbus/lab.conf",
                "--nofork",
                "--nopidfile",
                "--print-address",
            ]
        )
        bus.wait_for("^unix:")
        self._resolved = host.popen([*self._enter, str(program)])
        self._wait()

    def run(self, *words: str, check: bool = True) -> str:
        """What a program says."""
        return self._host.run([*self._enter, *words], check=check).stdout

    def daemon(self, key: Path, name: str, *options: str) -> Daemon:
        """A peer here."""
        daemon = Daemon(self._host, key, name, *options)
        daemon.program = [*self._enter, *PVPN]
        return daemon

    def _wait(self) -> None:
        for _ in range(STARTS_WITHIN):
            if self.run("resolvectl", "status", check=False):
                return
            if not self._resolved.running:
                break
        pytest.skip(f"systemd-resolved does not start here: {self._resolved.output[-500:]}")
