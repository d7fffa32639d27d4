"""What a study would train, and about how long that takes: counted and measured before anything is begun."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Literal, NoReturn

import torch
from torch import nn

from hauberk.attacks import find_suite
from hauberk.core.errors import UserError
from hauberk.core.text_table import TextTable
from hauberk.experiments.cost_estimate import pass_seconds, training_seconds
from hauberk.experiments.studies.context import StudyContext, Variant
from hauberk.experiments.studies.reweighting import AUTOATTACKED
from hauberk.experiments.studies.study import Study
from hauberk.methods import Method
from hauberk.training import pick_device

# Passes of attacks over each test example and network, at most: PGD-20, APGD-100, and APGD-100 towards 3 classes; and those of
# studies that attack otherwise.
_PASSES = 20 + 100 + 3 * 100
_OTHER_PASSES = {"restarts": 900, "path-dependence": 250, "saliency": 1, "transfer": 25, "large-epsilon": 120}
_OTHER_PASSES |= {"fgsm-training": 45, "memorising": 80, "ablation": 600, "reweighting-and-attacks": 550 + 6 * 130}
# And over each of the first few: AutoAttack on at most six epochs, forward and backward passes.
_FEW_PASSES = {"reweighting-and-attacks": 6 * sum(one.attack.cost() for one in find_suite("standard").attacks.values()) / 2}


class _Planned(Exception):
    """Raised in place of a training: of the networks of a study, or of one that another is made with."""

    def __init__(self, variants: Mapping[str, Variant], first: Variant | None = None):
        super().__init__()
        self.variants, self.first = variants, first


class _Planning(StudyContext):
    """A context in which a study says what it would train."""

    def networks(self, variants: Mapping[str, Variant]) -> NoReturn:
        raise _Planned(variants)

    def trained_variant(self, variant: Variant, which: Literal["best", "last"] = "best") -> nn.Module:
        raise _Planned({}, variant)


def planning(context: StudyContext) -> StudyContext:
    """Return a context like this one in which nothing is trained, for :func:`planned_variants` and :func:`needed_first`."""
    return _Planning(**{one.name: getattr(context, one.name) for one in fields(context)})


@dataclass(frozen=True)
class PlannedNetwork:
    """Networks of a study that are alike but for their seed.

    Attributes:
        study: its name.
        name: of the network.
        total: number of seeds.
        missing: number of those that are not trained yet.
        training: seconds until these are trained.
        attacks: seconds for the attacks on all of them at most, as if every example were robust.
    """

    study: str
    name: str
    total: int
    missing: int
    training: float
    attacks: float


@dataclass(frozen=True)
class StudyPlan:
    """What studies would train, and what that will cost.

    Attributes:
        networks: of all studies; one that an earlier study trains is not trained again.
        jobs: number of processes that train them side by side.
    """

    networks: tuple[PlannedNetwork, ...]
    jobs: int = 1

    @property
    def table(self) -> TextTable:
        """A row for each network."""
        header = ["network", "study", "to train, of", "seeds", "training", "attacks, at most"]
        rows = []
        for one in self.networks:
            times = _duration(one.training), _duration(one.attacks)
            rows.append([one.name, one.study, one.missing, one.total, *times])
        return TextTable("", header, rows)

    def __str__(self) -> str:
        missing, total = (sum(getattr(one, name) for one in self.networks) for name in ("missing", "total"))
        training, attacks = (sum(getattr(one, name) for one in self.networks) for name in ("training", "attacks"))
        todo = f"{missing} of {total} networks to train, {self.jobs} side by side"
        return f"{todo}: about {_duration(training / self.jobs)}; attacks at most {_duration(attacks)}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def plan_studies(studies: Iterable[Study], context: StudyContext, jobs: int = 1) -> StudyPlan:
    """Count the networks that studies would train, and measure a step of each; nothing is written.

    Args:
        studies: in the order in which they would be run.
        context: what they would run on.
        jobs: number of processes side by side.

    Raises:
        UserError: as :meth:`Study.run` for what does not fit together.
    """
    found: list[PlannedNetwork] = []
    seen: set[Path] = set()
    seconds: dict[Path, float] = {}
    place = pick_device(context.device)
    if context.threads:
        torch.set_num_threads(context.threads)
    one_pass = None
    imagined = planning(context)
    for study in studies:
        for name, variant in planned_variants(study, imagined).items():
            folders = [one.folder(variant) for one in context.by_seed]
            todo = [folder for folder in folders if folder not in seen and not (folder / "trained.json").exists()]
            seen |= set(folders)
            kind = folders[0].parent
            experiment = imagined.experiment(variant)[0]
            source = experiment.load_data("train")
            method = _method_of(imagined, variant)
            if todo and kind not in seconds:
                extra = source if variant.extra else None
                seconds[kind] = training_seconds(experiment, method, source, place, extra)
            if one_pass is None:
                one_pass = pass_seconds(experiment.model_spec(source, method), source, place)
            passes = _OTHER_PASSES.get(study.name, _PASSES)
            n = len(context.examples()[1])
            attacks = one_pass * (passes * n + _FEW_PASSES.get(study.name, 0) * min(n, AUTOATTACKED)) * len(folders)
            training = seconds.get(kind, 0.0) * len(todo)
            found.append(PlannedNetwork(study.name, name, len(folders), len(todo), training, attacks))
    return StudyPlan(tuple(found), jobs)


def planned_variants(study: Study, imagined: StudyContext) -> Mapping[str, Variant]:
    """Return the networks of a study by name."""
    try:
        study.experiment(imagined)
    except _Planned as planned:
        return planned.variants
    return {}


def fitting(studies: Iterable[Study], context: StudyContext) -> tuple[list[Study], dict[str, str]]:
    """Return the studies that can be made of the data and the network, and by name why others cannot; nothing is trained."""
    imagined, fit, refused = planning(context), [], {}
    for study in studies:
        try:
            planned_variants(study, imagined)
        except UserError as error:
            refused[study.name] = str(error)
        else:
            fit.append(study)
    return fit, refused


def needed_first(variant: Variant, imagined: StudyContext) -> Variant | None:
    """Return the network that must be trained before this one can be, or None."""
    for build in (variant.custom, variant.extra):
        try:
            if build:
                build(imagined)
        except _Planned as planned:
            return planned.first
    return None


def _method_of(imagined: StudyContext, variant: Variant) -> Method:
    """Return the method of a variant; AT, whose steps take as long, for one that needs a trained network first."""
    if variant.custom is None:
        return imagined.method(variant.method, **variant.hyperparameters)
    try:
        return variant.custom(imagined)
    except _Planned:
        return imagined.method("at")
