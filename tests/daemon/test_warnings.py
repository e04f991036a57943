"""Warnings that come up, stand, and are settled."""

from __future__ import annotations

from proxy_vpn.daemon.warnings import MAX_WARNINGS, Warnings

TAKEN = "another machine calls itself peer-b: it is peer-b-ab12 here - if peer-b was installed anew: pvpn forget peer-b"


def test_a_warning_is_said_once_as_long_as_it_stands() -> None:
    said: list[str] = []
    over: list[bool] = []
    warnings = Warnings(said.append)
    warnings.add("offline", lambda: bool(over))
    warnings.add("offline", lambda: bool(over))
    assert (said, warnings.standing()) == (["offline"], ("offline",))
    over.append(True)
    assert warnings.standing() == ()
    over.clear()
    warnings.add("offline", lambda: bool(over))
    assert (said, warnings.standing()) == (["offline"] * 2, ("offline",))


def test_forgetting_a_machine_settles_what_was_said_of_it() -> None:
    for name, left in [("peer-b", ()), ("peer-b-ab12", ()), ("peer", (TAKEN,)), ("b", (TAKEN,)), ("ab12", (TAKEN,))]:
        warnings = Warnings(lambda text: None)
        warnings.add(TAKEN)
        warnings.settle(name)
        assert warnings.standing() == left, name


def test_the_newest_are_kept() -> None:
    warnings = Warnings(lambda text: None)
    for number in range(3 * MAX_WARNINGS):
        warnings.add(str(number))
    assert warnings.standing() == tuple(map(str, range(2 * MAX_WARNINGS, 3 * MAX_WARNINGS)))
