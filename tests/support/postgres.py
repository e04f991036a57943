"""A real PostgreSQL server with a throwaway database, for one test; and its client, psql."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.support.tools import UNPACKED, find_unpacked, missing_tools

PROGRAMS = "usr/lib/postgresql/*/bin/postgres"
LIBRARIES = "usr/lib/*-linux-*"
USER = "lab"
NOBODY = 65534  # it does not run as root
READY = "ready to accept connections"
PREPARED_WITHIN_S = 60


def unavailable() -> str | None:
    """Why none can be started here, or None when one can."""
    if find_unpacked(PROGRAMS) is None:
        return f"no PostgreSQL: install it, or unpack its packages (dpkg -x) and let {UNPACKED} name the directory"
    return missing_tools(["setpriv"])


@dataclass(frozen=True)
class Postgres:
    """The command lines of a server, whose data is in `directory`, and its client."""

    programs: Path
    libraries: str
    directory: Path

    @classmethod
    @contextmanager
    def prepared(cls) -> Iterator[Self]:
        """With an empty database that everybody may use from everywhere; it is gone afterwards."""
        found = find_unpacked(PROGRAMS)
        assert found is not None
        root, server = found
        directory = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own are closed to other users
        try:
            libraries = os.pathsep.join(str(path) for path in root.glob(LIBRARIES)) if root != Path("/") else ""
            made = cls(server.parent, libraries, directory / "data")
            os.chown(directory, *([NOBODY] * 2 if os.geteuid() == 0 else [-1] * 2))
            words = ["initdb", "--no-sync", "--auth=trust", f"--username={USER}", "-D", str(made.directory)]
            subprocess.run(made._command(*words), check=True, capture_output=True, timeout=PREPARED_WITHIN_S)
            with (made.directory / "pg_hba.conf").open("a") as rules:
                rules.write("host all all all trust\n")
            yield made
        finally:
            shutil.rmtree(directory)

    def server(self, port: int) -> list[str]:
        """It in the foreground on every address, and says READY."""
        settings = ["listen_addresses=*", f"unix_socket_directories={self.directory}", "fsync=off"]
        flags = [word for setting in settings for word in ("-c", setting)]
        return self._command("postgres", "-D", str(self.directory), "-p", str(port), *flags)

    def client(self, host: str, port: int, *statements: str) -> list[str]:
        """psql, which prints rows as bare lines and ends with the first error."""
        flags = [word for statement in statements for word in ("-c", statement)]
        words = [
            "-X",
            "-A",
            "-t",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            host,
            "-p",
            str(port),
            "-U",
            USER,
            "-d",
            "postgres",
        ]
        return self._environment("psql", *words, *flags)

    def _command(self, *words: str) -> list[str]:
        who = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []
        return [*who, *self._environment(*words)]

    def _environment(self, program: str, *words: str) -> list[str]:
        libraries = [f"LD_LIBRARY_PATH={self.libraries}"] if self.libraries else []
        return ["env", *libraries, "LC_ALL=C.UTF-8", str(self.programs / program), *words]
