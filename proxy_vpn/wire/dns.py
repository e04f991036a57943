"""DNS messages as far as they must be read in passing (RFC 1035): which name is asked for, and what to say of it."""

from __future__ import annotations

from typing import Final

HEADER_BYTES: Final = 12
_QUESTION_BYTES: Final = 4  # type and class, after its name
_MAX_LABEL_BYTES: Final = 63
_RESPONSE, _KEPT, _TRUNCATED = 0x80, 0x79, 0x02  # of the third byte; kept: the kind of query, and recursion wanted
_RECURSION_AVAILABLE, _NO_SUCH_NAME = 0x80, 3


def asked_name(query: bytes) -> str | None:
    """The name a query is about, in lower case, without the last dot; None for what is no query about one name."""
    if len(query) < HEADER_BYTES or query[2] & _RESPONSE or query[4:6] != b"\0\1":
        return None
    labels, end = _name(query)
    return b".".join(labels).decode("latin-1").lower() if end else None


def no_such_name(query: bytes) -> bytes:
    """The answer that the name does not exist, to a query of which `asked_name` tells one."""
    _, end = _name(query)
    flags = bytes((_RESPONSE | query[2] & _KEPT, _RECURSION_AVAILABLE | _NO_SUCH_NAME))
    return query[:2] + flags + b"\0\1" + bytes(6) + query[HEADER_BYTES : end + _QUESTION_BYTES]


def answers(response: bytes, query: bytes) -> bool:
    """Whether it is a response to this query."""
    return len(response) >= HEADER_BYTES and response[:2] == query[:2] and bool(response[2] & _RESPONSE)


def is_truncated(response: bytes) -> bool:
    """Whether more would have been said over TCP."""
    return bool(response[2] & _TRUNCATED)


def _name(query: bytes) -> tuple[list[bytes], int]:
    """The labels of the first question's name, and where they end; 0: they don't, or refer elsewhere."""
    labels: list[bytes] = []
    at = HEADER_BYTES
    while at < len(query) and query[at] <= _MAX_LABEL_BYTES:
        size = query[at]
        at += 1 + size
        if not size:
            return labels, at if at + _QUESTION_BYTES <= len(query) else 0
        labels.append(query[at - size : at])
    return labels, 0
