"""Methods for experiments, which have no name: another loss, or some examples treated in another way."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hauberk.attacks import PGD, run_attack
from hauberk.core.errors import UserError
from hauberk.core.step_context import StepContext
from hauberk.methods import Method
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
        F.cross_entropy(z_adv, y, reduction="none"), mart(z, z_adv, y, beta=BETA).regularizer
    ),
    "BCE on clean inputs": lambda z, z_adv, y: LossTerms(_bce(z, y), mart(z, z_adv, y, beta=BETA).regularizer),
}


def with_loss(name: str, base: Method, loss: Callable[..., LossTerms]) -> Method:
    """Return a method with another loss of logits, logits_adv and y, under another name."""

    def objective(context: StepContext) -> LossTerms:
        return loss(context.logits, context.logits_adv, context.y)

    objective.needs = base.needs  # type: ignore[attr-defined]
    return Method(
        base.threat, base.inner, objective, base.weighting, base.weight_perturbation, name=name, settings=base.settings,
        seed=base.seed,
    )  # fmt: skip


class Split:
    """One method for chosen training examples, another for all others: the attack and the objective of a method.

    ``loss = (1/B) Σ_i ℓ_{m(i)}(x_i, x'_i, y_i) + r_{m(i)}(x_i, x'_i, y_i)``, m(i) the method of example i. Every batch makes
    one pass of clean and one of adversarial inputs in the caller's mode, so that BatchNorm sees whole batches. Weights, AWP
    and schedules of the methods are not used.

    Args:
        chosen: how the chosen examples are treated.
        others: how the rest is.
        places: which are chosen, as places in the training part of the data.
    """

    needs = frozenset({"clean", "adversarial"})

    def __init__(self, chosen: Method, others: Method, places: Tensor):
        self.parts = (others, chosen)
        self.places = places.cpu()

    def groups(self, context: StepContext) -> list[tuple[Method, Tensor]]:
        """Return each method with the places of its examples in the batch.

        Raises:
            UserError: without the index of each example, and on several processes.
        """
        if context.index is None or context.world.size > 1:
            raise UserError("this experiment needs the index of each example, and one process")
        treated = torch.isin(context.index.cpu(), self.places).long().to(context.x.device)
        return [(part, (treated == k).nonzero().squeeze(1)) for k, part in enumerate(self.parts)]

    def attack(self, context: StepContext) -> Tensor:
        """Attack each example as its method does."""
        x_adv = context.x.clone()
        for part, some in self.groups(context):
            attack = part.attack
            if isinstance(attack, PGD) and len(some):
                attack = replace(attack, return_last=True, evaluate_last=False)
                x, y, rng = context.x[some], context.y[some], context.rng.index_select(some)
                x_adv[some] = run_attack(attack, context.model, x, y, context.threat, seed=rng, trusted=True).x_adv
        return x_adv

    def __call__(self, context: StepContext) -> LossTerms:
        """Compute the terms of each example as its method does."""
        assert context.logits is not None  # both are needed
        assert context.logits_adv is not None
        robust = context.logits.new_zeros(len(context.y))
        regularizer = torch.zeros_like(robust)
        for part, some in self.groups(context):
            of = StepContext(context.model, context.x[some], context.y[some], context.threat, context.rng)
            of.logits, of.logits_adv = context.logits[some], context.logits_adv[some]
            one, other = part.objective(of)
            robust, regularizer = robust.index_copy(0, some, one), regularizer.index_copy(0, some, other)
        return LossTerms(robust, regularizer)


def split_method(name: str, chosen: Method, others: Method, places: Tensor) -> Method:
    """Return a method that treats the chosen training examples as one method does, and all others as another."""
    parts = Split(chosen, others, places)
    about = {"seed": others.seed, "chosen": len(places), "sum of places": int(places.sum())}
    return Method(others.threat, parts.attack, parts, name=name, settings=about, seed=others.seed)
