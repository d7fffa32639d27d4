"""The networks of studies, trained side by side in processes before the studies look at them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from hauberk.core.errors import UserError
from hauberk.experiments.processes import in_processes
from hauberk.experiments.progress import Count
from hauberk.experiments.studies.context import StudyContext, silent
from hauberk.experiments.studies.plan import needed_first, planned_variants, planning
from hauberk.experiments.studies.study import Study


@dataclass(frozen=True)
class _Network:
    """A network of a study with one seed, found by its name: what makes it cannot be sent to another process."""

    study: Study
    name: str
    context: StudyContext


def train_side_by_side(studies: Iterable[Study], context: StudyContext, *, jobs: int, threads: int) -> bool:
    """Train the networks of studies that are not in the folder, those first that others are made with.

    A network that cannot be trained is said, and is met again by the study that wants it. One that needs a network that is
    neither in the folder nor among those of the studies is left to its study.

    Args:
        studies: whose networks to train.
        context: what they run on.
        jobs: number of processes side by side.
        threads: CPU threads of each.

    Returns:
        Whether all has been tried; otherwise it was stopped, and the same call goes on.
    """
    rounds = _missing(studies, replace(context, threads=threads, say=silent))
    count = Count(sum(map(len, rounds)), jobs, context.say)

    def told(one: _Network, what: str) -> None:
        count.ended(f"{one.name}, seed {one.context.seed}", what)

    tried = 0
    for todo in rounds:
        in_processes(_train, todo, jobs=jobs, device=context.device, on_end=told)
        tried += len(todo)
        if count.tried < tried:  # stopped: what the next ones are made with is not there
            return False
    return True


def _missing(studies: Iterable[Study], context: StudyContext) -> tuple[list[_Network], list[_Network]]:
    """Return the networks that are not trained: those that need no other, and those that need one of these or a trained one."""
    free: dict[Path, _Network] = {}
    bound: dict[Path, tuple[_Network, Path]] = {}
    imagined = [(one, planning(one)) for one in context.by_seed]
    for study in studies:
        for one, plan in imagined:
            try:
                variants = planned_variants(study, plan)
            except UserError:  # the study says so when it is run
                continue
            for name, variant in variants.items():
                folder = one.folder(variant)
                if folder in free or folder in bound or (folder / "trained.json").exists():
                    continue
                first = needed_first(variant, plan)
                if first is None:
                    free[folder] = _Network(study, name, one)
                else:
                    bound[folder] = (_Network(study, name, one), one.folder(first))
    ready = [one for one, first in bound.values() if first in free or (first / "trained.json").exists()]
    return list(free.values()), ready


def _train(one: _Network, device: str) -> bool:
    """Train a network, in a process of its own."""
    context = replace(one.context, device=device)
    return context.train_variant(planned_variants(one.study, planning(context))[one.name])
