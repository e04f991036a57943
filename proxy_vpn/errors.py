"""The tree of errors: each says whose fault it is and what the user does next.

PvpnError            every error a user can meet; its text is one line
├── UsageError       what the user typed (a spec, a flag, a name)
├── KeyFileError     a key file or a join token
├── StateError       this machine: state directory, port in use, another process
├── ControlError     the running process could not be asked, or said no
├── WireError        bytes from somebody else that break a format
├── FlowError        a flow that could not be opened, with its Status
└── FlowLost         an open flow that ended by a reset or a lost peer, never cleanly
"""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """The answer to a request for a flow, as it crosses the wire in one byte."""

    OK = 0
    POLICY = 1
    REFUSED = 2
    TIMEOUT = 3
    UNREACHABLE = 4
    NO_SUCH_NAME = 5
    LIMIT = 6
    INTERNAL = 7


class PvpnError(Exception):
    """What happened and, after a dash, what to do about it; always one line."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what, hint)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.what} - {self.hint}" if self.hint else self.what
        return " ".join(text.split())


class UsageError(PvpnError):
    """What the user typed makes no sense."""


class KeyFileError(PvpnError):
    """A key file or a join token can't be used."""


class StateError(PvpnError):
    """This machine's state is in the way: a directory, a port, another process."""


class ControlError(PvpnError):
    """The running process could not be asked, or refused what it was asked."""


class WireError(PvpnError):
    """Bytes from another machine or program that break the format they claim."""


class FlowError(PvpnError):
    """A flow could not be opened; `status` is the reason as the wire says it."""

    def __init__(self, status: Status, what: str, hint: str = "") -> None:
        super().__init__(what, hint)
        self.status = status


class FlowLost(PvpnError):
    """An open flow ended by a reset, a lost connection or a lost peer."""
