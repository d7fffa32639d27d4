"""Methods for experiments, which have no name: another loss, or some examples treated in another way."""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hauberk.attacks import ascend
from hauberk.core.distributed import SINGLE_PROCESS, World
from hauberk.core.errors import UserError
from hauberk.core.random import ExampleRng
from hauberk.methods import Method, Output
from hauberk.objectives import LossTerms, at, kl_divergence, mart

BETA = 5.0  # of MART; with AT it is ours, as the sources give no value for the regulariser of that experiment
Loss = Callable[[Tensor, Tensor, Tensor], LossTerms]  # of logits, logits_adv and y


def _bce(logits: Tensor, y: Tensor) -> Tensor:
    return mart(logits, logits, y).robust


def _one_minus_p(logits: Tensor, y: Tensor) -> Tensor:
    return 1 - logits.softmax(1).gather(1, y[:, None]).squeeze(1)


def at_with_kl(logits: Tensor, logits_adv: Tensor, y: Tensor) -> LossTerms:
    """``CE(f(x'), y) + β·KL(p(x)‖p(x'))``."""
    return LossTerms(at(logits, logits_adv, y).robust, BETA * kl_divergence(logits, logits_adv))


# MART's loss ``BCE(p(x'), y) + β·KL(p(x)‖p(x'))·(1 - p_y(x))`` with one part changed; z are logits.
MART_LOSSES: dict[str, Loss] = {
    "without 1-p": lambda z, z_adv, y: LossTerms(_bce(z_adv, y), BETA * kl_divergence(z, z_adv)),
    "without KL": lambda z, z_adv, y: LossTerms(_bce(z_adv, y), BETA * _one_minus_p(z, y)),
    "without both": lambda z, z_adv, y: mart(z, z_adv, y, beta=0.0),
    "CE for BCE": lambda z, z_adv, y: LossTerms(
        F.cross_entropy(z_adv, y, reduction="none"), mart(z, z_adv, y, beta=BETA).regular
    ),
    "BCE on clean inputs": lambda z, z_adv, y: LossTerms(_bce(z, y), mart(z, z_adv, y, beta=BETA).regular),
}


def with_loss(name: str, base: Method, loss: Loss) -> Method:
    """Return a method with another loss, under another name."""
    return Method(name, base.threat, replace(base.choices, terms=loss), base.settings)


class SplitMethod(Method):
    """One method for chosen training examples, another for all others.

    ``loss = (1/B) Σ_i ℓ_{m(i)}(x_i, x'_i, y_i) + r_{m(i)}(x_i, x'_i, y_i)``, m(i) the method of example i. Every batch makes
    one pass of clean and one of adversarial inputs in the caller's mode, so that BatchNorm sees whole batches. Weights, AWP
    and schedules of the methods are not used.

    Args:
        name: of the experiment.
        chosen: how the chosen examples are treated.
        others: how the rest is.
        places: which are chosen, as places in the training part of the data.
    """

    def __init__(self, name: str, chosen: Method, others: Method, places: Tensor):
        self.parts = (others, chosen)
        self.places = places.cpu()
        about = {"seed": others.settings["seed"], "chosen": len(places), "sum of places": int(places.sum())}
        super().__init__(name, others.threat, others.choices, about)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        epoch: int | None = None,
        *,
        index: Tensor | None = None,
        class_weights: Tensor | None = None,
        rng: ExampleRng | None = None,
        eps_scale: float = 1.0,
        world: World = SINGLE_PROCESS,
        sizes: Any = None,
    ) -> Output:
        """Attack a batch and compute the loss to minimise. ``index`` (B,) is needed; several processes are not supported."""
        if index is None or world.size > 1 or class_weights is not None:
            raise UserError("this experiment needs the index of each example, one process and no class weights")
        rng = rng or ExampleRng(self.settings["seed"], torch.arange(len(x), device=x.device), stage=self._calls)
        self._calls += 1
        threat = self.threat if eps_scale == 1.0 else self.threat.scaled(eps_scale)
        treated = torch.isin(index.cpu(), self.places).long().to(x.device)
        groups = [(part, (treated == k).nonzero().squeeze(1)) for k, part in enumerate(self.parts)]
        x_adv = x.clone()
        for part, some in groups:
            if part.attack is not None and len(some):
                seen = ascend(
                    model, x[some], y[some], threat, part.attack, keep="last-unseen", seed=rng.rows(some), trusted=True
                )
                x_adv[some] = seen.x_adv
        logits, logits_adv = model(x), model(x_adv)
        terms = [part.choices.terms(logits[some], logits_adv[some], y[some]) for part, some in groups]
        loss = torch.cat([robust + regular for robust, regular in terms]).mean()
        return Output(loss, x_adv, logits.new_ones(len(y)), logits.detach(), logits_adv.detach(), {}, 0, 0)

    def planned(self, epochs: int, first_drop: int | None = None) -> "SplitMethod":
        """Return the method as it is: nothing of it changes with the epoch."""
        return copy(self)
