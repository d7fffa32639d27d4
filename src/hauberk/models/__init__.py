"""Networks by name, for small images and vectors; normalisation lives inside the model."""

from hauberk.models.build import MODELS, ModelSpec, model_code, model_id
from hauberk.models.layers import Normalize, StraightThroughRound

__all__ = ["MODELS", "ModelSpec", "Normalize", "StraightThroughRound", "model_code", "model_id"]
