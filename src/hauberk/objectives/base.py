"""What an objective is and returns."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.core.step_context import StepContext

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
