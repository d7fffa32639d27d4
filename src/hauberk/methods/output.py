"""What a method returns for one batch."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Output:
    """What a method returns for one batch.

    Attributes:
        loss: scalar with a graph; call ``.backward()`` on it.
        x_adv: adversarial inputs, (B, ...), or None where the method attacks nothing.
        weights: ω, (B,), detached.
        logits: of the clean inputs, (B, C), detached, or None where the objective does not need them.
        logits_adv: of the adversarial inputs, likewise.
        report: scalars that say what the weighting did; empty without one.
        forwards: forward passes of this step, attack included; a fraction where finished examples were left out.
        backwards: backward passes to the input; those to the weights are not counted.
        burning_in: whether all weights are 1 because the epoch is before the end of the burn-in.
    """

    loss: Tensor
    x_adv: Tensor | None
    weights: Tensor
    logits: Tensor | None
    logits_adv: Tensor | None
    report: dict[str, Tensor]
    forwards: float
    backwards: float
    burning_in: bool = False
