"""The table of translated connections: both ways, ports that are taken, and when a connection is over."""

from __future__ import annotations

from proxy_vpn.doors.tun_table import (
    ACCEPT_S,
    BACKWARD_FIN,
    ENDED_KEPT_S,
    FORWARD_FIN,
    HALF_CLOSED_KEPT_S,
    RESET,
    RESET_KEPT_S,
    SILENT_KEPT_S,
    Connection,
    TunTable,
)
from proxy_vpn.wire.packet import word_sum

OWN, FAR = bytes([100, 64, 0, 2]), bytes([100, 64, 0, 3])
PORT = 7000


def key(source: bytes, target: bytes, source_port: int, target_port: int) -> bytes:
    return source + target + source_port.to_bytes(2, "big") + target_port.to_bytes(2, "big")


def test_a_program_s_connection_meets_the_listener() -> None:
    table = TunTable()
    asked = key(OWN, FAR, 40000, 22)
    connection = table.lead_to_listener(asked, PORT, 0.0)
    assert connection is not None
    there, back = table.rules[asked], table.rules[key(OWN, FAR, PORT, 40000)]
    assert there.region == key(FAR, OWN, 40000, PORT) and back.region == key(FAR, OWN, 22, 40000)
    assert there.connection is back.connection is connection
    for rule, before in ((there, asked), (back, key(OWN, FAR, PORT, 40000))):
        assert (word_sum(before) + rule.delta) % 0xFFFF == word_sum(rule.region)
    assert table.connection(OWN, FAR, PORT, 40000) is connection
    table.remove(connection)
    table.remove(connection)
    assert not table.rules and not len(table)


def test_one_source_port_to_two_services() -> None:
    table = TunTable()
    for service in (22, 80):
        assert table.lead_to_listener(key(OWN, FAR, 40000, service), PORT, 0.0) is not None
    assert len(table) == 2 and len(table.rules) == 4


def test_our_own_connection_meets_the_service_as_the_peer() -> None:
    table = TunTable()
    ours = key(OWN, FAR, 40000, 22)
    assert table.lead_to_service(ours, 0.0) is not None
    there, back = table.rules[ours], table.rules[key(OWN, FAR, 22, 40000)]
    assert there.region == key(FAR, OWN, 40000, 22) and back.region == key(FAR, OWN, 22, 40000)
    assert there.delta == back.delta == 0, "source and target change places: no checksum changes"
    assert table.lead_to_service(ours, 0.0) is None, "these ports are taken"


def test_when_a_connection_is_over() -> None:
    class Flow: ...

    def over_after(idle_s: float, **more: object) -> bool:
        connection = Connection(100.0)
        for name, value in more.items():
            setattr(connection, name, value)
        return connection.is_over(100.0 + idle_s)

    for state, kept_s in (
        ({"ended": RESET}, RESET_KEPT_S),
        ({"ended": FORWARD_FIN | BACKWARD_FIN}, ENDED_KEPT_S),
        ({"flow": Flow()}, ACCEPT_S),
        ({"flow": Flow(), "accepted": True, "done": True}, HALF_CLOSED_KEPT_S),
        ({"flow": Flow(), "accepted": True, "ended": FORWARD_FIN}, SILENT_KEPT_S),
    ):
        assert not over_after(kept_s - 0.1, **state) and over_after(kept_s + 0.1, **state), state


def test_what_is_over_is_forgotten() -> None:
    table = TunTable()
    first, second = (table.lead_to_listener(key(OWN, FAR, port, 22), PORT, 0.0) for port in (40000, 40001))
    assert first is not None and second is not None
    first.ended = RESET
    assert table.remove_ended(RESET_KEPT_S + 1) == [first]
    assert len(table) == 1
