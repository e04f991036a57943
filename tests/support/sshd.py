"""A real sshd with throwaway keys, for one directory and one test."""

from __future__ import annotations

import getpass
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.tools import find_tool, missing_tools

SEPARATION_DIRECTORY = Path("/run/sshd")
CONFIG = """\
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/client_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding yes
UseDNS no
PrintMotd no
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
"""


def unavailable() -> str | None:
    """Why no sshd can be started here, or None when it can."""
    return missing_tools(("sshd", "ssh", "ssh-keygen"))


@dataclass(frozen=True)
class Sshd:
    """The command lines of a server and its clients; `prepare` makes the keys they need in `directory`."""

    directory: Path

    @classmethod
    def prepare(cls, directory: Path) -> Sshd:
        """Make keys and configuration in an existing directory."""
        for name in ("host_key", "client_key"):
            made = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(directory / name)]
            subprocess.run(made, check=True, stdin=subprocess.DEVNULL, timeout=30)
        (directory / "sshd_config").write_text(CONFIG.format(directory=directory))
        if os.geteuid() == 0:
            # Debian makes it when its service starts; sshd run by hand as root refuses to start without.
            SEPARATION_DIRECTORY.mkdir(mode=0o755, exist_ok=True)
        return cls(directory)

    def server(self, port: int) -> list[str]:
        """sshd in the foreground on every address, which says on its output that it is listening."""
        sshd = find_tool("sshd")
        assert sshd is not None
        return [sshd, "-D", "-e", "-f", str(self.directory / "sshd_config"), "-p", str(port)]

    def client(self, *arguments: str) -> list[str]:
        """ssh as this user, with the throwaway key and without the user's own configuration or known hosts."""
        options = ["UserKnownHostsFile=/dev/null", "StrictHostKeyChecking=no", "LogLevel=ERROR", "BatchMode=yes"]
        options += ["IdentitiesOnly=yes", "ConnectTimeout=20"]
        flags = [word for option in options for word in ("-o", option)]
        key = str(self.directory / "client_key")
        return ["ssh", "-F", "none", "-i", key, "-l", getpass.getuser(), *flags, *arguments]
