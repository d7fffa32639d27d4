"""Comparisons: methods over seeds, each run kept and never made twice."""

from hauberk.experiments.comparison import Comparison, collect, heading
from hauberk.experiments.estimate import Estimate, estimate
from hauberk.experiments.experiment import Cell, run_cell, train_cell
from hauberk.experiments.layout import as_csv, as_latex, as_markdown, rich_table
from hauberk.experiments.runner import run_cells, run_on_slurm

__all__ = [
    "Cell",
    "Comparison",
    "Estimate",
    "as_csv",
    "as_latex",
    "as_markdown",
    "collect",
    "estimate",
    "heading",
    "rich_table",
    "run_cell",
    "run_cells",
    "run_on_slurm",
    "train_cell",
]
