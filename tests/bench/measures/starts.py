"""Coming up: from the start of the near end's process to the first byte, its peer known and up."""

from __future__ import annotations

import time

from tests.bench.measures.samples import Samples, add
from tests.bench.row import Row

# tinc's far end refuses whoever comes back within the second.
PAUSE_S = 1.5


def measure(row: Row, samples: Samples) -> None:
    """One run; seconds as restart."""
    if row.carried_by_processes:
        time.sleep(PAUSE_S)
        add(samples, "restart", row.restart())
