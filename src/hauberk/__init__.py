"""Hauberk: adversarial training with instance reweighting, and robustness numbers that can be believed."""

from typing import TYPE_CHECKING

from lazy_loader import attach

if TYPE_CHECKING:
    from hauberk import attacks as attacks
    from hauberk import data as data
    from hauberk import models as models
    from hauberk import objectives as objectives
    from hauberk import weighting as weighting
    from hauberk.certification.certify import certify as certify
    from hauberk.certification.result import Certificates as Certificates
    from hauberk.certification.smoothing import SmoothedCertificates as SmoothedCertificates
    from hauberk.certification.smoothing import certify_smoothed as certify_smoothed
    from hauberk.certification.smoothing import predict_smoothed as predict_smoothed
    from hauberk.core.distributed import init_distributed as init_distributed
    from hauberk.core.errors import UserError as UserError
    from hauberk.core.numerics import float32_mode as float32_mode
    from hauberk.evaluation import Evaluation as Evaluation
    from hauberk.evaluation.curve import robustness_curve as robustness_curve
    from hauberk.evaluation.evaluate import evaluate as evaluate
    from hauberk.evaluation.robustbench import benchmark as benchmark
    from hauberk.evaluation.robustness_curve import RobustnessCurve as RobustnessCurve
    from hauberk.experiments.config_file import read_config as read_config
    from hauberk.experiments.own_results import compare_results as compare_results
    from hauberk.methods import AWP as AWP
    from hauberk.methods import RWP as RWP
    from hauberk.methods import SAM as SAM
    from hauberk.methods import Method as Method
    from hauberk.methods import Step as Step
    from hauberk.methods import StepContext as StepContext
    from hauberk.methods import list_methods as list_methods
    from hauberk.methods import register_method as register_method
    from hauberk.methods.registry import method as method
    from hauberk.threat import L0 as L0
    from hauberk.threat import L1 as L1
    from hauberk.threat import L2 as L2
    from hauberk.threat import Linf as Linf
    from hauberk.threat import ThreatModel as ThreatModel
    from hauberk.training.export import load as load
    from hauberk.training.train import Run as Run
    from hauberk.training.train import train as train
    from hauberk.weighting import probabilistic_margin as probabilistic_margin

__version__ = "0.1.0"

# Loaded when first used, so that `hauberk --help` does not wait for torch.
__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=["attacks", "data", "models", "objectives", "weighting"],
    submod_attrs={
        "certification.certify": ["certify"],
        "certification.result": ["Certificates"],
        "certification.smoothing": ["SmoothedCertificates", "certify_smoothed", "predict_smoothed"],
        "core.distributed": ["init_distributed"],
        "core.errors": ["UserError"],
        "core.numerics": ["float32_mode"],
        "evaluation.curve": ["robustness_curve"],
        "evaluation.evaluate": ["evaluate"],
        "evaluation.robustness_curve": ["RobustnessCurve"],
        "evaluation.result": ["Evaluation"],
        "evaluation.robustbench": ["benchmark"],
        "experiments.config_file": ["read_config"],
        "experiments.own_results": ["compare_results"],
        "methods": ["AWP", "RWP", "SAM", "Method", "Step", "StepContext", "list_methods", "method", "register_method"],
        "threat": ["L0", "L1", "L2", "Linf", "ThreatModel"],
        "training.export": ["load"],
        "training.train": ["Run", "train"],
        "weighting": ["probabilistic_margin"],
    },
)
