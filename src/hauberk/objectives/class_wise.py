"""What losses have in common that treat each class by what the last epoch has shown of it."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from hauberk.core.class_means import ClassMeans
from hauberk.core.step_context import BurnIn, Objective, StepContext, check_burn_in


class ClassWiseObjective(Objective, nn.Module):
    """A loss with a radius, and settings, of each class; its subclasses are dataclasses.

    Attributes:
        begin: first epoch, from 0, that looks back; below 1 a part of the training, or "first-drop".
    """

    begin: BurnIn
    looks_back: ClassVar[bool] = True

    def __post_init__(self) -> None:
        nn.Module.__init__(self)
        super().__post_init__()
        check_burn_in(self.begin)
        self.means = ClassMeans()

    @property
    def follows_progress(self) -> bool:
        """Whether the epoch in which it begins depends on the length of the training."""
        return not isinstance(self.begin, int)

    def before_step(self, context: StepContext) -> None:
        """Count what the step before has noted, and set the radius of each example."""
        self.means.begin_step(context)
        values = self.settings_of_classes(context)
        if values is not None:
            context.radii = self.radii_of_classes(values)[context.y].to(context.x.dtype)
            context.largest_radius = self.largest_radius

    def settings_of_classes(self, context: StepContext) -> Tensor | None:
        """Return what the classes are treated by, (C, ...), from what is known of the last epoch; None for all alike."""
        if context.epoch < context.schedule.epochs_of(self.begin) or self.means.values is None:
            return None
        self.means.values = self.means.values.to(context.y.device)
        return self.means.values

    def radii_of_classes(self, values: Tensor) -> Tensor:
        """Return the radius of each class as a part of ε, (C,)."""
        raise NotImplementedError

    @property
    def largest_radius(self) -> float:
        """A bound of the radii."""
        raise NotImplementedError

    def note(self, context: StepContext, rows: Tensor) -> None:
        """Note rows (b, K) of this step, for the mean over each class."""
        assert context.logits_adv is not None  # needed
        self.means.note(context, rows, context.logits_adv.shape[1])


@torch.no_grad()
def rightness(logits: Tensor, y: Tensor) -> Tensor:
    """Say which are right, (b, 1), as numbers."""
    return (logits.argmax(1) == y).float()[:, None]
