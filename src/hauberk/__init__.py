"""Hauberk: adversarial training with instance reweighting, and robustness numbers that can be believed."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hauberk import attacks as attacks
    from hauberk import data as data
    from hauberk import objectives as objectives
    from hauberk import weighting as weighting
    from hauberk.crew import joined_crew as joined_crew
    from hauberk.errors import UserError as UserError
    from hauberk.evaluation import Evaluation as Evaluation
    from hauberk.evaluation import evaluate as evaluate
    from hauberk.methods import Method as Method
    from hauberk.methods import Step as Step
    from hauberk.methods import list_methods as list_methods
    from hauberk.methods import method as method
    from hauberk.threat import L1 as L1
    from hauberk.threat import L2 as L2
    from hauberk.threat import Linf as Linf
    from hauberk.threat import ThreatModel as ThreatModel
    from hauberk.training import Run as Run
    from hauberk.training import load as load
    from hauberk.training import train as train
    from hauberk.weighting import probabilistic_margin as probabilistic_margin

__version__ = "0.1.0"

# Loaded when first used, so that `hauberk --help` does not wait for torch.
_HOME = {
    "attacks": None,
    "data": None,
    "objectives": None,
    "weighting": None,
    "probabilistic_margin": "weighting",
    "UserError": "errors",
    "Evaluation": "evaluation",
    "evaluate": "evaluation",
    "joined_crew": "crew",
    "Method": "methods",
    "Step": "methods",
    "list_methods": "methods",
    "method": "methods",
    "L1": "threat",
    "L2": "threat",
    "Linf": "threat",
    "ThreatModel": "threat",
    "Run": "training",
    "load": "training",
    "train": "training",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hauberk' has no attribute {name!r}")
    home = _HOME[name]
    if home is None:
        return import_module(f"hauberk.{name}")
    return getattr(import_module(f"hauberk.{home}"), name)


def __dir__() -> list[str]:
    return __all__
