"""Robustness numbers: the evaluator, its diagnostics, intervals and results."""

from hauberk.evaluation.diagnostics import Diagnostic
from hauberk.evaluation.evaluator import evaluate
from hauberk.evaluation.interval import wilson
from hauberk.evaluation.result import Evaluation, table
from hauberk.evaluation.suites import SUITES, suite_attacks

__all__ = ["SUITES", "Diagnostic", "Evaluation", "evaluate", "suite_attacks", "table", "wilson"]
