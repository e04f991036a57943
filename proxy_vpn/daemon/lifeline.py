"""A lifeline: standard input, held open by the parent; however the parent ends, this process then stops too."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress

_READ_BYTES = 4096


def stop_with_stdin() -> None:
    """From now on the end of standard input is a SIGTERM to this process."""
    threading.Thread(target=_watch, name="lifeline", daemon=True).start()


def _watch() -> None:
    with suppress(OSError):
        while os.read(0, _READ_BYTES):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
