"""TunTable: which TCP packets of a TUN device are rewritten into which, both ways of every connection.

A program's connection to far:port is led to a listener of this process: its packets come back into the host as if far
had sent them to the listener, and the listener's answers as if far:port had sent them to the program. A connection that
this process itself makes to a service comes back as if the peer had dialled it. In both cases source and target change
places and only ports are replaced, so of all checksums no more than TCP's has to be adjusted.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

from proxy_vpn.mesh.duplex import Duplex
from proxy_vpn.wire.packet import word_sum

MAX_CONNECTIONS: Final = 4096
ALIAS_TRIES: Final = 64
RESET_KEPT_S: Final = 1.0
FINISHING_S: Final = 1.0  # without a packet: then no kernel has more to send, or nobody to send it to
ENDED_KEPT_S: Final = 2.0  # after the last packet: a lost last ACK is asked for once more
HALF_CLOSED_KEPT_S: Final = 120.0  # done with here, while the program still reads what the kernel holds for it
ACCEPT_S: Final = 10.0
SILENT_KEPT_S: Final = 3 * 3600.0  # beyond the kernel's keepalive, which every socket of this process has on
FORWARD_FIN, BACKWARD_FIN, RESET = 1, 2, 4
_EPHEMERAL: Final = (32768, 60999)


@dataclass(slots=True, eq=False)
class Connection:
    """A connection and the state of its end; `flow`: what the listener's end is to be joined with."""

    used: float
    flow: Duplex | None = None
    accepted: bool = False
    done: bool = False
    ended: int = 0
    keys: tuple[bytes, bytes] = field(default=(b"", b""))

    def is_unfinished(self, now: float) -> bool:
        """Whether what a program that has ended wrote may still be on its way."""
        if self.ended & RESET or self.done:
            return False
        if self.flow is not None and self.ended & FORWARD_FIN:
            return True
        return self.ended != FORWARD_FIN | BACKWARD_FIN and now - self.used < FINISHING_S

    def is_over(self, now: float) -> bool:
        """Whether nothing will come of it any more."""
        idle_s = now - self.used
        if self.ended & RESET:
            return idle_s > RESET_KEPT_S
        if self.ended == FORWARD_FIN | BACKWARD_FIN:
            return idle_s > ENDED_KEPT_S
        if self.flow is not None and not self.accepted:
            return idle_s > ACCEPT_S
        return idle_s > (HALF_CLOSED_KEPT_S if self.done else SILENT_KEPT_S)


class Rule:
    """What becomes of one direction's packets: `region` replaces their addresses and ports, which grow by `delta`."""

    __slots__ = ("connection", "delta", "fin", "region")

    def __init__(self, key: bytes, region: bytes, connection: Connection, fin: int) -> None:
        self.region = region
        self.delta = (word_sum(region) - word_sum(key)) % 0xFFFF
        self.connection = connection
        self.fin = fin


class TunTable:
    """Rules by a packet's addresses and ports: source, target, source port, target port, as they stand in it."""

    def __init__(self) -> None:
        self.rules: dict[bytes, Rule] = {}
        self._connections: dict[Connection, None] = {}
        self._ended: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self._connections)

    @property
    def is_full(self) -> bool:
        return len(self._connections) >= MAX_CONNECTIONS

    def lead_to_listener(self, key: bytes, port: int, now: float) -> Connection | None:
        """A program's connection `key` now meets the listener at `port`; None without a free port to tell it by."""
        own, far, source_port, target_port = split(key)
        listening = port.to_bytes(2, "big")
        alias = source_port
        for _try in range(ALIAS_TRIES):
            back = own + far + listening + alias
            if back not in self.rules:
                there = far + own + alias + listening
                return self._add(key, there, back, far + own + target_port + source_port, now)
            alias = random.randint(*_EPHEMERAL).to_bytes(2, "big")
        return None

    def lead_to_service(self, key: bytes, now: float) -> Connection | None:
        """This process's connection `key` meets the service at its target port, as if its target had dialled it."""
        own, peer, source_port, target_port = split(key)
        back = own + peer + target_port + source_port
        if key in self.rules or back in self.rules:
            return None
        there = peer + own + source_port + target_port
        return self._add(key, there, back, peer + own + target_port + source_port, now)

    def connection(self, own: bytes, far: bytes, own_port: int, far_port: int) -> Connection | None:
        """That whose packets go so."""
        rule = self.rules.get(own + far + own_port.to_bytes(2, "big") + far_port.to_bytes(2, "big"))
        return None if rule is None else rule.connection

    def end(self, connection: Connection, how: int) -> None:
        """A packet ended one direction of it, or reset it."""
        connection.ended |= how
        if connection.ended & RESET or connection.ended == FORWARD_FIN | BACKWARD_FIN:
            self._ended.setdefault(connection)

    def oldest_ended(self) -> Connection | None:
        """That which ended first of those that are kept a little longer; None if there is none."""
        return next(iter(self._ended), None)

    def remove(self, connection: Connection) -> None:
        """Forget it; idempotent."""
        self._ended.pop(connection, None)
        if connection in self._connections:
            del self._connections[connection]
            for key in connection.keys:
                del self.rules[key]

    def is_unfinished(self, now: float) -> bool:
        """The same of any of them."""
        return any(connection.is_unfinished(now) for connection in self._connections)

    def remove_ended(self, now: float) -> list[Connection]:
        """Forget what is over, and tell it."""
        over = [connection for connection in self._connections if connection.is_over(now)]
        for connection in over:
            self.remove(connection)
        return over

    def _add(self, key: bytes, there: bytes, back: bytes, home: bytes, now: float) -> Connection:
        connection = Connection(now, keys=(key, back))
        self._connections[connection] = None
        self.rules[key] = Rule(key, there, connection, FORWARD_FIN)
        self.rules[back] = Rule(back, home, connection, BACKWARD_FIN)
        return connection


def split(key: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Source, target, source port and target port."""
    size = (len(key) - 4) // 2
    return key[:size], key[size : 2 * size], key[-4:-2], key[-2:]
