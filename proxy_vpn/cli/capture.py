"""`pvpn capture`: a sniffer's view of the running process's flows, into files or a pipe, as pcap."""

from __future__ import annotations

import glob
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import click

from proxy_vpn.cli.options import client, net_option, state_option
from proxy_vpn.daemon.pcap import FILE_HEADER_BYTES, SNAP_LIMIT_BYTES, SNAP_MIN_BYTES, Records
from proxy_vpn.errors import ControlError, PvpnError, StateError, UsageError

if TYPE_CHECKING:
    from proxy_vpn.daemon.client import HeldCapture

MEGABYTE = 1_000_000
_ENDING = (signal.SIGINT, signal.SIGTERM)


@click.command()
@click.option("-w", "--write", metavar="FILE", default="", help="Write to a new FILE; standard output unless given.")
@click.option("--peer", metavar="NAME", default="", help="Only flows to and from this peer.")
@click.option(
    "--snaplen",
    type=click.IntRange(SNAP_MIN_BYTES, SNAP_LIMIT_BYTES),
    default=SNAP_LIMIT_BYTES,
    metavar="BYTES",
    help=f"Keep so much of each packet; {SNAP_LIMIT_BYTES} unless given.",
)
@click.option("--rotate-size", type=click.IntRange(1), metavar="MB", help="Begin a new file (FILE-0001...) after MB.")
@click.option("--rotate-count", type=click.IntRange(1), metavar="N", help="Keep only the last N files.")
@net_option
@state_option
def capture(
    write: str,
    peer: str,
    snaplen: int,
    rotate_size: int | None,
    rotate_count: int | None,
    net: str,
    state: Path | None,
) -> None:
    """Show flows to and from peers as packets, until Ctrl-C.

    \b
      pvpn capture | tcpdump -n -r -
      pvpn capture -w out.pcap --peer peer-b

    Addresses are the peers' virtual ones. TCP conversations are drawn as their two programs had them; no packet of
    the real network is in it.
    """
    path = Path(write) if write not in ("", "-") else None
    if path is None and (rotate_size or rotate_count):
        raise UsageError("only files rotate", "name one with -w")
    if rotate_count and not rotate_size:
        raise UsageError("--rotate-count alone never rotates", "give --rotate-size too")
    if path is None and sys.stdout.isatty():
        raise UsageError("packets are not for a terminal", "give -w FILE, or: pvpn capture | tcpdump -n -r -")
    with (
        client(state).capture(peer, net, snaplen) as held,
        Files(path, rotate_size or 0, rotate_count or 0) if path else Pipe(sys.stdout.buffer) as output,
    ):
        _copy(held, output, f"{peer or 'all peers'} to {path or 'standard output'}")


class Output(Protocol):
    """Where records go."""

    def begin(self, header: bytes) -> None:
        """The pcap file header, which every file begins with."""

    def write(self, records: list[bytes]) -> None:
        """Whole records, on their way when it returns."""


class Pipe:
    """An open stream."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def begin(self, header: bytes) -> None:
        self.write([header])

    def write(self, records: list[bytes]) -> None:
        try:
            self._stream.write(b"".join(records))
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise StateError(f"can't write to standard output: {error.strerror}", "give -w FILE") from None

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class Files:
    """New files (0600), never one that exists: `path`, or with a `limit_mb` numbered ones, the last `keep` of them.

    Raises StateError.
    """

    def __init__(self, path: Path, limit_mb: int = 0, keep: int = 0) -> None:
        self._path = path
        self._limit_bytes = limit_mb * MEGABYTE
        self._keep = keep
        self._header = b""
        self._size = 0
        self._names: list[Path] = []
        self._file: IO[bytes] | None = None
        numbered = f"{glob.escape(path.stem)}-[0-9][0-9][0-9][0-9]*{glob.escape(path.suffix)}"
        if limit_mb and (old := next(path.parent.glob(numbered), None)):
            raise _exists(old)
        self._number = 0
        self._open()

    def begin(self, header: bytes) -> None:
        self._header = header
        self._put(header)

    def write(self, records: list[bytes]) -> None:
        assert self._file is not None
        for record in records:
            if self._limit_bytes and FILE_HEADER_BYTES < self._size > self._limit_bytes - len(record):
                self._open()
                self._put(self._header)
            self._put(record)
        with self._storing():
            self._file.flush()

    def _put(self, data: bytes) -> None:
        assert self._file is not None
        with self._storing():
            self._file.write(data)
        self._size += len(data)

    def _open(self) -> None:
        """The next file; those beyond `keep` go."""
        self.__exit__()
        name = self._path
        if self._limit_bytes:
            self._number += 1
            name = name.with_name(f"{name.stem}-{self._number:04}{name.suffix}")
        with self._storing(name):
            self._file = os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
        self._size = 0
        self._names.append(name)
        while self._keep and len(self._names) > self._keep:
            self._names.pop(0).unlink(missing_ok=True)

    @contextmanager
    def _storing(self, name: Path | None = None) -> Iterator[None]:
        try:
            yield
        except FileExistsError:
            raise _exists(name or self._path) from None
        except OSError as error:
            what = f"can't write {str(name or self._names[-1])!r}: {error.strerror}"
            raise StateError(what, "give another -w") from None

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with self._storing():
                self._file.close()


def _copy(held: HeldCapture, output: Output, what: str) -> None:
    """Pass the stream on until it is ended; the last line says how much it was."""
    records, packets = Records(), 0
    try:
        with _ended_by_signals(held):
            while data := held.read():
                begun = bool(records.header)
                whole = records.feed(data)
                if records.header and not begun:
                    output.begin(records.header)
                    click.echo(f"capturing {what}, until Ctrl-C", err=True)
                if whole:
                    output.write(whole)
                    packets += len(whole)
        if held.dropped is None:
            raise ControlError("the capture ended: the running pvpn stopped", "start it again")
    finally:
        if held.dropped is None:
            with suppress(PvpnError):
                held.end()
        dropped = "" if held.dropped is None else f", {held.dropped} dropped"
        click.echo(f"{packets} packets{dropped}", err=True)


@contextmanager
def _ended_by_signals(held: HeldCapture) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the capture, whose stream then ends; the second one is as usual.

    So no write is torn in two, and what was seen until then is written.
    """
    before: dict[signal.Signals, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def end(number: int, frame: object) -> None:
        restore()
        with suppress(PvpnError):  # then the stream ends too: the process is gone
            held.end()

    before.update({number: signal.signal(number, end) for number in _ENDING})
    try:
        yield
    finally:
        restore()


def _exists(path: Path) -> StateError:
    return StateError(f"{str(path)!r} is there already", "remove it or choose another name: captures overwrite nothing")
