"""Ctrl-C and SIGTERM: finish the step, save, and say how to resume."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ECHO = 3.0  # seconds within which torchrun repeats a signal


class Stop:
    """Whether somebody asked the run to stop."""

    def __init__(self) -> None:
        self.asked = False
        self._first = 0.0  # when

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal: note it. A second Ctrl-C stops at once; torchrun, though, passes on the one we have had."""
        once = "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self._first < _ECHO
        if self.asked and number == signal.SIGINT and not once:
            raise KeyboardInterrupt
        self._first = self._first if self.asked else time.monotonic()
        self.asked = True


@contextmanager
def watch_signals() -> Iterator[Stop]:
    """Watch for SIGINT and SIGTERM while the block runs; the old handlers are put back. Does nothing in other threads."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[signal.Signals, Any] = {s: signal.signal(s, stop.ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
