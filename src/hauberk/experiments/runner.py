"""Running experiments: one after another, side by side in processes, or on a Slurm cluster.

Each is kept in its folder; what is finished is never made again.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hauberk.core.errors import UserError
from hauberk.core.io import write_json
from hauberk.core.progress import warn
from hauberk.data import IndexedDataset
from hauberk.evaluation import evaluate
from hauberk.experiments.experiment import Experiment
from hauberk.experiments.processes import in_processes
from hauberk.experiments.record import RECORD, bind_folder, require_same_inputs
from hauberk.methods import Method
from hauberk.training import pick_device


def run_experiment(experiment: Experiment, out: Path, device: str = "auto", threads: int = 0) -> bool:
    """Train and evaluate, or go on with what is in the folder.

    Args:
        experiment: what to do.
        out: folder of the comparison or study.
        device: where.
        threads: CPU threads; 0 leaves torch's choice.

    Returns:
        Whether it is finished; otherwise it was asked to stop, and the same call goes on.

    Raises:
        UserError: if the folder holds another experiment, and as :func:`hauberk.train` and :func:`hauberk.evaluate`.
    """
    if is_done(experiment, out):
        return True
    if threads:
        torch.set_num_threads(threads)
    if not train_experiment(experiment, out, device, threads):
        return False
    folder, place = experiment.folder(out), pick_device(device)
    for which, file in experiment.evaluations.items():
        if (folder / file).exists():
            continue
        found = evaluate(
            experiment.load(folder / "run", which=which, device=place),
            experiment.load_data("test"),
            threat=experiment.threat_model,
            **asdict(experiment.evaluation),
            surrogate=experiment.load(Path(experiment.surrogate), device=place) if experiment.surrogate else None,
            seed=experiment.seed,
            has_reject_class=experiment.make_method().extra_outputs > 0,
            out=folder / file.removesuffix(".json"),
            quiet=True,
        )
        found.save(folder / file)
    return True


def train_experiment(
    experiment: Experiment,
    out: Path,
    device: str = "auto",
    threads: int = 0,
    method: Method | None = None,
    extra: IndexedDataset | None = None,
) -> bool:
    """Train only, or go on; arguments otherwise as in :func:`run_experiment`. The network is in ``run`` of its folder.

    ``method`` is the method itself, for one that ``experiment.method`` does not find by its name; ``extra`` are more
    examples to train on, as :func:`hauberk.train` takes them.
    """
    folder = experiment.folder(out)
    bind_folder(folder, experiment)
    run, done = folder / "run", folder / "trained.json"
    if done.exists():
        if was := require_same_inputs(experiment, out, {}, threads, method):
            warn(f"{run} was made with {was}")
    else:
        method, source = method or experiment.make_method(), experiment.load_data("train")
        more: dict[str, Any] = {} if extra is None else {"extra": extra}
        resume = (run / "run.json").exists()
        trained = experiment.train(source, method, out=run, resume=resume, device=device, threads=threads, **more)
        if trained.interrupted:
            return False
        write_json(done, {"best_epoch": trained.best["epoch"]})
    return True


def is_done(experiment: Experiment, out: Path) -> bool:
    """Whether nothing is left to do.

    Raises:
        UserError: if the folder holds another experiment.
    """
    folder = experiment.folder(out)
    if (folder / RECORD).exists():
        bind_folder(folder, experiment)
    return all((folder / file).exists() for file in experiment.evaluations.values())


def run_experiments(
    experiments: Sequence[Experiment],
    out: Path,
    *,
    jobs: int = 1,
    threads: int = 1,
    device: str = "auto",
    on_progress: Callable[[Experiment, str], None] = lambda one, what: None,
) -> bool:
    """Run what is not finished.

    Args:
        experiments: what to train and evaluate.
        out: folder of the comparison.
        jobs: number of processes side by side; they take the GPUs in turn where there are some.
        threads: CPU threads of each process.
        device: "auto", "cpu", "cuda", ...
        on_progress: called for each experiment with "kept" (and under which other versions it was made), "done" or the reason
            why it failed.

    Returns:
        Whether all experiments are finished; otherwise the same call goes on.

    Raises:
        UserError: if the folder holds other experiments, or finished ones whose data have changed since.
    """
    todo = _unfinished(experiments, out, threads, on_progress)
    return in_processes(partial(run_experiment, out=out, threads=threads), todo, jobs=jobs, device=device, on_end=on_progress)


def run_on_slurm(
    experiments: Sequence[Experiment],
    out: Path,
    *,
    settings: dict[str, Any],
    cluster: str = "slurm",
    device: str = "auto",
    threads: int = 0,
) -> list[Any]:
    """Submit what is not finished, a job for each experiment, through submitit, and return its jobs.

    Args:
        experiments: what to train and evaluate.
        out: folder of the comparison, which all nodes must see.
        settings: those of submitit's executor, e.g. ``{"slurm_partition": "gpu", "timeout_min": 600, "gpus_per_node": 1}``.
        cluster: "slurm", or "local" to try it on this machine.
        device: of each job, as in :func:`run_experiment`.
        threads: CPU threads of each job; 0 leaves torch's choice on its node.

    Raises:
        UserError: if submitit is not installed, and as :func:`run_experiments`.
    """
    try:
        from submitit import AutoExecutor
    except ImportError as error:
        raise UserError("a Slurm cluster needs submitit; pip install submitit") from error
    executor = AutoExecutor(out / "slurm", cluster=cluster)
    executor.update_parameters(**settings)
    todo = _unfinished(experiments, out, threads)
    if not todo:
        return []
    with executor.batch():
        return [executor.submit(run_experiment, one, out.resolve(), device, threads) for one in todo]


def _unfinished(
    experiments: Sequence[Experiment],
    out: Path,
    threads: int = 0,
    on_kept: Callable[[Experiment, str], None] = lambda one, what: None,
) -> list[Experiment]:
    """Return those that are not finished; say what is kept, and refuse what was made with other data than there are now."""
    todo, kept, digests = [], [], dict[Any, str]()
    for one in experiments:
        if is_done(one, out):
            kept.append((one, require_same_inputs(one, out, digests, threads)))
        else:
            todo.append(one)
    for one, was in kept:
        on_kept(one, f"kept, made with {was}" if was else "kept")
    return todo
