"""What the doctor says: of two ends' networks, and as lines; a whole node's answer is in tests/lab."""

from __future__ import annotations

import pytest

from proxy_vpn.daemon.doctor import buffer, why_apart
from proxy_vpn.daemon.findings import Check, DoctorReply, render
from proxy_vpn.net.udp import RECEIVE_BUFFER_BYTES
from proxy_vpn.wire.messages import Reach

CONE, SYMMETRIC = Reach("cone", True, True), Reach("symmetric", True, False)
ONLY4, ONLY6 = Reach("none", True, False), Reach("none", False, True)


@pytest.mark.parametrize(
    ("ours", "theirs", "said", "hint"),
    [
        (SYMMETRIC, CONE, "another outside port for each destination (symmetric), there a NAT that keeps", "--listen"),
        (CONE, CONE, "a firewall may drop UDP", "--listen"),
        (ONLY4, ONLY6, "one side has only IPv4", "give both"),
        (CONE, None, "does not say", "--listen"),
        (CONE, Reach("\x1b[31m", True, True), "not known yet", "--listen"),
    ],
)
def test_two_ends_explain_why_they_are_apart(ours: Reach, theirs: Reach | None, said: str, hint: str) -> None:
    text, advice = why_apart(ours, theirs)
    assert said in text and hint in advice and "\x1b" not in text


def test_a_small_receive_buffer_is_told_where_datagrams_found_no_room() -> None:
    assert buffer(RECEIVE_BUFFER_BYTES, 1000).state == buffer(212_992, 9).state == "good"
    told = buffer(212_992, 1000)
    assert told.state == "warning" and "208 KB" in told.text and "1000 datagrams" in told.text
    assert f"net.core.rmem_max={RECEIVE_BUFFER_BYTES}," in told.hint


def test_a_check_is_a_line_and_its_hint_another() -> None:
    reply = DoctorReply(
        checks=(
            Check(name="udp", state="good", text="fine"),
            Check(name="peer-b", state="bad", text="no\x1b[2Jpath", hint="open a port"),
        )
    )
    assert render(reply) == ["udp     good  fine", r"peer-b  bad   no\x1b[2Jpath", "    open a port"]
