"""pvpn on a machine whose clock is wrong: `python -m tests.lab.clocked SECONDS COMMAND...`, so many ahead of the time.

Only the wall clock as Python tells it is moved, before anything of pvpn is imported; clocks that count on run as ever.
"""

from __future__ import annotations

import sys
import time


def main() -> int:
    ahead_s = float(sys.argv[1])
    right_time, right_time_ns = time.time, time.time_ns
    time.time = lambda: right_time() + ahead_s
    time.time_ns = lambda: right_time_ns() + int(ahead_s * 1e9)
    from proxy_vpn.cli import main as pvpn

    return pvpn(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
