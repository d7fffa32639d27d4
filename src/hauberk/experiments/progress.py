"""How far a comparison or study is: which of how many networks, and which epoch of it, on a terminal or not."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from math import ceil
from pathlib import Path
from threading import Event, Thread

from hauberk.core.errors import UserError
from hauberk.core.io import read_json
from hauberk.training.callbacks import read_metrics

EVERY = 15.0  # seconds between two looks at a training


def _to_go(begun: float, made: int, left: int, jobs: int = 1) -> str:
    """Say how long what is left takes, as if it took as long as what was made since ``begun``, ``jobs`` at a time."""
    rounds = ceil(made / jobs)  # those that run beside the last one that ended are nearly made, too
    more = ceil((made + left) / jobs) - rounds
    if rounds < 1 or more < 1:
        return ""
    return f", about {timedelta(seconds=round((time.monotonic() - begun) / rounds * more))} to go"


class Count:
    """Says how many of the networks that are trained side by side are finished, and how long the others will take.

    Args:
        total: number of networks.
        jobs: how many are trained side by side.
        say: is told, a line for each.

    Attributes:
        tried: number of those that are finished or failed.
    """

    def __init__(self, total: int, jobs: int, say: Callable[[str], None]):
        self.total, self.jobs, self.say = total, jobs, say
        self.tried, self._kept, self._begun = 0, 0, time.monotonic()

    def ended(self, name: str, what: str) -> None:
        """Say what became of a network: "done", "kept" (and how it was made), "stopped" or the reason why it failed."""
        left = ""
        if what != "stopped":
            self.tried += 1
            if what.startswith("kept"):  # from before, so it says nothing of how long the others take
                self._kept, self._begun = self._kept + 1, time.monotonic()
            left = _to_go(self._begun, self.tried - self._kept, self.total - self.tried, self.jobs)
        self.say(f"{self.tried} of {self.total} networks: {name}: {what}{left}")


class Watch:
    """Says which network is being trained, and once in a while which epoch it has reached.

    Args:
        total: number of networks.
        say: is told, a line at a time.
    """

    def __init__(self, total: int, say: Callable[[str], None]):
        self.total, self.say = total, say
        self.number, self.kept, self._begun = 0, 0, time.monotonic()

    @contextmanager
    def network(self, name: str, run: Path) -> Iterator[None]:
        """Say which network it is, and watch its metrics in the folder ``run`` while the block trains it."""
        self.number += 1
        title = f"network {self.number} of {self.total}: {name}"
        self.say(f"{title}{self._left()}")
        self.kept += (run.parent / "trained.json").exists()
        done = Event()
        thread = Thread(target=self._follow, args=(title, run, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _left(self) -> str:
        """Say how long all networks and their attacks will take, as if they took as long as those that were made so far."""
        return _to_go(self._begun, self.number - 1 - self.kept, self.total - self.number + 1)

    def _follow(self, title: str, run: Path, done: Event) -> None:
        last = 0
        while not done.wait(EVERY):
            try:
                rows, epochs = read_metrics(run / "metrics.jsonl"), read_json(run / "run.json")["settings"]["epochs"]
            except (UserError, OSError, KeyError):  # the run has not begun, or is being written
                continue
            if len(rows) > last:
                last, robust = len(rows), rows[-1].get("val_robust_accuracy")
                score = "" if robust is None else f", val PGD {100 * robust:.1f} %"
                self.say(f"{title}: epoch {last} of {epochs}{score}")
