"""Methods that have no name elsewhere: with a part of MART's loss changed, and two methods for two parts of the data."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.core.step_context import StepContext
from hauberk.experiments.studies.context import StudyContext
from hauberk.methods import Method
from hauberk.methods import method as make_method
from hauberk.objectives import LossTerms, at, kl_divergence, mart

BETA = 5.0  # of MART; with AT it is ours, as the sources give no value for the regulariser of that experiment
Loss = Callable[..., LossTerms]  # of logits, logits_adv and y


def with_loss(name: str, base: Method, loss: Loss) -> Method:
    """Return a method without weights under another name, with another loss."""

    def objective(context: StepContext) -> LossTerms:
        return loss(context.logits, context.logits_adv, context.y)

    return Method(base.threat, base.inner, objective, name=name, settings=base.settings, seed=base.seed)


def split_method(name: str, chosen: Method, others: Method, places: Tensor) -> Method:
    """Return a method that treats some training examples as one method does, and all others as another.

    ``loss = (1/B) Σ_i ℓ_{m(i)}(x_i, x'_i, y_i) + r_{m(i)}(x_i, x'_i, y_i)``, m(i) the method of example i. Every batch makes
    one pass of clean and one of adversarial inputs in the caller's mode, so that BatchNorm sees whole batches. Weights, AWP
    and schedules of the methods are not used.

    Args:
        name: of the new method.
        chosen: how the chosen examples are treated.
        others: how the rest is.
        places: (N,), which are chosen, as places in the training part of the data.
    """

    def parts(context: StepContext) -> Iterator[tuple[Method, Tensor, StepContext]]:
        """Give each method, the places of its examples in the batch, and these as a batch of their own."""
        if context.index is None or context.world.size > 1:
            raise UserError("this experiment needs the index of each example, and one process")
        treated = torch.isin(context.index.cpu(), places.cpu()).to(context.x.device)
        for part, mask in ((others, ~treated), (chosen, treated)):
            some = mask.nonzero().squeeze(1)
            rng = context.rng.index_select(some)
            yield part, some, StepContext(context.model, context.x[some], context.y[some], context.threat, rng)

    def attack(context: StepContext) -> Tensor:
        x_adv = context.x.clone()
        for part, some, batch in parts(context):
            if part.inner is not None and len(some):
                found = part.inner(batch)
                x_adv[some] = found if isinstance(found, Tensor) else found.x_adv
        return x_adv

    def objective(context: StepContext) -> LossTerms:
        assert context.logits is not None  # both are needed
        assert context.logits_adv is not None
        robust = context.logits.new_zeros(len(context.y))
        regularizer = torch.zeros_like(robust)
        for part, some, batch in parts(context):
            batch.logits, batch.logits_adv = context.logits[some], context.logits_adv[some]
            one, other = part.objective(batch)
            robust, regularizer = robust.index_copy(0, some, one), regularizer.index_copy(0, some, other)
        return LossTerms(robust, regularizer)

    about = {"seed": others.seed, "chosen": len(places), "sum of places": int(places.sum())}
    return Method(others.threat, attack, objective, name=name, settings=about, seed=others.seed)


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
    "CE for BCE": lambda z, z_adv, y: LossTerms(at(z, z_adv, y).robust, mart(z, z_adv, y, beta=BETA).regularizer),
    "BCE on clean inputs": lambda z, z_adv, y: LossTerms(_bce(z, y), mart(z, z_adv, y, beta=BETA).regularizer),
}


def with_eps(name: str, factor: float, **hyperparameters: Any) -> Callable[[StudyContext], Method]:
    """Return what makes a method that trains with a multiple of ε, for one seed of a study."""

    def build(one: StudyContext) -> Method:
        preset = one.base.presets.preset
        return make_method(name, one.threat.scaled(factor), preset=preset, seed=one.seed, **hyperparameters)

    return build
