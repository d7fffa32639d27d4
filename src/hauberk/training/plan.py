"""What a run is, settled before it starts: parts of the data, settings, objects that are passed in, and what names them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from hauberk.core.errors import UserError, import_object, is_import_path
from hauberk.core.io import json_roundtrip
from hauberk.data import AUGMENTATIONS, DATASETS, ConcatDataset, IndexedDataset, Subset, data_digest, find_augmentation, labels
from hauberk.data.augment import Augmentation
from hauberk.methods import Method
from hauberk.models import ModelSpec
from hauberk.training.config import TrainConfig
from hauberk.training.metrics import find_callback
from hauberk.training.optimizer import MakeOptimizer, MakeScheduler, first_drop

_FROM_PYTHON = "python:"  # in front of the name of an object that was passed in without an import path


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that fixes the result of a run.

    Attributes:
        spec: the model.
        method: bound to its threat model, its schedules fitted to the length of the training.
        config: settings of the loop.
        train: the training part.
        val: the part held out of it for validation, perhaps empty.
        augmentation: applied to each batch before the attack; None for none.
        class_weights: (C,) or None.
        unlabelled: further examples with pseudo-labels, or None.
        processes: that share each batch.
        code: what computes besides the weights, of a network that is not ours; see :func:`hauberk.models.model_code`.
    """

    spec: ModelSpec
    method: Method
    config: TrainConfig
    train: IndexedDataset
    val: IndexedDataset
    augmentation: Augmentation | None
    class_weights: Tensor | None
    unlabelled: IndexedDataset | None = None
    processes: int = 1
    code: str = ""

    @property
    def examples(self) -> IndexedDataset:
        """What the batches index: the training part, and the unlabelled examples behind it."""
        return self.train if self.unlabelled is None else ConcatDataset([self.train, self.unlabelled])

    @property
    def labelled_batch(self) -> int:
        """Labelled examples of each batch."""
        unlabelled = self.config.unlabelled_share if self.unlabelled is not None else 0.0
        return max(1, round(self.config.batch_size * (1 - unlabelled)))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, replays included.

        A last batch that leaves a process with less than two examples is dropped, because BatchNorm cannot use one.
        """
        whole, rest = divmod(len(self.train), self.labelled_batch)
        return max(1, whole + (rest >= 2 * self.processes)) * self.method.n_replays

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.config.epochs * self.steps_per_epoch

    def batches(self, epoch: int) -> list[Tensor]:
        """Return the indices of each batch of an epoch, in an order that depends on seed and epoch only.

        An epoch is one pass over the labelled examples; unlabelled ones fill each batch up to its size.
        """
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.train), generator=generator)
        batches = order.split(self.labelled_batch)[: self.steps_per_epoch // self.method.n_replays]
        if self.unlabelled is not None:
            added = self.config.batch_size - self.labelled_batch
            rounds = -(-len(batches) * added // len(self.unlabelled))
            orders = [torch.randperm(len(self.unlabelled), generator=generator) for _ in range(rounds)]
            more = (torch.cat(orders) + len(self.train)).split(added) if added else ()
            batches = tuple(torch.cat(pair) for pair in zip(batches, more, strict=False)) if added else batches
        return [batch for batch in batches for _ in range(self.method.n_replays)]

    @cached_property
    def _digests(self) -> dict[str, str]:
        """Digests of all that is learnt from; of each source as a whole, which is read in order and not gathered."""
        parts = {
            "digest": self.train.dataset if isinstance(self.train, Subset) else self.train,
            "unlabelled_digest": self.unlabelled,
        }
        return {name: data_digest(source) for name, source in parts.items() if source is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for run.json and cards; settings that an own optimizer or scheduler replaces are left out."""
        config = {name: value for name, value in asdict(self.config).items() if name not in self.config.replaced}
        return {
            "model": self.spec.to_dict() | ({"code": self.code} if self.code else {}),
            "method": self.method.to_dict(),
            "threat": self.method.threat.to_dict(),
            "data": {
                "name": self.train.name,
                "folder": getattr(_whole(self.train), "folder", ""),
                "train": len(self.train),
                "val": len(self.val),
                "unlabelled": 0 if self.unlabelled is None else len(self.unlabelled),
                **self._digests,
            },
            "settings": json_roundtrip(config),
        }


def make_plan(
    spec: ModelSpec,
    method: Method,
    config: TrainConfig,
    source: IndexedDataset,
    unlabelled: IndexedDataset | None = None,
    processes: int = 1,
    code: str = "",
    augmentation: Callable[..., Tensor] | None = None,
) -> Plan:
    """Hold out the validation part, and settle augmentation and class weights. Raises UserError for what does not fit.

    Arguments are the attributes of :class:`Plan`; ``augmentation`` is a callable in place of the name in ``config``.
    """
    train, val = hold_out(source, config)
    named = config.augment
    if named == "auto":
        named = DATASETS[source.name].augmentation if source.name in DATASETS else "none"
    if named in AUGMENTATIONS and named != "none" and len(spec.input_shape) != 3:
        raise UserError(f"augmentation {named!r} is for images, not inputs of shape {spec.input_shape}")
    found = find_augmentation(augmentation or named)
    method = method.with_schedule(config.epochs, first_drop(config))
    weights = _class_weights(config, train, spec.classes)
    plan = Plan(spec, method, config, train, val, found, weights, unlabelled, processes, code)
    smallest = min(plan.labelled_batch, len(train))
    if processes > 1 and smallest < 2 * processes:
        raise UserError(f"batches of {smallest} examples are too small for {processes} processes; each needs two at least")
    return plan


