"""Networks by name, for small images and vectors; normalisation lives inside the model."""

from hauberk.models.build import MODELS, ModelSpec, model_code, model_id
from hauberk.models.gradient_free import GradientFree
from hauberk.models.layers import Normalize, StraightThroughRound
from hauberk.models.scikit_learn import from_sklearn
from hauberk.models.scikit_learn_layers import InputColumn

__all__ = [
    "MODELS",
    "GradientFree",
    "InputColumn",
    "ModelSpec",
    "Normalize",
    "StraightThroughRound",
    "from_sklearn",
    "model_code",
    "model_id",
]
