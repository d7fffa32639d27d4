"""Comparisons: methods over seeds, each run kept and never made twice."""

from typing import TYPE_CHECKING

from lazy_loader import attach

if TYPE_CHECKING:
    from hauberk.experiments.comparison import Comparison as Comparison
    from hauberk.experiments.comparison import collect as collect
    from hauberk.experiments.cost_estimate import Estimate as Estimate
    from hauberk.experiments.cost_estimate import estimate as estimate
    from hauberk.experiments.experiment import Experiment as Experiment
    from hauberk.experiments.own_results import compare_results as compare_results
    from hauberk.experiments.result_files import find_results as find_results
    from hauberk.experiments.runner import run_experiment as run_experiment
    from hauberk.experiments.runner import run_experiments as run_experiments
    from hauberk.experiments.runner import run_on_slurm as run_on_slurm
    from hauberk.experiments.runner import train_experiment as train_experiment

# Loaded when first used: the command line reads ``paper_tables`` before there is any need of torch.
__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "comparison": ["Comparison", "collect"],
        "cost_estimate": ["Estimate", "estimate"],
        "experiment": ["Experiment"],
        "own_results": ["compare_results"],
        "result_files": ["find_results"],
        "runner": ["run_experiment", "run_experiments", "run_on_slurm", "train_experiment"],
    },
)