def hold_out(source: IndexedDataset, config: TrainConfig) -> tuple[IndexedDataset, IndexedDataset]:
    """Split, by the seed, into the part to train on, where there must be something left, and the part to validate on."""
    size = config.val_size if config.val_size >= 0 else min(1000, len(source) // 10)
    if size >= len(source):
        raise UserError(f"val_size = {size} leaves nothing to train on: there are {len(source)} examples")
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(config.seed))
    val, train = Subset(source, order[:size].sort().values), Subset(source, order[size:].sort().values)
    return train, val


@dataclass(frozen=True, eq=False)
class PassedObjects:
    """What is passed to a training in place of its own parts.

    Attributes:
        optimizer: makes the optimizer, or None.
        scheduler: makes the learning-rate scheduler, or None.
        augmentation: a callable, or None.
        callbacks: perhaps none.
        names: of those that are given, as fields of ``TrainConfig`` record them.
    """

    optimizer: MakeOptimizer | None
    scheduler: MakeScheduler | None
    augmentation: Callable[..., Tensor] | None
    callbacks: list[Any]
    names: dict[str, Any]


def find_passed(optimizer: Any, scheduler: Any, augmentation: Any, callbacks: Iterable[Any]) -> PassedObjects:
    """Import what is named as ``package.module:attribute``, and name what is passed as an object.

    Arguments are those of :func:`hauberk.train`; "" stands for none. Raises UserError for what cannot be imported or called.
    """
    given = {"optimizer": optimizer, "scheduler": scheduler, "augment": augmentation}
    names: dict[str, Any] = {name: _recorded_name(one) for name, one in given.items() if one is not None and one != ""}
    callbacks = list(callbacks)
    if callbacks:
        names["callbacks"] = tuple(map(_recorded_name, callbacks))
    made: dict[str, Any] = {}
    for name in ("optimizer", "scheduler"):
        one = given[name] if name in names else None
        made[name] = import_object(one, name) if isinstance(one, str) else one
        if made[name] is not None and not callable(made[name]):
            example = "optimizer=functools.partial(torch.optim.Adam, lr=1e-3)"
            raise UserError(f"{name} is a callable that makes one, as {example}; not a {type(made[name]).__name__}")
    own = augmentation if "augment" in names and not isinstance(augmentation, str) else None
    return PassedObjects(made["optimizer"], made["scheduler"], own, [find_callback(one) for one in callbacks], names)


def require_named(config: TrainConfig, given: Mapping[str, Iterable[str]], advice: str) -> None:
    """Refuse, by a UserError, to import what a record names and nobody has named again, or what no name brings back.

    Args:
        config: from the record of a run.
        given: what was named, by field of ``config``.
        advice: how to go on with objects that were made in Python.
    """
    for name, trusted in given.items():
        stored = getattr(config, name)
        for one in stored if isinstance(stored, tuple) else (stored,):
            if one.startswith(_FROM_PYTHON):
                raise UserError(f"{name} of this run was made in Python ({one.removeprefix(_FROM_PYTHON)}); {advice}")
            if is_import_path(one) and one not in trusted:
                raise UserError(f"this run would import {one!r}; add --{name} {one} if you trust it")


def _recorded_name(given: Any) -> str:
    """The import path itself; of an object its qualified name, and the plain arguments of a ``functools.partial``."""
    if isinstance(given, str):
        return given
    if isinstance(given, partial):
        plain = [f"{key}={value}" for key, value in given.keywords.items() if isinstance(value, int | float | str)]
        return f"{_recorded_name(given.func)}({', '.join(plain)})"
    kind = given if hasattr(given, "__qualname__") else type(given)
    return f"{_FROM_PYTHON}{kind.__module__}.{kind.__qualname__}"


def _class_weights(config: TrainConfig, train: IndexedDataset, classes: int) -> Tensor | None:
    if config.class_weights == "none":
        return None
    if config.class_weights == "balanced":
        counts = labels(train).bincount(minlength=classes)
        return len(train) / (classes * counts.clamp_min(1))
    weights = torch.tensor(config.class_weights)
    if len(weights) != classes or not bool((weights >= 0).all()) or not bool(weights.isfinite().all()):
        raise UserError(f"class_weights needs {classes} numbers that are not negative, got {config.class_weights}")
    return weights


def _whole(source: IndexedDataset) -> IndexedDataset:
    return _whole(source.dataset) if isinstance(source, Subset) else source
