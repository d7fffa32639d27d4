"""Networks by name, for small images and vectors; normalisation lives inside the model."""

from hauberk.models.build import MODELS, WIDE_RESNETS, ModelSpec, Normalize
from hauberk.models.row_layers import StraightThroughRound

__all__ = ["MODELS", "WIDE_RESNETS", "ModelSpec", "Normalize", "StraightThroughRound"]
