"""What a long command shows: one bar with rate and time remaining on a terminal, plain lines everywhere."""

import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_EVERY = 30.0  # seconds between two lines where there is no terminal


class ProgressBar:
    """The bar and the lines; a context manager.

    Args:
        title: in front of the bar.
        total: number of steps.
        done: steps made before, by the run that is resumed.
        quiet: show nothing.
        unit: what one unit of the rate is.
    """

    def __init__(self, title: str, total: int, done: int = 0, quiet: bool = False, unit: str = "examples"):
        self.console = Console(quiet=quiet, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self._unit = unit
        self._begun = self._printed = time.monotonic()
        self._seen = 0
        self._task: TaskID = self._progress.add_task(title, total=total, completed=done, rate="")

    def advance(self, examples: int, title: str | None = None, steps: int = 1) -> None:
        """Count ``steps`` steps, together of so many examples."""
        self._seen += examples
        task = self._progress.tasks[0]
        rate = f"{self._seen / task.elapsed:,.0f} {self._unit}/s" if task.elapsed else ""
        self._progress.update(self._task, advance=steps, rate=rate, description=title or task.description)

    def reach(self, share: float, title: str | None = None) -> None:
        """Say how much is done in all, from 0 to 1; off a terminal, print the title once in a while."""
        task = self._progress.tasks[0]
        self._progress.update(self._task, completed=share * (task.total or 1), description=title or task.description)
        now = time.monotonic()
        if title and not self.console.is_terminal and now - self._printed > PLAIN_EVERY:
            self._printed = now
            gone = now - self._begun
            self.line(f"{share:.0%} {title}, about {timedelta(seconds=round(gone / max(share, 1e-9) * (1 - share)))} to go")

    def line(self, text: str) -> None:
        """Print one plain line above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()
