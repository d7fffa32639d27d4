"""The wrong classes that attacks aim at, one after the other."""

import torch
from torch import Tensor

from hauberk.attacks.rows import Task
from hauberk.objectives.functional import AIMED


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
