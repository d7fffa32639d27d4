"""hb.train: one call from a model and data to a trained model on disk."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hauberk.attacks.model.check_model import check_model, check_module
from hauberk.core.arguments import checked
from hauberk.core.distributed import get_world, local_rank, translate_lost_process, usable_device
from hauberk.core.errors import SCHEMA_ERRORS, UserError, in_one_line, shell_quoted, unknown_name
from hauberk.core.lock import exclusive_lock
from hauberk.core.numerics import deterministic_mode
from hauberk.core.progress import ProgressBar, watch_signals
from hauberk.data import IndexedDataset, as_dataset, as_extra, check_dataset, fetch_for, labels
from hauberk.data.dataset import in_memory
from hauberk.data.default_model import default_model
from hauberk.methods import Method
from hauberk.methods import method as make_method
from hauberk.methods.registry import find_method
from hauberk.models import ModelSpec, model_code
from hauberk.models.build import tensors_digest
from hauberk.threat import ThreatModel, threats_of
from hauberk.threat.batch import check_labels
from hauberk.training import checkpoint
from hauberk.training.callbacks import MetricsLog, TensorBoardLog
from hauberk.training.config import OPTIMIZERS, TrainConfig
from hauberk.training.config_file import write_config
from hauberk.training.export import load
from hauberk.training.metrics import chance_line
from hauberk.training.plan import make_plan, recorded_name
from hauberk.training.published import resolve
from hauberk.training.trainer import Trainer


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A finished or interrupted training run.

    Attributes:
        model: the caller's model, in evaluation mode; with the best weights by validation if the run is finished.
        folder: where it is kept, or None.
        metrics: one row per epoch, as in metrics.jsonl.
        best: epoch (from 1, as in the metrics) and metrics of the best checkpoint; of those after the burn-in, where the method
            has one. Empty where no epoch has ended.
        interrupted: whether it was asked to stop before its end.
    """

    model: nn.Module
    folder: Path | None
    metrics: list[dict[str, Any]]
    best: dict[str, Any]
    interrupted: bool

    def __repr__(self) -> str:
        shown = {name: value for name, value in self.best.get("metrics", {}).items() if name.startswith("val_")}
        scores = "".join(f", {name} {value:.3f}" for name, value in shown.items())
        best = f"best epoch {self.best['epoch']}{scores}" if self.best else "none has ended"
        where = f"in {str(self.folder)!r}" if self.folder else "not kept"
        state = ", interrupted" if self.interrupted else ""
        return f"Run({type(self.model).__name__}, {len(self.metrics)} epochs, {best}, {where}{state})"


