"""Robustness numbers: evaluation, its results and their intervals, and diagnostics that say whether to believe them."""

from hauberk.core.intervals import wilson_interval
from hauberk.evaluation.attacked_rows import AttackedRows
from hauberk.evaluation.cost import Cost, measure_cost
from hauberk.evaluation.curve import robustness_curve
from hauberk.evaluation.diagnostics import DIAGNOSTICS, DiagnosticSpec
from hauberk.evaluation.estimate import Estimate, Sampled
from hauberk.evaluation.evaluate import evaluate
from hauberk.evaluation.finding import Diagnostic, Finding
from hauberk.evaluation.partial_result import PartialResult, partial_result
from hauberk.evaluation.result import Evaluation, table
from hauberk.evaluation.robustness_curve import RobustnessCurve
from hauberk.evaluation.tabular_risk import Risk, measure_risk

__all__ = [
    "DIAGNOSTICS",
    "AttackedRows",
    "Cost",
    "Diagnostic",
    "DiagnosticSpec",
    "Estimate",
    "Evaluation",
    "Finding",
    "PartialResult",
    "Risk",
    "RobustnessCurve",
    "Sampled",
    "evaluate",
    "measure_cost",
    "measure_risk",
    "partial_result",
    "robustness_curve",
    "table",
    "wilson_interval",
]
