"""Which key opens a sealed datagram, and who gets it: indexes that we gave out first, standing keys after."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from proxy_vpn.net.demux import LinkReceiver
from proxy_vpn.net.udp import Path
from proxy_vpn.wire.seal import SealKey, hint_of

Opener = Callable[[bytes, Path], LinkReceiver | None]
"""Takes a sealed datagram whose hint fits; returns the link to settle after this turn, if any."""


class Keyring:
    """All keys of the process; hints are 4 bytes, so a wrong guess costs at most one failed decryption."""

    def __init__(self) -> None:
        self._indexed: dict[bytes, Opener] = {}
        self._standing: list[Callable[[], Iterable[tuple[SealKey, Opener]]]] = []

    def add_index(self, index: bytes, opener: Opener) -> None:
        """Datagrams with this fixed hint go to `opener`."""
        self._indexed[index] = opener

    def remove_index(self, index: bytes, opener: Opener) -> None:
        """Forget an index, unless somebody else has taken it since."""
        if self._indexed.get(index) == opener:
            del self._indexed[index]

    def add_standing(self, keys: Callable[[], Iterable[tuple[SealKey, Opener]]]) -> None:
        """Keys whose hints follow the nonce; asked for anew each time because some change with the date."""
        self._standing.append(keys)

    def receive(self, datagram: bytes, path: Path) -> LinkReceiver | None:
        """Give a sealed datagram to whom its hint names, or drop it unopened."""
        opener = self._indexed.get(hint_of(datagram))
        if opener is not None:
            return opener(datagram, path)
        for keys in self._standing:
            for key, standing in keys():
                if key.matches(datagram):
                    return standing(datagram, path)
        return None