@checked
def train(
    model: nn.Module | str | ModelSpec,
    train_set: Any,
    *,
    method: str | Method = "at",
    threat: "ThreatModel | Sequence[ThreatModel] | None" = None,  # as_threat checks it
    out: str | Path | None = None,
    resume: bool = False,
    optimizer: Any = "",
    scheduler: Any = "",
    augmentation: Callable[..., Tensor] | str = "",
    callbacks: Iterable[Any] = (),
    schedule_preset: Literal["published", "express", "robust"] = "published",
    val_set: Any = None,
    extra: Any = None,
    init: str | Path = "",
    quiet: bool = False,
    report_every: int = 1,
    **settings: Any,
) -> Run:
    """Train a model, choose the best epoch on examples that are not learnt from, and keep everything in ``out``.

    Within a ``torch.distributed`` process group (see :func:`hauberk.init_distributed`) the processes share each batch, and end
    with the same weights; only rank 0 writes.

    Args:
        model: a network from inputs (B, ...) in the box to logits (B, C), trained in place; or the name of a built-in one, or a
            ``ModelSpec``.
        train_set: a pair (x, y) of arrays, x (N, ...) floating or uint8 images, y (N,) integers; a map-style ``Dataset``;
            or what ``hauberk.data.load_data`` returns.
        method: a name from ``hb.list_methods()``, for the paper's method with what is published for it on this data set and
            network; or what ``hb.method`` returns, which is used as it is.
        threat: what the adversary may do, several threat models for methods that train under several; not needed if ``method``
            was made by ``hb.method``.
        out: folder for metrics, checkpoints and exported weights; None keeps nothing on disk.
        resume: go on with the run in ``out``, which ends with the same weights as if it had never stopped, bit for bit on the
            same machine unless ``deterministic`` is off. Objects that were passed then are passed again.
        optimizer: "sgd" or "adamw", with the rate, weight decay and schedule of the settings; or a callable from the list of
            parameters to a ``torch.optim.Optimizer``, whose learning rate stays as it is without a scheduler. Like the next
            three, it may be ``package.module:attribute``.
        scheduler: a callable from the optimizer to a ``torch.optim.lr_scheduler.LRScheduler``, stepped after each epoch, or
            after each step with ``scheduler_interval="step"``.
        augmentation: applied to each batch before the attack: a callable ``f(x)`` or ``f(x, rng)`` from inputs (B, ...) in the
            box to such inputs, ``rng`` an ``ExampleRng`` keyed by example; or a name, such as "crop-flip".
        callbacks: objects with some of ``on_train_begin(trainer)``, ``on_step_end(trainer, output)``, ``on_epoch_end(trainer,
            metrics)`` and ``on_train_end(trainer)``, or functions of the metrics of an epoch. What ``state_dict()`` returns is
            kept in checkpoints, for ``load_state_dict(state)``. They run on rank 0; with ``all_ranks = True`` on every rank.
        schedule_preset: where settings that are not given come from: "published" for the literature's, "express" for a short
            training, "robust" for a long one of a large network.
        val_set: examples to choose the best epoch by, whatever ``train_set`` may be; never those that you test on. By default a
            tenth of ``train_set`` is held out, at most 1,000, at random, or its last ones where it is in the order of time.
        extra: further training data: labelled, with pseudo-labels as ``hauberk.data.pseudo_label`` makes them, or generated;
            whatever ``train_set`` may be, a pair (x, p) with probabilities (N, C) in place of labels, or the path of an
            ``.npz`` file with the arrays ``image`` and ``label`` (see ``hauberk.data.read_extra``). Each batch takes
            ``extra_share`` of its examples from there; an epoch is one pass over ``train_set``.
        init: weights to begin from, robust or plain: whatever ``hb.load`` takes.
        quiet: print nothing but warnings, on stderr.
        report_every: print the line of every so many epochs, and of the last.
        **settings: fields of ``TrainConfig`` (``epochs``, ``lr``, ``batch_size``, ...). What is not given takes the value
            published for the data set, network and method, see ``hauberk.training.published``.

    Raises:
        UserError: for data, model and threat model that do not fit together, unknown or senseless settings, a folder that
            exists, a checkpoint that cannot be used, a loss that is not finite, a disk that cannot be written.

    Example:
        >>> import hauberk as hb
        >>> run = hb.train("small-cnn", hb.data.load_data("digits", "train"), threat=hb.Linf(0.1), epochs=1, quiet=True)
        >>> sorted(run.best)
        ['epoch', 'metrics']
    """
    if not isinstance(model, str | ModelSpec):
        check_module(model)
    if report_every < 1:
        raise UserError(f"report_every must be at least 1, got {report_every}")
    source = as_dataset(train_set)
    more = None if extra is None else as_extra(extra, source.classes)
    network_name = model.name if isinstance(model, ModelSpec) else model if isinstance(model, str) else ""
    method = find_method(method) if isinstance(method, str) else method
    name, preset = (method, "paper") if isinstance(method, str) else (method.name, str(method.settings.get("preset", "paper")))
    published = resolve(source.name, network_name, name, preset=preset, schedule_preset=schedule_preset)
    if isinstance(method, str):
        if threat is None:
            raise UserError('train needs a threat model, e.g. threat=hb.Linf("8/255")')
        method = make_method(method, threat, seed=settings.get("seed", 0), **published.hyperparameters)
    elif threat is not None and threat is not method.threat:
        raise UserError("the method was made for another threat model; leave out threat=, or pass the method's name")
    own_val = None if val_set is None else as_dataset(val_set)
    sources = {"train_set": source, "val_set": own_val, "extra": more}
    given = {argument: data for argument, data in sources.items() if data is not None}
    for argument, data in given.items():
        for one in threats_of(method.threat):
            check_dataset(data, one, source.classes)
        if data.input_shape != source.input_shape:
            expected = f"those of the training set {source.input_shape}"
            raise UserError(f"inputs of {argument} have shape {data.input_shape}, {expected}")
    objects = {"optimizer": optimizer, "scheduler": scheduler, "augment": augmentation, "callbacks": tuple(callbacks)}
    passed = {name: one for name, one in objects.items() if not (one is None or (isinstance(one, str | tuple) and not one))}
    config = _configure(method, published.settings, settings, passed)
    if own_val is not None:
        if config.val_size > 0:
            raise UserError("val_size holds training examples out for validation; leave it out, or val_set")
        config = replace(config, val_size=0)
    if extra is None and "extra_share" in settings:
        raise UserError("extra_share is the share of extra examples; pass some as extra=, or leave it out")
    device, world = pick_device(config.device), get_world()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(config.threads or torch.get_num_threads())
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        if config.deterministic:
            stack.enter_context(deterministic_mode(device, algorithms=True))
        stop = stack.enter_context(watch_signals())
        stack.enter_context(torch.inference_mode(False))  # whatever the caller is in
        stack.enter_context(torch.enable_grad())
        network, spec, code = _build_network(model, method, config, source, device)
        classes = spec.classes - method.extra_outputs
        for argument, data in given.items():
            if in_memory(data):
                check_labels(labels(data), classes, f"labels of {argument}")
        begun_from = _load_init(network, init, device) if str(init) else {}
        plan = make_plan(spec, method, config, source, more, own_val, world.size, code, passed, begun_from)
        if world.size > 1:  # a plan names its data by a digest, for which they are read once
            checkpoint.require_same_plan(plan.to_dict(), world)
        folder = world.on_main_process(lambda: checkpoint.open_folder(out, resume))
        world.on_main_process(lambda: stack.enter_context(exclusive_lock(folder)))
        log = MetricsLog(folder if world.is_main else None)
        logs = [log, TensorBoardLog(folder / "tensorboard")] if folder else [log]
        trainer = Trainer(network, plan, folder, device, stop, logs, report_every)
        warning = _begin(trainer, resume)
        done = trainer.epoch * plan.steps_per_epoch + trainer.step
        display = stack.enter_context(ProgressBar(method.name, plan.total_steps, done, quiet or not world.is_main))
        if warning and world.is_main:
            display.warn(warning)
        with translate_lost_process(f"--resume {shell_quoted(folder)} (resume=True) goes on from there"):
            trainer.run(display)
        if trainer.finished:
            network.load_state_dict(trainer.best_weights)
            if doubt := chance_line(trainer.best["metrics"], classes):
                display.line(doubt)
    best = trainer.best and {**trainer.best, "epoch": trainer.best["epoch"] + 1}
    return Run(network.eval(), folder, log.rows, best, not trainer.finished)


