"""What the parts of a method are handed, and what an objective is and returns."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from hauberk.core.distributed import SINGLE_PROCESS, World
from hauberk.core.errors import UserError
from hauberk.core.random import ExampleRng


@dataclass(frozen=True)
class Schedule:
    """How long the training is, for what changes with the epoch. The defaults are the MAIL paper's.

    Attributes:
        epochs: of the whole training.
        first_drop: 0-based epoch at which the learning rate first drops.
        known: whether the caller has said so.
    """

    epochs: int = 100
    first_drop: int = 74
    known: bool = False


@dataclass(eq=False)
class StepContext:
    """One batch, or this process's part of one, on its way through a method; filled as the step goes on.

    Attributes:
        model: being trained, in the mode the loss should see.
        x: clean inputs, (b, ...).
        y: labels, (b,) int64.
        threat: the threat model of this step.
        rng: random draws keyed by example.
        epoch: 0-based.
        index: which examples these are, (b,) int64, or None.
        schedule: of the training.
        attack: the :class:`~hauberk.attacks.AttackResult` of the attack; None before it, and where it is a function that
            returns inputs only.
        x_adv: adversarial inputs, (b, ...); None before the attack, and for methods without one.
        logits: of the clean inputs, (b, C), with a graph; None unless the objective or the weighting needs them.
        logits_adv: of the adversarial inputs, likewise.
        measure: what the weights are made from, of the whole batch of all processes, (B,); None without.
        all_weights: weights of the whole batch, (B,); None without.
        world: the processes that share the batch.
        sizes: b of each.
        attack_model: ``attack_model(mode)`` lends, as a context manager, what an attack in that mode should look at: the model,
            or a faster copy of it.
        return_clean_logits: whether the attack should look at the clean inputs too, for the weighting.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Any
    rng: ExampleRng
    epoch: int = 0
    index: Tensor | None = None
    schedule: Schedule = field(default_factory=Schedule)
    attack: Any = None
    x_adv: Tensor | None = None
    logits: Tensor | None = None
    logits_adv: Tensor | None = None
    measure: Tensor | None = None
    all_weights: Tensor | None = None
    world: World = SINGLE_PROCESS
    sizes: Sequence[int] = ()
    attack_model: Callable[[Any], AbstractContextManager[nn.Module]] | None = None
    return_clean_logits: bool = False

    @property
    def progress(self) -> float:
        """Part of the training that is done at the end of this epoch, in (0, 1]."""
        return (self.epoch + 1) / self.schedule.epochs

    def all_gather(self, values: Tensor) -> Tensor:
        """Put the rows of all processes, (b, ...) each, one behind the other: (B, ...)."""
        return values if self.world.size == 1 else self.world.all_gather_rows(values, self.sizes)

    def take_local(self, values: Tensor) -> Tensor:
        """Take this process's rows, (b, ...), out of those of all, (B, ...)."""
        return values if self.world.size == 1 else self.world.take_local(values, self.sizes)

    def mean_one(self, weights: Tensor) -> Tensor:
        """Scale weights (b,) so that their mean over the whole batch of all processes is 1; ones where all are 0."""
        whole = self.all_gather(weights)
        mean = whole.mean()
        scaled = weights / mean.clamp_min(torch.finfo(weights.dtype).tiny)
        return torch.where(mean > 0, scaled, torch.ones_like(weights))

    def mean(self, terms: Tensor) -> Tensor:
        """Return what averaged over the processes, as DDP does with gradients, is the mean over the whole batch."""
        return terms.mean() if self.world.size == 1 else terms.sum() * (self.world.size / sum(self.sizes))


PresetName: TypeAlias = Literal["paper", "official"]

CLEAN, ADVERSARIAL = frozenset({"clean"}), frozenset({"adversarial"})


class LossTerms(NamedTuple):
    """Per-example terms of an objective; the loss is ``mean(weights * robust + regularizer)``.

    Attributes:
        robust: ℓ, (B,), what instance reweighting multiplies.
        regularizer: r, (B,), what it leaves alone.
    """

    robust: Tensor
    regularizer: Tensor


class Objective:
    """A loss of logits and labels with its hyperparameters, which are the fields of its dataclass.

    Anything callable with a :class:`~hauberk.core.step_context.StepContext` that returns the two terms is as good, a module
    too; what it ``needs`` says which logits are computed.

    Attributes:
        needs: "clean", "adversarial" or both.
        equation: what it computes, in one line.
        extra_outputs: outputs the model needs besides the classes of the data.
    """

    needs: ClassVar[frozenset[str]] = CLEAN | ADVERSARIAL
    equation: str
    extra_outputs: ClassVar[int] = 0
    function: ClassVar[Callable[..., LossTerms]]

    def __call__(self, context: StepContext) -> LossTerms:
        """Return the terms of a batch whose logits have been computed."""
        return type(self).function(context.logits, context.logits_adv, context.y, **vars(self))

    def hyperparameters(self) -> dict[str, Any]:
        """Return them by name."""
        return dict(vars(self))

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, str):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise UserError(f"{name} must be a number that is not negative, got {value!r}")


def is_official(preset: PresetName) -> bool:
    """Read a preset's name.

    Raises:
        UserError: if it is neither ``"paper"`` nor ``"official"``.
    """
    if preset not in ("paper", "official"):
        raise UserError(f"preset is 'paper' or 'official', not {preset!r}")
    return preset == "official"
