"""What a method is made of, and what passes between its parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from hauberk.attacks.steps import Ascent
from hauberk.core.distributed import World
from hauberk.methods.awp import WeightPerturbation
from hauberk.methods.registry import MethodSpec
from hauberk.methods.weights import Weighting
from hauberk.objectives import LossTerms, PresetName


@dataclass(frozen=True)
class Horizon:
    """How long the training is, for schedules of the method. The defaults are the MAIL paper's.

    Attributes:
        epochs: of the whole training.
        first_drop: 0-based epoch at which the learning rate first drops.
        known: whether the caller has said so.
    """

    epochs: int = 100
    first_drop: int = 74
    known: bool = False


@dataclass(frozen=True, eq=False)
class Choices:
    """The choices a method is made of, settled.

    Attributes:
        recipe: the row of the table.
        preset: "paper" or "official".
        attack: the inner maximisation, or None.
        terms: the objective with its hyperparameters.
        weighting: instance weights.
        awp: weight perturbation.
    """

    recipe: MethodSpec
    preset: PresetName
    attack: Ascent | None
    terms: Callable[..., LossTerms]
    weighting: Weighting
    awp: WeightPerturbation


@dataclass(frozen=True, eq=False)
class Pass:
    """What one pass of the loss showed; weights and measure of the whole batch, the others of this process's part."""

    loss: Tensor
    logits: Tensor | None
    logits_adv: Tensor | None
    weights: Tensor
    measure: Tensor | None


@dataclass(frozen=True, eq=False)
class Batch:
    """What the loop hands over: a batch, or this process's part of one.

    Attributes:
        x: clean inputs, (b, ...).
        y: labels, (b,).
        index: which examples these are, (b,), or None.
        class_weights: (C,) or None.
        world: the processes that share the batch.
        sizes: b of each.
    """

    x: Tensor
    y: Tensor
    index: Tensor | None
    class_weights: Tensor | None
    world: World
    sizes: Sequence[int]

    def mean(self, terms: Tensor) -> Tensor:
        """Return what averaged over the processes, as DDP does with gradients, is the mean over the whole batch."""
        return terms.mean() if self.world.size == 1 else terms.sum() * (self.world.size / sum(self.sizes))
