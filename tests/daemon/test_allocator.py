"""The allocator keeps what large buffers have used."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from proxy_vpn.daemon.allocator import keep_buffers
if sys.argv[1] == "kept":
    keep_buffers()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for number in range(110):
    if number == 10:
        before = faults()
    buffers = [b"x" * (512 * 1024) for _ in range(4)]
    buffers.clear()
print(faults() - before)
"""


def faults(how: str) -> int:
    result = subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True, timeout=60)
    return int(result.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_large_buffers_that_come_and_go_take_no_new_pages() -> None:
    assert faults("kept") < 200 < faults("left alone")
