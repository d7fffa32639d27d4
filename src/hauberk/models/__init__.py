"""Networks by name, for small images and vectors; normalisation lives inside the model."""

from hauberk.models.rows import NearestRow
from hauberk.models.spec import MODELS, WIDE_RESNETS, ModelSpec, Normalize

__all__ = ["MODELS", "WIDE_RESNETS", "ModelSpec", "NearestRow", "Normalize"]
