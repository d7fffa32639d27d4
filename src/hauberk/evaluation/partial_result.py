"""What an evaluation knows that still runs, or was stopped."""

from dataclasses import dataclass
from pathlib import Path

from hauberk.core.arguments import checked
from hauberk.core.errors import UserError, printable
from hauberk.core.io import read_json
from hauberk.evaluation.records import CLEAN, COST, PLAN, Records

_MOST = 10**8  # examples times attacks: more would not fit into memory


@dataclass(frozen=True)
class PartialResult:
    """What an evaluation that is still running, or was stopped, knows so far.

    Attributes:
        n: examples in all.
        looked: how many have been looked at without an attack.
        at_most: no more than this fraction of all can be robust: nothing has broken them yet.
        after: for each attack that has begun, with how many examples it is done, of how many that stood before it, and how many
            it has broken. Those with the least margin come first, so that the rest is broken more seldom.
    """

    n: int
    looked: int
    at_most: float
    after: dict[str, tuple[int, int, int]]

    def __str__(self) -> str:
        lines = [f"robust accuracy at most {self.at_most:.1%} (n = {self.n}, {self.looked} looked at)"]
        for attack, (done, standing, broken) in self.after.items():
            lines.append(f"{printable(attack)}: {broken} broken, {done} of {standing} done, those with the least margin first")
        return "\n".join(lines)


@checked
def partial_result(folder: str | Path) -> PartialResult:
    """Read what the evaluation in a folder knows so far.

    Examples are taken in the order of their margin, so the accuracy that is left is near the final one early.

    Raises:
        UserError: if there is no evaluation in the folder, or it is damaged.
    """
    stages, n = _read_plan(Path(folder) / PLAN)
    records = Records(n, stages)
    records.read(Path(folder))
    after, seen = {}, int(records[CLEAN]["known"].sum())
    for attack, earlier in stages.items():
        known = records[attack]["known"]
        if known.any():
            standing = int((records.right & ~records.broken(earlier)).sum())
            after[attack] = (int(known.sum()), standing, int(records[attack]["broken"].sum()))
    return PartialResult(n, seen, (n - seen + int(records.robust.sum())) / n, after)


def _read_plan(path: Path) -> tuple[dict[str, list[str]], int]:
    """Return the attacks, each with those whose victims it leaves alone, and the number of examples."""
    plan = read_json(path)
    stages, n = plan.get("stages"), plan.get("n")
    if not isinstance(stages, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) and name not in (CLEAN, COST) for name in names)
        for names in (list(stages), *stages.values())
    ):
        raise UserError(f"{path} is not the plan of an evaluation: its stages are {stages!r:.40}")
    if type(n) is not int or not 1 <= n <= _MOST // max(len(stages), 1):
        raise UserError(f"{path} is not the plan of an evaluation: n {n!r:.40}")
    return stages, n
