"""What an objective returns."""

from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

from hauberk.core.errors import UserError

PresetName: TypeAlias = Literal["paper", "official"]


class LossTerms(NamedTuple):
    """Per-example terms of an objective; the loss is ``mean(weights * robust + regular)``.

    Attributes:
        robust: ℓ, (B,), what instance reweighting multiplies.
        regular: r, (B,), what it leaves alone.
    """

    robust: Tensor
    regular: Tensor


def is_official(preset: PresetName) -> bool:
    """Read a preset's name.

    Raises:
        UserError: if it is neither ``"paper"`` nor ``"official"``.
    """
    if preset not in ("paper", "official"):
        raise UserError(f"preset is 'paper' or 'official', not {preset!r}")
    return preset == "official"