@checked
def pick_device(name: str) -> torch.device:
    """Return a usable device; of "auto" and "cuda", each of several processes gets its own.

    Raises:
        UserError: if there is none of that name, or less than processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and get_world().size > 1:
        if local_rank() >= torch.cuda.device_count():
            raise UserError(
                f"no GPU is left for process {local_rank()} of this machine; start one for each, or use --device cpu"
            )
        name = f"cuda:{local_rank()}"
    return usable_device(name)


def _configure(method: Method, published: dict[str, Any], given: dict[str, Any], passed: dict[str, Any]) -> TrainConfig:
    """Settings of the training: given ones, those the method was made for, published ones, and the names of passed objects."""
    names = {name: recorded_name(one) for name, one in passed.items()}
    known = [field.name for field in fields(TrainConfig)]
    for name in given:
        if name not in known:
            raise unknown_name("training setting", name, known)
    if clash := given.keys() & names.keys():
        raise UserError(f"{clash.pop()} is given twice; leave out one of them")
    own = method.precision
    asked: dict[str, Any] = {} if own is None else {"precision": own.precision} | ({"compile": "on"} if own.compiled else {})
    config = TrainConfig(**{**published, **asked, **given, **names})
    for name, by in config.replaced.items():
        if name in given:
            advice = "" if by in OPTIMIZERS else f", or set it where {by.replace('an own', 'the')} is made"
            raise UserError(f"{name} does not apply to {by}; leave it out{advice}")
    usual = TrainConfig()
    return replace(config, **{name: getattr(usual, name) for name in config.replaced})


def _build_network(
    model: nn.Module | str | ModelSpec, method: Method, config: TrainConfig, source: IndexedDataset, device: torch.device
) -> tuple[nn.Module, ModelSpec, str]:
    """Build the network or take the caller's, and check that it fits the data. Returns it, what it is, and its code."""
    world = get_world()
    torch.manual_seed(config.seed)
    needed = None if source.classes is None else source.classes + method.extra_outputs
    some, shape = torch.arange(min(len(source), 16)), source.input_shape
    if isinstance(model, str):
        model = default_model(model, source, extra=method.extra_outputs)
    network = model.build() if isinstance(model, ModelSpec) else model
    check_module(network)
    if any(p.is_floating_point() and p.dtype.itemsize < 4 for p in network.parameters()):
        advice = "call model.float(), and give precision='bf16' for passes in bfloat16"
        raise UserError(f"a model in half precision does not learn, because small steps round to nothing; {advice}")
    network = network.to(device)
    outputs = check_model(network, *fetch_for(network, source, some), needed)
    if not any(p.requires_grad for p in network.parameters()):
        raise UserError("the model has no parameters that take gradients, so there is nothing to train")
    spec = model if isinstance(model, ModelSpec) else ModelSpec(f"python:{type(model).__name__}", shape, outputs)
    code = model_code(network) if spec.imports or spec.is_from_python else ""
    if config.sync_batchnorm and world.size > 1:
        if device.type != "cuda":
            raise UserError("synchronised BatchNorm needs GPUs: torch has none for CPUs; leave out --sync-batchnorm")
        if method.attack is not None and method.attack.mode == "train":
            raise UserError("an attack in training mode cannot run with synchronised BatchNorm; leave out one of them")
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    if not world.is_main:  # whose dropout should not be that of rank 0
        torch.manual_seed(config.seed + world.rank * 1_000_003)
    return network, spec, code


def _load_init(network: nn.Module, init: str | Path, device: torch.device) -> dict[str, str]:
    """Load the weights to begin from. Returns where they are from, and their digest, for the record."""
    mode = network.training
    load(init, model=network, device=device).train(mode)
    return {"init": str(init), "init_digest": tensors_digest(network.state_dict())}


def _begin(trainer: Trainer, resume: bool) -> str:
    """Write down what the run is, or check that it is the same one and restore it. Returns a warning to show."""
    folder, world = trainer.folder, trainer.world
    if folder is None:
        return ""
    state, warning = world.on_main_process(lambda: checkpoint.begin(folder, trainer.plan.to_dict(), resume, world.size))
    world.on_main_process(lambda: write_config(trainer.plan, folder))
    try:
        if state:
            trainer.load_state_dict(state)
    except UserError:
        raise
    except SCHEMA_ERRORS as error:
        raise UserError(f"the checkpoint in {folder} is of another model or version: {in_one_line(error)}") from error
    return warning
