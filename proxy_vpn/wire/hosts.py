"""The host text a proxy client sends, checked once: a name or an IP, printable, as it was written."""

from __future__ import annotations

import re

from proxy_vpn.errors import WireError

MAX_HOST_BYTES = 255

# `:` is for an IPv6 address. Nothing here can bend a log line, a header or a resolver.
_HOST = re.compile(rb"[A-Za-z0-9._:-]{1,%d}" % MAX_HOST_BYTES)


def parse_host(raw: bytes) -> str:
    """The host in `raw` (at most 255 bytes, no brackets), its case kept; raises WireError."""
    if _HOST.fullmatch(raw) is None:
        raise WireError(f"{raw[:64]!r} is not a host name", "names that are not ASCII go in their xn-- form")
    return raw.decode("ascii")
