"""What errors on two classes cost, with and without an attack: recall, AUC, cost."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.attacks import PGD, Attack, Square, frozen_model, logit_margin
from hauberk.attacks.model.check_model import has_gradient
from hauberk.core.errors import UserError
from hauberk.core.numerics import float32_mode
from hauberk.data import IndexedDataset, as_dataset, fetch_for, labels
from hauberk.data.tables.rows import rows_behind
from hauberk.threat import ThreatModel

_BATCH_SIZE = 1000
_STARTS, _STEPS = 3, 50
_QUERIES = 200


@dataclass(frozen=True)
class Risk:
    """Numbers of a classifier of two classes.

    Those under attack are ``recall_attacked``, ``precision_attacked``, ``auc_attacked`` and ``cost_attacked``.

    Attributes:
        n: number of examples.
        positives: fraction of examples of the class of interest.
        recall: fraction of that class which is recognised.
        precision: fraction of alarms that are right; NaN where there are none.
        auc: area under the ROC curve: how probable it is that one of the class of interest has the larger score.
        cost: mean cost of an example, given what a miss and a false alarm cost.
        miss: cost of an example of the class of interest that is not recognised.
        false_alarm: cost of one of the other class that is taken for it.
    """

    n: int
    positives: float
    recall: float
    recall_attacked: float
    precision: float
    precision_attacked: float
    auc: float
    auc_attacked: float
    cost: float
    cost_attacked: float
    miss: float = 1.0
    false_alarm: float = 1.0

    def __str__(self) -> str:
        return (
            f"recall {100 * self.recall:.3g} -> {100 * self.recall_attacked:.3g} %, "
            f"precision {100 * self.precision:.3g} -> {100 * self.precision_attacked:.3g} %, "
            f"AUC {self.auc:.3g} -> {self.auc_attacked:.3g}, cost {self.cost:.3g} -> {self.cost_attacked:.3g} an example "
            f"(clean -> attacked, {self.n:,} examples, {100 * self.positives:.1f} % positive; "
            f"a miss costs {self.miss:g}, a false alarm {self.false_alarm:g})"
        )


def measure_risk(
    model: nn.Module, test_set: Any, *, threat: ThreatModel, miss: float = 1.0, false_alarm: float = 1.0, seed: int = 0
) -> Risk:
    """Measure recall, precision, AUC and cost of a classifier of two classes; class 1 is the one of interest.

    Every example is moved towards the other class: the score of class 1 down where the label is 1, up where it is 0, by
    PGD-50 on the margin (steps of ε/10) from 3 starts, of which the worst point counts; where there are categories (one-hot
    groups) also by Square of 200 queries, and by that alone where the model has no gradient. Like any attack it is a bound:
    a stronger one may do more harm. AUC under attack supposes that all examples of both classes are attacked.

    Args:
        model: classifier from inputs (B, ...) to logits (B, 2), on the device to use; unchanged afterwards.
        test_set: as for :func:`hauberk.evaluate`.
        threat: what the adversary may do.
        miss: cost of an example of class 1 that is taken for class 0.
        false_alarm: cost of one of class 0 that is taken for class 1.
        seed: seed of the random starts.

    Raises:
        UserError: if the model or the labels know other than two classes, or only one is there.
    """
    dataset = as_dataset(test_set)
    parts = []
    with frozen_model(model) as view, float32_mode("fp32"):
        for k, index in enumerate(torch.arange(len(dataset)).split(_BATCH_SIZE)):
            x, y = fetch_for(model, dataset, index)
            parts.append((*_margins(view, x, y, threat, seed + 1000 * k), y))
    clean, attacked, y = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    if int(y.max()) != 1 or int(y.min()) != 0:
        raise UserError("risk is measured of two classes, 0 and 1, and both must be there")
    costs = torch.tensor([false_alarm, miss], dtype=torch.float64)[y]
    under_attack = {f"{name}_attacked": value for name, value in _rates(attacked, y, costs).items()}
    given = {"miss": miss, "false_alarm": false_alarm}
    return Risk(n=len(y), positives=float(y.double().mean()), **_rates(clean, y, costs), **under_attack, **given)


def risk_of_rows(model: nn.Module, dataset: IndexedDataset, *, threat: ThreatModel, seed: int) -> Risk | None:
    """Return what :func:`measure_risk` does of rows of a table of two classes, with its costs; None of all else."""
    rows = rows_behind(dataset)
    if rows is None or rows.classes != 2 or len(labels(dataset).unique()) < 2:
        return None
    miss, false_alarm = rows.costs
    return measure_risk(model, dataset, threat=threat, miss=miss, false_alarm=false_alarm, seed=seed)


def _margins(view: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> tuple[Tensor, Tensor]:
    """Return how much the label's score is above the other's, without an attack and at the worst point found."""
    with torch.no_grad():
        logits = view(x)
        if logits.shape[1] != 2:
            raise UserError(f"risk is measured of two classes, this model has {logits.shape[1]}")
        clean = logit_margin(logits, y)
    worst, attacks = clean, list[Attack[Any]]()
    if has_gradient(view):
        attacks += [PGD(_STEPS, "eps/10", loss="cw", confidence=1e30)] * _STARTS
    if threat.one_hot is not None or not attacks:
        attacks.append(Square(_QUERIES))
    for start, attack in enumerate(attacks):
        moved = attack(view, x, y, threat, seed=seed + start, criterion=_never)
        with torch.no_grad():
            worst = torch.minimum(worst, logit_margin(view(moved.x_adv), y))
    return clean, worst


def _never(logits: Tensor, y: Tensor) -> Tensor:
    """Call nothing a mistake, so that an attack goes on to the end."""
    return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)


def _rates(margin: Tensor, y: Tensor, costs: Tensor) -> dict[str, float]:
    from sklearn.metrics import precision_score, recall_score, roc_auc_score

    wrong = ~(margin > 0)
    predicted = torch.where(wrong, 1 - y, y)
    return {
        "recall": float(recall_score(y, predicted)),
        "precision": float(precision_score(y, predicted, zero_division=float("nan"))),
        "auc": float(roc_auc_score(y, (2 * y - 1) * margin)),
        "cost": float((costs * wrong).mean()),
    }
