"""Networks by name, for small images and vectors; normalisation lives inside the model."""

from hauberk.models.build import MODELS, WIDE_RESNETS, ModelSpec, Normalize
from hauberk.models.row_layers import NearestRow

__all__ = ["MODELS", "WIDE_RESNETS", "ModelSpec", "NearestRow", "Normalize"]
