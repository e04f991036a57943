"""What the bench knows of each thing it compares: how to start it on two hosts, and how to go through it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from tests.lab.hosts import Host
from tests.support.dialing import Way
from tests.support.processes import Process
from tests.support.tools import find_tool, missing_tools

SOCKS_PORT = 1080
# Addresses inside the tunnels of tools that have some of their own to give.
NEAR_INNER, FAR_INNER = "10.77.0.1", "10.77.0.2"


@dataclass(frozen=True)
class Pair:
    """Two hosts of one tool's own, and an empty directory for its keys and configuration."""

    client: Host
    server: Host
    directory: Path

    def path(self, name: str) -> Path:
        """A new directory in its directory, or the one made before."""
        path = self.directory / name
        path.mkdir(exist_ok=True)
        return path


class Tool(ABC):
    """A way to carry TCP from one host to the other. It knows its peer's address beforehand and finds nobody else."""

    title: str
    """Its row in tables."""
    needs: tuple[str, ...] = ()
    """Programs."""

    def missing(self) -> str | None:
        """Why it can't be measured here, or None."""
        return missing_tools(self.needs)

    def prepare(self, pair: Pair) -> None:  # noqa: B027 - some need nothing
        """Make keys and configuration."""

    @abstractmethod
    def start_far(self, pair: Pair) -> list[Process]:
        """The server's end, started."""

    @abstractmethod
    def start_near(self, pair: Pair) -> list[Process]:
        """The client's end, started; the way may need a while yet."""

    @abstractmethod
    def way(self, pair: Pair) -> Way:
        """How clients on the client's host reach the server's host."""


def program(name: str) -> str:
    """Its full path; AssertionError when `missing` was not asked."""
    path = find_tool(name)
    assert path is not None, name
    return path
