"""Robustness numbers: evaluation, its results and their intervals, and diagnostics that say whether to believe them."""

from hauberk.evaluation.diagnostics import DIAGNOSTICS, DiagnosticSpec
from hauberk.evaluation.evaluate import evaluate
from hauberk.evaluation.result import Diagnostic, Evaluation, Finding, PartialResult, partial_result, table, wilson_interval
from hauberk.evaluation.suites import SUITES, Suite, find_suite

__all__ = [
    "DIAGNOSTICS",
    "SUITES",
    "Diagnostic",
    "DiagnosticSpec",
    "Evaluation",
    "Finding",
    "PartialResult",
    "Suite",
    "evaluate",
    "find_suite",
    "partial_result",
    "table",
    "wilson_interval",
]
