"""The wrong classes that attacks aim at, one after the other."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hauberk.attacks.losses import AIMED, make_loss
from hauberk.attacks.rows import Task
from hauberk.errors import UserError


@dataclass(frozen=True)
class Starts:
    """How often an APGD starts, and what it maximises; the defaults are AutoAttack's.

    Attributes:
        steps: iterations of each start.
        loss: "ce", "dlr", "cw", "evade"; or, with a target in turn, "ce-targeted", "cw-targeted", "dlr-targeted",
            "evade-targeted".
        targets: how many of the most likely wrong classes are targets in turn.
        restarts: independent starts, for each target.
    """

    steps: int = 100
    loss: str = "ce"
    targets: int = 9
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.targets < 1:
            numbers = f"{self.steps}, {self.restarts} and {self.targets}"
            raise UserError(f"apgd needs at least 1 step, restart and target, got {numbers}")
        make_loss(self.loss)

    @property
    def evading(self) -> bool:
        """Whether the model's last output is a class of adversarial inputs."""
        return self.loss.startswith("evade")

    def turns(self, classes: int) -> int:
        """Starts, times targets."""
        return self.restarts * count_targets(self.loss, self.targets, classes)


def count_targets(loss: str, targets: int, classes: int) -> int:
    """How many turns the targets make: 1 for a loss without, otherwise at most one for each wrong class."""
    if loss not in AIMED:
        return 1
    wrong = classes - 1 - (loss == "evade-targeted")
    return min(targets, wrong)


def pick_target(task: Task, loss: str, targets: int) -> Tensor:
    """The wrong class that each example's turn aims at, (b,): the most likely first, by the clean logits."""
    if loss not in AIMED:
        return task.y
    logits = task.clean[:, :-1] if loss == "evade-targeted" else task.clean
    others = logits.scatter(1, task.y[:, None], torch.inf)  # the label comes first, whatever the model thinks
    ranked = others.argsort(dim=1, descending=True, stable=True)
    turn = task.turn % count_targets(loss, targets, task.clean.shape[1])
    return ranked.gather(1, 1 + turn[:, None]).squeeze(1)
