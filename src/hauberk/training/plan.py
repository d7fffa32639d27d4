"""What a run is, settled before it starts: parts of the data, settings, and the record that resuming compares."""

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.core.io import as_json, json_roundtrip
from hauberk.data import DATASETS, ConcatDataset, IndexedDataset, Subset, data_digest, labels
from hauberk.methods import Method
from hauberk.models import ModelSpec
from hauberk.training.config import TrainConfig
from hauberk.training.schedule import first_drop

_ROOMS = ("model", "method", "threat", "data", "settings")
_MAY_DIFFER = ("device", "threads", "save_minutes", "on_divergence", "folder")  # where a run goes on


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that fixes the result of a run.

    Attributes:
        spec: the model.
        method: bound to its threat model.
        settings: of the loop.
        train: the training part.
        val: the part held out of it for validation, perhaps empty.
        augment: name of the augmentation in force.
        class_weights: (C,) or None.
        unlabelled: further examples with pseudo-labels, or None.
        processes: that share each batch.
        code: what computes besides the weights, of a network that is not ours; see :func:`hauberk.models.code.model_code`.
    """

    spec: ModelSpec
    method: Method
    settings: TrainConfig
    train: IndexedDataset
    val: IndexedDataset
    augment: str
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
        share = self.settings.unlabelled_share if self.unlabelled is not None else 0.0
        return max(1, round(self.settings.batch_size * (1 - share)))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, replays included.

        A last batch that leaves a process with less than two examples is dropped, because BatchNorm cannot use one.
        """
        whole, rest = divmod(len(self.train), self.labelled_batch)
        return max(1, whole + (rest >= 2 * self.processes)) * self.method.replays

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.settings.epochs * self.steps_per_epoch

    def batches(self, epoch: int) -> list[Tensor]:
        """Return the indices of each batch of an epoch, in an order that depends on seed and epoch only.

        An epoch is one pass over the labelled examples; unlabelled ones fill each batch up to its size.
        """
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.train), generator=generator)
        batches = order.split(self.labelled_batch)[: self.steps_per_epoch // self.method.replays]
        if self.unlabelled is not None:
            added = self.settings.batch_size - self.labelled_batch
            rounds = -(-len(batches) * added // len(self.unlabelled))
            orders = [torch.randperm(len(self.unlabelled), generator=generator) for _ in range(rounds)]
            more = (torch.cat(orders) + len(self.train)).split(added) if added else ()
            batches = tuple(torch.cat(pair) for pair in zip(batches, more, strict=False)) if added else batches
        return [batch for batch in batches for _ in range(self.method.replays)]

    @cached_property
    def _digests(self) -> dict[str, str]:
        """Digests of all that is learnt from; of each source as a whole, which is read in order and not gathered."""
        parts = {
            "digest": self.train.dataset if isinstance(self.train, Subset) else self.train,
            "unlabelled_digest": self.unlabelled,
        }
        return {name: data_digest(source) for name, source in parts.items() if source is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for run.json and cards."""
        return {
            "model": self.spec.to_dict() | ({"code": self.code} if self.code else {}),
            "method": self.method.to_dict(),
            "threat": self.method.threat.to_dict(),
            "data": {
                "name": self.train.name,
                "folder": self.train.folder,
                "train": len(self.train),
                "val": len(self.val),
                "unlabelled": 0 if self.unlabelled is None else len(self.unlabelled),
                **self._digests,
            },
            "settings": json_roundtrip(asdict(self.settings)),
        }


def make_plan(
    spec: ModelSpec,
    method: Method,
    settings: TrainConfig,
    source: IndexedDataset,
    unlabelled: IndexedDataset | None = None,
    processes: int = 1,
    code: str = "",
) -> Plan:
    """Hold out the validation part, and settle augmentation and class weights.

    Raises:
        UserError: if the parts or weights do not fit the data.
    """
    train, val = hold_out(source, settings)
    augment = "none"
    if settings.augment != "auto":
        augment = settings.augment
    elif source.name in DATASETS:
        augment = DATASETS[source.name].augmentation
    if augment != "none" and len(spec.input_shape) != 3:
        raise UserError(f"augmentation {augment!r} is for images, not inputs of shape {spec.input_shape}")
    method = method.planned(settings.epochs, first_drop(settings))
    class_weights = _class_weights(settings, train, spec.classes)
    plan = Plan(spec, method, settings, train, val, augment, class_weights, unlabelled, processes, code)
    smallest = min(plan.labelled_batch, len(train))
    if processes > 1 and smallest < 2 * processes:
        raise UserError(f"batches of {smallest} examples are too small for {processes} processes; each needs two at least")
    return plan


def hold_out(source: IndexedDataset, settings: TrainConfig) -> tuple[IndexedDataset, IndexedDataset]:
    """Split into the part to train on and the part to validate on, by the seed.

    Raises:
        UserError: if nothing would be left to train on.
    """
    size = settings.val_size if settings.val_size >= 0 else min(1000, len(source) // 10)
    if size >= len(source):
        raise UserError(f"val_size = {size} leaves nothing to train on: there are {len(source)} examples")
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(settings.seed))
    val, train = Subset(source, order[:size].sort().values), Subset(source, order[size:].sort().values)
    return train, val


def run_id(plan: dict[str, Any]) -> str:
    """Return a digest of all in a plan that fixes the result of a run, 16 hexadecimal digits: what a checkpoint belongs to."""
    fixed = {room: {k: v for k, v in plan[room].items() if k not in _MAY_DIFFER} for room in _ROOMS}
    return hashlib.sha256(as_json(fixed).encode()).hexdigest()[:16]


def compare_plans(stored: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to resume a run as something else.

    Raises:
        UserError: naming the first difference.
    """
    for room in _ROOMS:
        before, after = stored.get(room, {}), now[room]
        if not isinstance(before, dict):
            raise UserError(f"the run's record is damaged: its {room} is {before!r:.60}")
        for key in after:
            if key in _MAY_DIFFER or before.get(key) == after[key]:
                continue
            if key.endswith("digest"):
                kind = "unlabelled" if key.startswith("unlabelled") else "training"
                raise UserError(f"this run was started with other {kind} data: inputs, labels or their order differ")
            raise UserError(
                f"this run was started with {room} {key} = {before.get(key)!r}, not {after[key]!r}; use a new folder"
            )


def _class_weights(settings: TrainConfig, train: IndexedDataset, classes: int) -> Tensor | None:
    if settings.class_weights == "none":
        return None
    if settings.class_weights == "balanced":
        counts = labels(train).bincount(minlength=classes)
        return len(train) / (classes * counts.clamp_min(1))
    weights = torch.tensor(settings.class_weights)
    if len(weights) != classes or not bool((weights >= 0).all()) or not bool(weights.isfinite().all()):
        raise UserError(f"class_weights needs {classes} numbers that are not negative, got {settings.class_weights}")
    return weights
