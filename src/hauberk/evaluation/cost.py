"""What mistakes cost, by a cost matrix: without an attack, and at the dearest prediction an attack reaches for each example."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.attacks import PGD, Attack, Square, frozen_model
from hauberk.attacks.model.check_model import has_gradient
from hauberk.attacks.model.queries import ModelQueries
from hauberk.core.arguments import checked
from hauberk.core.errors import UserError
from hauberk.core.numerics import float32_mode
from hauberk.core.random import ExampleRng, content_ids
from hauberk.data import as_dataset, fetch_for
from hauberk.objectives.expected_cost import ExpectedCost, read_costs
from hauberk.threat import ThreatModel
from hauberk.threat.batch import check_inputs, check_labels

_BATCH_SIZE = 1000
_PARTS = 10  # of a test set in order of time
_DEFAULT = (PGD(50, "eps/10", restarts=3),)
_BY_ANSWERS = (Square(1000),)


@dataclass(frozen=True, eq=False)
class Cost:
    """What mistakes cost; of each example in the order of the data.

    Attributes:
        costs: the cost matrix, (C, C), row the true class, column the predicted one.
        y: labels, (N,).
        predicted: class without an attack, (N,).
        worst: the dearest class that an attack has reached, (N,); ``predicted`` where none was dearer.
        in_time_order: whether the examples come in the order of time.
    """

    costs: Tensor
    y: Tensor
    predicted: Tensor
    worst: Tensor
    in_time_order: bool = False

    @property
    def by_example(self) -> tuple[Tensor, Tensor]:
        """Cost of each example without an attack, and the highest found, float64, (N,) each."""
        return self.costs[self.y, self.predicted], self.costs[self.y, self.worst]

    @property
    def mean(self) -> float:
        """Mean cost of an example without an attack."""
        return float(self.by_example[0].mean())

    @property
    def mean_attacked(self) -> float:
        """Mean of the highest cost found for each example: a lower bound of what an adversary can do."""
        return float(self.by_example[1].mean())

    def confusion(self) -> tuple[Tensor, Tensor]:
        """How often each class is taken for each, without an attack and at the dearest one, (C, C) int64 each."""
        count = len(self.costs)
        pairs = ((self.y * count + taken).bincount(minlength=count**2) for taken in (self.predicted, self.worst))
        clean, attacked = (pair.view(count, count) for pair in pairs)
        return clean, attacked

    @checked
    def over(self, periods: Any) -> list[dict[str, Any]]:
        """Split the costs by period, such as the month of each example: do they rise over time, and those under attack faster?

        Args:
            periods: of each example, (N,), anything that sorts, such as texts "2026-11" or numbers of weeks.

        Returns:
            For each period in order: "period", "n", "cost" and "cost_attacked", means of its examples.

        Raises:
            UserError: if there is not one for each example.
        """
        keys = np.asarray(periods)
        if keys.shape != tuple(self.y.shape):
            raise UserError(f"there are {len(self.y)} examples, and periods of shape {keys.shape}")
        clean, attacked = (values.numpy() for values in self.by_example)
        found = []
        for period in np.unique(keys):
            some = keys == period
            means = {"cost": float(clean[some].mean()), "cost_attacked": float(attacked[some].mean())}
            found.append({"period": period.item(), "n": int(some.sum()), **means})
        return found

    def over_time(self) -> list[dict[str, Any]]:
        """Split the costs as :meth:`over` into ten equal parts, from 1, in order of time; none where there is no such order."""
        count = len(self.y)
        return self.over(1 + np.arange(count) * _PARTS // count) if self.in_time_order else []

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        clean, attacked = self.confusion()
        means = {"n": len(self.y), "cost": self.mean, "cost_attacked": self.mean_attacked, "costs": self.costs.tolist()}
        means |= {"over_time": parts} if (parts := self.over_time()) else {}
        return means | {"confusion": clean.tolist(), "confusion_attacked": attacked.tolist()}

    def __str__(self) -> str:
        means = f"cost {self.mean:.4g} -> {self.mean_attacked:.4g} an example"
        return f"{means} (clean -> under attack, at least; {len(self.y):,} examples)"


def dearest_of(parts: Sequence[Cost]) -> Cost:
    """What mistakes cost under several threat models: of each example the dearest class that was reached under any."""
    dearest = torch.stack([part.by_example[1] for part in parts]).argmax(0, keepdim=True)
    return replace(parts[0], worst=torch.stack([part.worst for part in parts]).gather(0, dearest).squeeze(0))


@checked
def measure_cost(
    model: nn.Module,
    test_set: Any,
    *,
    threat: ThreatModel,
    costs: Any,
    attacks: Sequence[Attack[Any]] = (),
    seed: int = 0,
) -> Cost:
    """Find for each example the prediction that costs most within the threat model.

    First each attack maximises the expected cost (:class:`hauberk.objectives.ExpectedCost`); then, from the dearest class
    down, the margin of each class that would cost the example more than what has been reached. What an attack finds is looked
    at again, and counts only inside the threat model. An example that is wrong already can become dearer, and one whose label
    is lost cheaply is not given up. Like any attack it is a bound: the true worst cost is at least this.

    Args:
        model: classifier from inputs (B, ...) to logits (B, C), on the device to use; unchanged afterwards.
        test_set: as for :func:`hauberk.evaluate`.
        threat: what the adversary may do.
        costs: (C, C), row the true class, column the predicted one; 0 on the diagonal, otherwise at least 0. For two classes
            of a table whose last is of interest ``[[0, false_alarm], [miss, 0]]``.
        attacks: with a ``loss`` that is put in; by default PGD-50 (ε/10, 3 restarts), with Square of 1,000 queries besides
            where there are one-hot groups, and instead where the model has no gradient.
        seed: of the random draws, which are keyed by the content of each example.

    Returns:
        Cost.

    Raises:
        UserError: for costs, model and data that do not fit together, and attacks that cannot be told what to maximise.
    """
    matrix, dataset = read_costs(costs), as_dataset(test_set)
    blind = not has_gradient(model)
    chosen = tuple(attacks) or ((() if blind else _DEFAULT) + (_BY_ANSWERS if blind or threat.one_hot is not None else ()))
    for attack in chosen:
        if "loss" not in getattr(attack, "__dataclass_fields__", ()):
            raise UserError(f"{attack} has no loss that the cost could be put in for")
    parts = []
    with frozen_model(model) as view, float32_mode("fp32"):
        for index in torch.arange(len(dataset)).split(_BATCH_SIZE):
            x, y = fetch_for(model, dataset, index)
            y = check_inputs(x, y, threat)
            parts.append((y.cpu(), *_dearest(view, x, y, threat, matrix.to(y.device), chosen, seed)))
    y, predicted, worst = (torch.cat(column) for column in zip(*parts, strict=True))
    return Cost(matrix, y, predicted, worst, dataset.in_time_order)


def _dearest(
    view: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, costs: Tensor, attacks: Sequence[Attack[Any]], seed: int
) -> tuple[Tensor, Tensor]:
    """Return the class without an attack, and the dearest that was reached, (b,) each."""
    queries, rng = ModelQueries(view), ExampleRng(seed, content_ids(x))
    logits = queries.logits(x)
    read_costs(costs, logits.shape[1])
    check_labels(y, len(costs))
    predicted = logits.argmax(1)
    worst = predicted.clone()

    def attack_rows(attack: Attack[Any], rows: Tensor, loss: Callable[..., Tensor], criterion: Callable[..., Tensor]) -> None:
        aimed = replace(attack, loss=loss)  # type: ignore[type-var]
        point = aimed(view, x[rows], y[rows], threat, seed=rng.index_select(rows), criterion=criterion).x_adv
        reached = queries.logits(point).argmax(1)
        dearer = costs[y[rows], reached] > costs[y[rows], worst[rows]]
        worst[rows] = torch.where(dearer & threat.contains(point, x[rows]), reached, worst[rows])

    for attack in attacks:
        if len(rows := (costs[y, worst] < costs[y].amax(1)).nonzero().squeeze(1)):
            attack_rows(attack, rows, ExpectedCost(costs), _never)
    for k in costs.amax(0).argsort(descending=True, stable=True).tolist():
        for attack in attacks:
            if len(rows := (costs[y, k] > costs[y, worst]).nonzero().squeeze(1)):
                attack_rows(attack, rows, _Towards(k), _Reaches(k))
    return predicted.cpu(), worst.cpu()


def _never(logits: Tensor, y: Tensor) -> Tensor:
    """Call nothing a mistake, so that an attack goes on to the end."""
    return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)


@dataclass(frozen=True)
class _Towards:
    """How much the logit of class k is above all others, which an attack maximises to reach that class.

    Attributes:
        k: the class.
    """

    k: int

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """(B, C), (B,) -> (B,)."""
        others = torch.cat([logits[:, : self.k], logits[:, self.k + 1 :]], 1)
        return logits[:, self.k] - others.amax(1)


@dataclass(frozen=True)
class _Reaches:
    """Whether the prediction is class k.

    Attributes:
        k: the class.
    """

    k: int

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """(B, C), (B,) -> (B,) bool."""
        return logits.argmax(1) == self.k
