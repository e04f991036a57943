"""Bare UDP from one host to another, as a bound for all that goes through it: datagrams of full size, no encryption."""

from __future__ import annotations

from tests.bench.measures.samples import Samples, add
from tests.bench.row import PATIENCE_S, PORT
from tests.lab.hosts import Host, Lab

TITLE = "bare UDP"


def hosts(lab: Lab) -> tuple[Host, Host]:
    """Two of its own."""
    near, far = lab.host("sender"), lab.host("receiver")
    lab.cable(near, far)
    return near, far


def measure(lab: Lab, near: Host, far: Host, samples: Samples, seconds: float) -> None:
    """One run; Mbit/s that arrive, as up1 and without offloads as up1_plain."""
    for suffix in ("", "_plain"):
        lab.set_offloads(not suffix)
        try:
            arriving = far.python("-m", "tests.bench.datagrams", "receive", str(PORT))
            arriving.wait_for("^ready")
            to = ("--host", far.address, "--seconds", str(seconds))
            near.python("-m", "tests.bench.datagrams", "send", str(PORT), *to).result(PATIENCE_S)
            add(samples, f"up1{suffix}", arriving.result(PATIENCE_S)["mbit_s"])
        finally:
            lab.set_offloads(True)
