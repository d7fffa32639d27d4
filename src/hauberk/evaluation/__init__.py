"""Robustness numbers: the evaluator, its diagnostics, intervals and results."""

from hauberk.attacks.suites import SUITES, Suite, find_suite
from hauberk.evaluation.diagnostics import Diagnostic
from hauberk.evaluation.evaluate import evaluate
from hauberk.evaluation.interval import wilson_interval
from hauberk.evaluation.partial import PartialResult, partial_result
from hauberk.evaluation.result import Evaluation, table

__all__ = [
    "SUITES",
    "Diagnostic",
    "Evaluation",
    "PartialResult",
    "Suite",
    "evaluate",
    "find_suite",
    "partial_result",
    "table",
    "wilson_interval",
]
