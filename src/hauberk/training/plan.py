"""What a run is, settled before it starts: parts of the data, settings, objects that are passed in, and what names them."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from inspect import isclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hauberk.core.arguments import check_callable, shown
from hauberk.core.errors import UserError, in_one_line, unknown_name
from hauberk.core.imports import code_digest, import_object, is_foreign, is_import_path, trusted_name
from hauberk.core.io import json_roundtrip
from hauberk.data import DATASETS, ConcatDataset, IndexedDataset, Subset, data_digest, find_augmentation, labels
from hauberk.data.augmentation import AUGMENTATIONS, Augmentation, Mixing, is_built_in
from hauberk.data.standard_subset import first_of
from hauberk.methods import Method
from hauberk.methods.parts import FROM_PYTHON
from hauberk.models import ModelSpec
from hauberk.threat import threats_of
from hauberk.training.config import OPTIMIZERS, TrainConfig
from hauberk.training.schedule import MakeOptimizer, MakeScheduler, first_drop

_HOOKS = ("on_train_begin", "on_step_end", "on_epoch_end", "on_train_end")


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that fixes the result of a run.

    Attributes:
        spec: the model.
        method: bound to its threat model, its schedules fitted to the length of the training.
        config: settings of the loop.
        train: the training part.
        val: what is validated on, perhaps empty.
        val_held_out: whether that is held out of the training data, not passed in besides them.
        augmentation: applied to each batch before the attack; None for none.
        again: applied, in the second half, to examples that are learned by heart; None for none.
        mixing: applied to each batch and others of it after that; None for none.
        class_weights: (C,) or None.
        extra: further examples to train on, or None.
        processes: number of processes that share each batch.
        code: what computes besides the weights, of a network that is not ours; see :func:`hauberk.models.model_code`.
        make_optimizer: what was passed in to make the optimizer, or None.
        make_scheduler: what was passed in to make the learning-rate scheduler, or None.
        callbacks: objects with hooks.
        begun_from: the file that the first weights are from, and their digest; empty for fresh weights.
    """

    spec: ModelSpec
    method: Method
    config: TrainConfig
    train: Subset
    val: IndexedDataset
    val_held_out: bool
    augmentation: Augmentation | None
    again: Augmentation | None
    mixing: Mixing | None
    class_weights: Tensor | None
    extra: IndexedDataset | None
    processes: int
    code: str
    make_optimizer: MakeOptimizer | None
    make_scheduler: MakeScheduler | None
    callbacks: list[Any]
    begun_from: Mapping[str, str]

    @property
    def examples(self) -> IndexedDataset:
        """What the batches index: the training part, and the extra examples behind it."""
        return self.train if self.extra is None else ConcatDataset([self.train, self.extra])

    @property
    def own_batch(self) -> int:
        """Examples of each batch that are of the training part."""
        extra = self.config.extra_share if self.extra is not None else 0.0
        return max(1, round(self.config.batch_size * (1 - extra)))

    @cached_property
    def soft_labels(self) -> bool:
        """Whether some examples are learnt with probabilities of the classes in place of their label."""
        first = torch.arange(1)
        return self.mixing is not None or (self.extra is not None and self.extra.soft_labels(first)[0] is not None)

    @cached_property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, replays included.

        A last batch that leaves a process with less than two examples is dropped, because BatchNorm cannot use one.
        """
        whole, rest = divmod(len(self.train), self.own_batch)
        return max(1, whole + (rest >= 2 * self.processes)) * self.method.n_replays

    @cached_property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.config.epochs * self.steps_per_epoch

    def batches(self, epoch: int) -> list[Tensor]:
        """Return the indices of each batch of an epoch, in an order that depends on seed and epoch only.

        An epoch is one pass over the training part; extra examples fill each batch up to its size.
        """
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(len(self.train), generator=generator)
        batches = order.split(self.own_batch)[: self.steps_per_epoch // self.method.n_replays]
        added = self.config.batch_size - self.own_batch
        if self.extra is not None and added:
            rounds = -(-len(batches) * added // len(self.extra))
            orders = [torch.randperm(len(self.extra), generator=generator) for _ in range(rounds)]
            more = (torch.cat(orders) + len(self.train)).split(added)
            batches = tuple(torch.cat(pair) for pair in zip(batches, more, strict=False))
        return [batch for batch in batches for _ in range(self.method.n_replays)]

    @cached_property
    def _digests(self) -> dict[str, str]:
        """Digests of all that is learnt from or chosen by; of each source as a whole, which is read in order, not gathered."""
        own_val = None if self.val_held_out else self.val
        sources = {"digest": self.train.dataset, "extra_digest": self.extra, "val_digest": own_val}
        return {name: data_digest(source) for name, source in sources.items() if source is not None}

    @cached_property
    def _foreign_code(self) -> dict[str, str]:
        """Digests of the code of parts that are not Hauberk's; callbacks, which may be mended meanwhile, are left out."""
        parts = {"augmentation": self.augmentation, "optimizer": self.make_optimizer, "scheduler": self.make_scheduler}
        return foreign_code(self.method) | _digests_of_foreign(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for run.json and cards; settings that the optimizer or scheduler replaces are left out."""
        config = {name: value for name, value in asdict(self.config).items() if name not in self.config.replaced}
        return {
            "model": self.spec.to_dict() | ({"code": self.code} if self.code else {}) | dict(self.begun_from),
            "method": self.method.to_dict(),
            "threat": self.method.threat.to_dict(),
            "data": {
                "name": self.train.name,
                "folder": self.train.folder,
                "train_size": first_of(self.train.dataset),
                "train": len(self.train),
                "val": len(self.val),
                "extra": 0 if self.extra is None else len(self.extra),
                "extra_file": "" if self.extra is None else self.extra.folder,
                "extra_labels": "" if self.extra is None else self.extra.labelled_by,
                **self._digests,
            },
            "settings": json_roundtrip(config),
            "code": self._foreign_code,
        }


def foreign_code(method: Method) -> dict[str, str]:
    """Return digests of the code of those parts of a method that are not wholly Hauberk's, and of its teacher's weights."""
    parts = {
        "attack": method.inner,
        "objective": method.objective,
        "weighting": method.weighting,
        "weight_perturbation": method.weight_perturbation,
        "targets": method.targets,
    }
    found = _digests_of_foreign(parts)
    return found if method.teacher is None else found | {"teacher": method.teacher.digest}


def _digests_of_foreign(parts: Mapping[str, Any]) -> dict[str, str]:
    return {name: code_digest(part) for name, part in parts.items() if is_foreign(part)}


def make_plan(
    spec: ModelSpec,
    method: Method,
    config: TrainConfig,
    source: IndexedDataset,
    extra: IndexedDataset | None = None,
    val: IndexedDataset | None = None,
    processes: int = 1,
    code: str = "",
    passed: Mapping[str, Any] = MappingProxyType({}),
    begun_from: Mapping[str, str] = MappingProxyType({}),
) -> Plan:
    """Hold out the validation part where there is none, import what is named, and settle augmentation and class weights.

    Arguments are attributes of :class:`Plan`; ``source``, all labelled examples to train on; and ``passed``, what was passed
    in, by the field of ``config`` that records it: "optimizer", "scheduler", "augment", "callbacks".

    Raises:
        UserError: for what does not fit, or cannot be imported or called.
    """
    train, held_out = hold_out(source, config)
    named = config.augment
    if named == "auto":
        named = DATASETS[source.name].augmentation if source.name in DATASETS else "none"
    if not is_built_in(config.augment_again):
        raise UserError(
            f"augment_again is one of {', '.join(AUGMENTATIONS)}, or several joined by '+', not {config.augment_again!r}"
        )
    for one in (named, config.augment_again):
        _check_built_in(one, spec, method)
    own = passed.get("augment", named)
    plan = Plan(
        spec=spec,
        method=method.with_schedule(config.epochs, first_drop(config)),
        config=config,
        train=train,
        val=held_out if val is None else val,
        val_held_out=val is None,
        augmentation=find_augmentation(named if isinstance(own, str) else own),
        again=find_augmentation(config.augment_again),
        mixing=Mixing(config.mixup, config.cutmix, config.mixup_prob) if config.mixup or config.cutmix else None,
        class_weights=_class_weights(config, train, spec.classes - method.extra_outputs),
        extra=extra,
        processes=processes,
        code=code,
        make_optimizer=_find_maker("optimizer", passed.get("optimizer", "") if config.has_own_optimizer else ""),
        make_scheduler=_find_maker("scheduler", passed.get("scheduler", "")),
        callbacks=[_find_callback(one) for one in passed.get("callbacks", ())],
        begun_from=begun_from,
    )
    _check_soft_labels(plan)
    if config.patience and not len(plan.val):
        raise UserError("patience waits for better results on held-out examples, and there are none: set val_size or val_set")
    if config.fawa and not len(plan.val):
        raise UserError("fawa looks at the classes of held-out examples, and there are none: set val_size or val_set")
    smallest = min(plan.own_batch, len(train))
    if processes > 1 and smallest < 2 * processes:
        raise UserError(f"batches of {smallest} examples are too small for {processes} processes; each needs two at least")
    return plan


def _check_built_in(named: str, spec: ModelSpec, method: Method) -> None:
    """Raise UserError where a built-in augmentation does not fit the inputs."""
    if named == "none" or not is_built_in(named):
        return
    if len(spec.input_shape) != 3:
        raise UserError(f"augmentation {named!r} is for images, not inputs of shape {spec.input_shape}")
    boxes = {(threat.low, threat.high) for threat in threats_of(method.threat)}
    if _changes_colors(named) and boxes != {(0.0, 1.0)}:
        raise UserError(f"augmentation {named!r} is for images in [0, 1], not in the box of {method.threat}")


def _changes_colors(augmentation: str) -> bool:
    """Whether a built-in augmentation takes 0 for black and 1 for white."""
    return any(part.startswith(("idbh", "auto", "rand")) and part != "random-erasing" for part in augmentation.split("+"))


def _check_soft_labels(plan: Plan) -> None:
    """Raise UserError where the data have, or mixing makes, probabilities that the method or the network does not fit."""
    if plan.again is not None and plan.soft_labels:
        raise UserError(
            "augment_again compares with labels, and mixup, cutmix or the extra data have probabilities; leave it out"
        )
    if plan.mixing is not None and plan.mixing.cutmix and len(plan.spec.input_shape) != 3:
        raise UserError(f"cutmix is for images, not inputs of shape {plan.spec.input_shape}")
    if plan.soft_labels and not getattr(plan.method.objective, "takes_targets", True):
        what = "mixup and cutmix make" if plan.mixing is not None else "extra data with probabilities of the classes have"
        raise UserError(f"{what} soft labels, and the loss of {plan.method.name} is not defined for them")
    classes = plan.spec.classes - plan.method.extra_outputs
    soft = None if plan.extra is None else plan.extra.soft_labels(torch.arange(1))[0]
    if soft is not None and soft.shape[1] != classes:
        raise UserError(f"the extra examples have probabilities of {soft.shape[1]} classes, the network has {classes}")


def hold_out(source: IndexedDataset, config: TrainConfig) -> tuple[Subset, Subset]:
    """Split, by the seed or by time, into the part to train on, where something must be left, and the part to validate on."""
    size = config.val_size if config.val_size >= 0 else min(1000, len(source) // 10)
    if size >= len(source):
        raise UserError(f"val_size = {size} leaves nothing to train on: there are {len(source)} examples")
    if source.in_time_order:
        order = torch.arange(len(source) - 1, -1, -1)
    else:
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(config.seed))
    val, train = (Subset(source, part.sort().values) for part in (order[:size], order[size:]))
    return train, val


def _class_weights(config: TrainConfig, train: IndexedDataset, classes: int) -> Tensor | None:
    if config.class_weights == "none":
        return None
    if config.class_weights == "balanced":
        counts = labels(train).bincount(minlength=classes)
        return len(train) / (classes * counts.clamp_min(1))
    weights = torch.tensor(config.class_weights)
    if len(weights) != classes or not bool((weights >= 0).all()) or not bool((weights > 0).any()):
        wanted = f"{classes} numbers that are not negative, and not all 0"
        raise UserError(f"class_weights needs {wanted}, got {shown(config.class_weights)}")
    return weights


def _find_maker(kind: str, given: Any) -> Any:
    if given == "":
        return None
    if kind == "optimizer" and isinstance(given, str) and not is_import_path(given):
        raise unknown_name(kind, given, OPTIMIZERS)
    found = import_object(given, kind) if isinstance(given, str) else given
    if isinstance(found, Optimizer | LRScheduler) or not callable(found):
        example = "optimizer=functools.partial(torch.optim.Adam, lr=1e-3)"
        raise UserError(f"{kind} is a callable that makes one, as {example}; not {shown(found)}")
    check_callable(kind, found, "parameters" if kind == "optimizer" else "optimizer", makes=True)
    return found


def _find_callback(callback: Any) -> Any:
    """Return an object with hooks: the one given or named, or one that calls a function after each epoch."""
    found = import_object(callback, "callback") if isinstance(callback, str) else callback
    try:
        found = found() if isclass(found) else found
    except TypeError as error:
        raise UserError(f"pass an instance of the callback {found.__qualname__}: {in_one_line(error)}") from error
    if any(hasattr(found, hook) for hook in _HOOKS):
        return found
    if not callable(found):
        raise UserError(f"a callback is a function of metrics or has one of {', '.join(_HOOKS)}; {shown(found)} has none")
    check_callable("a callback", found, "metrics")
    return SimpleNamespace(on_epoch_end=lambda trainer, metrics: found(metrics))


def require_named(config: TrainConfig, given: Mapping[str, Iterable[str]], advice: str) -> None:
    """Refuse, by a UserError, to import what a record names and nobody has named again, or what no name brings back.

    ``given`` is what was named, by field of the recorded ``config``; ``advice``, how to go on with objects made in Python.
    """
    for name, trusted in given.items():
        stored = getattr(config, name)
        for one in stored if isinstance(stored, tuple) else (stored,):
            if one.startswith(FROM_PYTHON):
                raise UserError(f"{name} of this run was made in Python ({one.removeprefix(FROM_PYTHON)}); {advice}")
            trusted_name(one, one if one in trusted else "", f"--{name} ")


def recorded_name(given: Any) -> Any:
    """Return how ``TrainConfig`` records what was passed in.

    That is an import path itself; of an object its qualified name, and the plain arguments of a ``functools.partial``; of a
    tuple that of each.
    """
    if isinstance(given, tuple):
        return tuple(map(recorded_name, given))
    if isinstance(given, str):
        return given
    if isinstance(given, partial):
        plain = [f"{key}={value}" for key, value in given.keywords.items() if isinstance(value, int | float | str)]
        return f"{recorded_name(given.func)}({', '.join(plain)})"
    kind = given if hasattr(given, "__qualname__") else type(given)
    return f"{FROM_PYTHON}{kind.__module__}.{kind.__qualname__}"
