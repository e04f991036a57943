"""One EasyTier node until SIGTERM; its argument is the configuration as JSON, its Python any that has the package."""

from __future__ import annotations

import json
import signal
import sys
from importlib import import_module


def main() -> None:
    """Imports by name: type checkers have no such package where it is not installed."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    node = import_module("easytier_pyo3").Node(json.loads(sys.argv[1]))
    node.start()
    print("started", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    node.stop()


if __name__ == "__main__":
    main()
