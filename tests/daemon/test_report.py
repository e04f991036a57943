"""What a start says."""

from __future__ import annotations

from proxy_vpn.daemon.report import SERVICES_NOTICED, first_notice
from proxy_vpn.daemon.status import MAX_REMOTE_TEXT_CHARS, ExposeStatus, OpenPort


def test_a_first_start_says_what_is_open_and_what_is_no_protection() -> None:
    one = ExposeStatus(open=(OpenPort(port=2024, protocol="tcp", address="0.0.0.0"),))
    assert first_notice(one) == [
        "peers can reach 2024/tcp here; change it with --expose (rules: default)",
        "note: this host's firewall does not apply to what peers can reach",
    ]
    assert first_notice(ExposeStatus(rules="none", open=()))[0].startswith("peers can reach nothing here; ")
    assert first_notice(ExposeStatus())[0].startswith("peers can reach what the rules allow here; ")


def test_a_long_list_leaves_room_for_the_rest_of_the_line() -> None:
    many = tuple(OpenPort(port=port, protocol="tcp", address="::") for port in range(60000, 60500))
    first, _ = first_notice(ExposeStatus(open=many))
    assert len(first) <= MAX_REMOTE_TEXT_CHARS
    assert f"and {len(many) - SERVICES_NOTICED} more here" in first
