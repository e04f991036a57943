"""What peers may reach on this host."""

from __future__ import annotations

import pytest

from proxy_vpn.config import Expose
from proxy_vpn.errors import UsageError
from proxy_vpn.mesh.policy import Policy


@pytest.mark.parametrize(
    ("spec", "allowed", "loopback"),
    [
        ("default", {22, 80}, set()),
        ("80", {22, 80}, {80}),
        ("none", set(), set()),
        ("none,80", {80}, {80}),
        ("all", {22, 80}, {22, 80}),
    ],
)
def test_rules_decide_by_port(spec: str, allowed: set[int], loopback: set[int]) -> None:
    policy = Policy(Expose.parse(spec))
    for port in (22, 80):
        for udp in (False, True):
            assert policy.allows(port, udp, "peer-b") is (port in allowed)
            assert policy.loopback(port, udp) is (port in loopback)


def test_rules_can_be_extended_and_nonsense_changes_nothing() -> None:
    policy = Policy(Expose.parse("none"))
    policy.extend("8000-8010")
    assert policy.allows(8005, False, "peer-b") and not policy.allows(22, False, "peer-b")
    with pytest.raises(UsageError):
        policy.extend("everything")
    assert not policy.allows(22, False, "peer-b")
