"""Robustness numbers: the evaluator, its diagnostics, intervals and results."""

from hauberk.evaluation.diagnostics import Diagnostic
from hauberk.evaluation.evaluate import evaluate
from hauberk.evaluation.interval import wilson
from hauberk.evaluation.partial import EarlyAnswer, early_answer
from hauberk.evaluation.result import Evaluation, table
from hauberk.evaluation.suites import SUITES, Suite, find_suite

__all__ = [
    "SUITES",
    "Diagnostic",
    "EarlyAnswer",
    "Evaluation",
    "Suite",
    "early_answer",
    "evaluate",
    "find_suite",
    "table",
    "wilson",
]
