"""What `pvpn doctor` finds, as typed messages and as lines for people: one Check a line."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from proxy_vpn.daemon.status import SCHEMA, Style, align, printable

TEXT_LIMIT_CHARS: Final = 400
CheckState = Literal["good", "warning", "bad"]
_COLOURS: Final[dict[CheckState, str]] = {"good": "32", "warning": "33", "bad": "31"}


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One finding: what was looked at, how it is, and what to do if it is not good."""

    name: str
    state: CheckState
    text: str
    hint: str = ""


class DoctorReply(msgspec.Struct, frozen=True, kw_only=True):
    """All findings, our own network's first."""

    schema: int = SCHEMA
    checks: tuple[Check, ...] = ()


def render(reply: DoctorReply, *, colour: bool = False) -> list[str]:
    """One aligned line a check, and what to do beneath those that are not good."""
    style = Style(colour)
    rows = align(
        [(printable(check.name), check.state, printable(check.text, TEXT_LIMIT_CHARS)) for check in reply.checks]
    )
    lines = []
    for row, check in zip(rows, reply.checks, strict=True):
        lines.append(style.paint(row, _COLOURS[check.state]))
        if check.hint:
            lines.append(f"    {printable(check.hint, TEXT_LIMIT_CHARS)}")
    return lines
