"""Studies: methods compared over seeds, and the papers' tables."""

from hauberk.studies.catalogue import STUDIES, find_study
from hauberk.studies.cell import Cell, run_cell
from hauberk.studies.comparison import Comparison, collect, heading
from hauberk.studies.estimate import Estimate, estimate
from hauberk.studies.finding import Finding
from hauberk.studies.runner import run_cells, run_on_slurm
from hauberk.studies.setting import Setting
from hauberk.studies.tables import as_csv, as_latex, as_markdown, rich_table

__all__ = [
    "STUDIES",
    "Cell",
    "Comparison",
    "Estimate",
    "Finding",
    "Setting",
    "as_csv",
    "as_latex",
    "as_markdown",
    "collect",
    "estimate",
    "find_study",
    "heading",
    "rich_table",
    "run_cell",
    "run_cells",
    "run_on_slurm",
]
