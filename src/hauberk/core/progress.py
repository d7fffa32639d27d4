"""Long work: how far it is, and the signals that ask it to stop."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from hauberk.core.errors import printable

PLAIN_EVERY = 30.0  # seconds between two lines where there is no terminal


def warn(text: str) -> None:
    """Print a line that has to be read even where nothing else is printed."""
    print(printable(text), file=sys.stderr, flush=True)


class _TimeLeft(TimeRemainingColumn):
    """The time that is left, as it was said; where nothing was, as the steps so far let expect."""

    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        if left is None:
            return super().render(task)
        return Text(str(timedelta(seconds=round(left))), style="progress.remaining")


class ProgressBar:
    """A bar, with lines above it; a context manager. One within another is shown below it.

    Args:
        title: in front of the bar.
        total: number of steps.
        done: steps made before, by the run that is resumed.
        quiet: show nothing.

    Attributes:
        hidden: whether it shows nothing.
    """

    def __init__(self, title: str, total: int, done: int = 0, quiet: bool = False):
        self.console = Console(quiet=quiet, highlight=False)
        steps = "{task.description}", BarColumn(), "{task.percentage:3.0f} %", "{task.fields[rate]}"
        times = TimeElapsedColumn(), "left", _TimeLeft(elapsed_when_finished=False)
        self.hidden = quiet
        hidden = quiet or not self.console.is_terminal
        own = Progress(*steps, *times, console=self.console, transient=True, disable=hidden)
        self._progress: Progress = _SHOWN[-1]._progress if _SHOWN and not hidden else own
        self._begun = self._printed = time.monotonic()
        self._seen, self._total = 0, total
        self._task = self._progress.add_task(title, total=total, completed=done, rate="", left=None)

    def advance(self, examples: int, title: str) -> None:
        """Count one step of so many examples."""
        self._seen += examples
        elapsed = next(task.elapsed for task in self._progress.tasks if task.id == self._task)
        rate = f"{self._seen / elapsed:,.0f} examples/s" if elapsed else ""
        self._progress.update(self._task, advance=1, rate=rate, description=title)

    def reach(self, fraction: float, title: str | None = None, left: float | None = None) -> None:
        """Say how much is done in all, from 0 to 1, and how many seconds are left; off a terminal, print it once in a while.

        Where it is not said how long is left, that is as if all were to go on as fast as so far.
        """
        now = time.monotonic()
        left = (now - self._begun) / max(fraction, 1e-9) * (1 - fraction) if left is None else left
        self._progress.update(self._task, completed=fraction * self._total, description=title, left=left)
        if title and not self.console.is_terminal and now - self._printed > PLAIN_EVERY:
            self._printed = now
            self.line(f"{fraction:.0%} {title}, about {timedelta(seconds=round(left))} to go")

    def line(self, text: str) -> None:
        """Print one plain line above the bar."""
        self.console.print(printable(text), markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a line that has to be read, above the bar; where that is quiet, on stderr."""
        warn(text) if self.console.quiet else self.line(text)

    def __enter__(self) -> Self:
        if not self._progress.disable:
            self._progress.start()
            _SHOWN.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        if self in _SHOWN:
            _SHOWN.remove(self)
            self._progress.remove_task(self._task)
            if not _SHOWN:
                self._progress.stop()


_SHOWN: list[ProgressBar] = []  # bars on the terminal, the outermost first


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
