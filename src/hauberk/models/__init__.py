"""Networks by name, for small images and vectors; normalisation lives inside the model."""

from hauberk.models.build import MODELS, WIDE_RESNETS, ModelSpec, model_code
from hauberk.models.layers import Normalize, StraightThroughRound

__all__ = ["MODELS", "WIDE_RESNETS", "ModelSpec", "Normalize", "StraightThroughRound", "model_code"]
