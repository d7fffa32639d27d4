"""hb.train: one call from a model and data to a trained model on disk."""

from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hauberk.checks import check_model
from hauberk.core.distributed import World, get_world, local_rank, translate_lost_process
from hauberk.core.environment import versions
from hauberk.core.errors import UserError, first_line, in_one_line, unknown_name
from hauberk.core.io import LOCKFILE, SCHEMA_ERRORS, exclusive_lock, read_json, write_json
from hauberk.core.progress import ProgressBar
from hauberk.data import Source, as_source, check_source, fetch_for, labels, load_data
from hauberk.methods import Method
from hauberk.methods import method as make_method
from hauberk.models import ModelSpec
from hauberk.models.code import model_code
from hauberk.threat import ThreatModel, threat_from_dict
from hauberk.training.checkpoint import exists, restore
from hauberk.training.config import TrainConfig
from hauberk.training.interrupt import watch_signals
from hauberk.training.parallel import synchronise_batchnorm
from hauberk.training.plan import compare_plans, make_plan
from hauberk.training.published import resolve
from hauberk.training.trainer import Trainer

RUN_FORMAT = "hauberk-run/1"
_RECORD = "run.json"
_BEFORE = (LOCKFILE, f"{_RECORD}.part", "tensorboard")  # what may lie in a folder where a run was killed before it had a record


@dataclass(frozen=True, eq=False)
class Run:
    """A finished or interrupted training run.

    Attributes:
        model: the caller's model, in evaluation mode; with the best weights by validation if the run is finished.
        folder: where it is kept, or None.
        metrics: one row per epoch, as in metrics.jsonl.
        best: epoch (0-based) and metrics of the best checkpoint; of those after the burn-in, where the method has one.
        interrupted: whether it was asked to stop before its end.
    """

    model: nn.Module
    folder: Path | None
    metrics: list[dict[str, Any]]
    best: dict[str, Any]
    interrupted: bool


def train(
    model: nn.Module | str | ModelSpec,
    train_set: Any,
    *,
    method: str | Method = "at",
    threat: ThreatModel | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    schedule_preset: str = "published",
    unlabelled: Any = None,
    quiet: bool = False,
    report_every: int = 1,
    **settings: Any,
) -> Run:
    """Train a model, choose the best epoch on a held-out part of the training set, and keep everything in ``out``.

    Within a ``torch.distributed`` process group (see :func:`hauberk.init_distributed`) the processes share each batch, and end
    with the same weights; only the first one writes.

    Args:
        model: a network from inputs (B, ...) in the box to logits (B, C), trained in place; or the name of a built-in one, or a
            ``ModelSpec``.
        train_set: a pair (x, y) of arrays, x (N, ...) floating or uint8 images, y (N,) integers; a map-style ``Dataset``;
            or what ``hauberk.data.load_data`` returns.
        method: a name from ``hb.list_methods()``, for the paper's method with what is published for it on this data set and
            network; or what ``hb.method`` returns, which is used as it is.
        threat: what the adversary may do; not needed if ``method`` was made by ``hb.method``.
        out: folder for metrics, checkpoints and exported weights; None keeps nothing on disk.
        resume: go on with the run in ``out``, which ends with the same weights as if it had never stopped.
        schedule_preset: where settings that are not given come from: "published" for the literature's, "express" for a short
            training.
        unlabelled: further training data with pseudo-labels, as ``hauberk.data.pseudo_label`` makes them; each batch takes
            ``unlabelled_share`` of its examples from there.
        quiet: print nothing.
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
    source = as_source(train_set)
    network_name = model if isinstance(model, str) else getattr(model, "name", "")
    if not isinstance(method, str):
        settings = _asked_of_the_method(method) | settings
    name, preset = (method, "paper") if isinstance(method, str) else (method.name, method.choices.preset)
    found = resolve(source.name, network_name, name, preset=preset, schedule_preset=schedule_preset, settings=settings)
    if isinstance(method, str):
        if threat is None:
            raise UserError('train needs a threat model, e.g. threat=hb.Linf("8/255")')
        method = make_method(method, threat, seed=int(settings.get("seed", 0)), **found.hyperparameters)
    elif threat is not None and threat is not method.threat:
        raise UserError("the method was made for another threat model; leave out threat=, or pass the method's name")
    check_source(source, method.threat)
    more = None if unlabelled is None else as_source(unlabelled)
    if more is not None:
        check_source(more, method.threat)
    chosen = _settings(found.settings)
    device = pick_device(chosen.device)
    world = get_world()
    threads = torch.get_num_threads()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), watch_signals() as stop:
            torch.manual_seed(chosen.seed)
            spec, network = _network(model, source, device, method.extra_outputs)
            code = model_code(network) if spec.imports or spec.is_from_python else ""
            if chosen.sync_batchnorm and world.size > 1:
                network = synchronise_batchnorm(network, method, device)
            if not world.is_main:  # whose dropout should not be that of the first
                torch.manual_seed(chosen.seed + world.rank * 1_000_003)
            plan = make_plan(spec, method, chosen, source, more, world.size, code)
            if world.size > 1:
                _agree(plan.to_dict(), world)
            folder = world.on_main_process(lambda: _open_folder(out, resume))
            with ExitStack() as locked:
                world.on_main_process(lambda: locked.enter_context(exclusive_lock(folder)))
                trainer = Trainer(network, plan, folder, device, world, stop, report_every)
                warning = _begin(trainer, resume)
                done = trainer.epoch * plan.steps_per_epoch + trainer.step
                with ProgressBar(method.name, plan.total_steps, done, quiet or not world.is_main) as display:
                    if warning:
                        display.line(warning)
                    with translate_lost_process(f"--resume {folder} (resume=True) goes on from there"):
                        trainer.run(display)
                trainer.record.close()
            if trainer.finished:
                network.load_state_dict(trainer.best_weights)
    finally:
        torch.set_num_threads(threads)
    return Run(network.eval(), folder, trainer.record.rows, trainer.best, not trainer.finished)


def resume(folder: str | Path, *, model: str = "", verify: bool = True, quiet: bool = False, on_divergence: str = "") -> Run:
    """Go on with a run on a named data set and a named model, all of it read from the run's folder.

    Args:
        folder: of the run.
        model: ``module:factory``, where the run was made with one: naming it again allows importing it.
        verify: compare checksums of the data files with the original ones.
        quiet: print nothing.
        on_divergence: as in ``TrainConfig``, where it should be another than the run was started with.

    Raises:
        UserError: if the folder holds no run, or one that only Python can resume; and as :func:`train`.
    """
    stored = get_world().on_main_process(lambda: read_json(_record_of(Path(folder))))
    if stored.get("format") != RUN_FORMAT:
        raise UserError(f"{folder} holds no run to resume")
    spec = ModelSpec.from_dict(stored.get("model", {}))
    if spec.is_from_python:
        raise UserError(f"the model of {folder} was made in Python; go on with hb.train(model, data, out=..., resume=True)")
    if spec.imports and spec.name != model:
        raise UserError(f"this run would import {spec.name!r}; add --model {spec.name} if you trust it")
    try:
        data, how = stored["data"], dict(stored["method"])
        settings = dict(stored["settings"]) | ({"on_divergence": on_divergence} if on_divergence else {})
        for name in ("milestones", "class_weights"):
            settings[name] = tuple(settings[name]) if isinstance(settings[name], list) else settings[name]
        TrainConfig(**settings)
        source = load_data(data["name"], "train", data["folder"], verify=verify)
        method = make_method(how.pop("name"), threat_from_dict(stored["threat"]), **how)
    except UserError:
        raise
    except SCHEMA_ERRORS as error:
        raise UserError(f"{folder}/run.json is damaged: {in_one_line(error)}") from error
    return train(spec, source, method=method, out=folder, resume=True, quiet=quiet, **settings)


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
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used: {first_line(error)}") from error
    return device


def _network(
    model: nn.Module | str | ModelSpec, source: Source, device: torch.device, extra: int
) -> tuple[ModelSpec, nn.Module]:
    """Build the network or take the caller's, and check that it fits the data."""
    needed = None if source.classes is None else source.classes + extra
    some = torch.arange(min(len(source), 16))
    shape = tuple(source.fetch(some[:1])[0].shape[1:])
    if isinstance(model, nn.Module):
        classes = check_model(model, *fetch_for(model.to(device), source, some), needed)
        return ModelSpec(f"python:{type(model).__name__}", shape, classes), model
    spec = model
    if isinstance(spec, str):
        spec = ModelSpec(spec, shape, needed or int(labels(source).max()) + 1 + extra)
    network = spec.build().to(device)
    check_model(network, *fetch_for(network, source, some), needed)
    return spec, network


def _asked_of_the_method(method: Method) -> dict[str, Any]:
    """The training settings that a method was made for."""
    asked: dict[str, Any] = {} if method.sight.precision == "model" else {"precision": method.sight.precision}
    return asked | ({"compile": "on"} if method.sight.compiled else {})


def _settings(given: dict[str, Any]) -> TrainConfig:
    known = [field.name for field in fields(TrainConfig)]
    for name in given:
        if name not in known:
            raise unknown_name("training setting", name, known)
    try:
        return TrainConfig(**given)
    except TypeError as error:
        raise UserError(f"a training setting has the wrong type: {error}") from error


def _open_folder(out: str | Path | None, resume: bool) -> Path | None:
    if out is None:
        if resume:
            raise UserError("resume=True needs out=, the folder of the run")
        return None
    folder = Path(out)
    if resume:
        _record_of(folder)
        return folder
    try:
        if folder.exists() and (not folder.is_dir() or any(entry.name not in _BEFORE for entry in folder.iterdir())):
            raise UserError(f"{folder} exists; go on with it by --resume {folder} (resume=True), or choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    return folder


def _record_of(folder: Path) -> Path:
    """Return where the record of a run is.

    Raises:
        UserError: if there is none.
    """
    if (folder / _RECORD).is_file():
        return folder / _RECORD
    if not folder.exists():
        raise UserError(f"{folder} does not exist")
    killed = folder.is_dir() and any(folder.iterdir()) and all(entry.name in _BEFORE for entry in folder.iterdir())
    again = "; it was killed before anything was saved: begin it again, without --resume" if killed else ""
    raise UserError(f"{folder} holds no run to resume{again}")


def _begin(trainer: Trainer, resume: bool) -> str:
    """Write down what the run is, or check that it is the same one and restore it. Returns a warning to show."""
    if trainer.folder is None:
        return ""
    folder, record, plan = trainer.folder, trainer.folder / _RECORD, trainer.plan.to_dict()
    here = {"versions": versions(), "threads": torch.get_num_threads()}
    if not resume:
        trainer.world.on_main_process(lambda: write_json(record, {"format": RUN_FORMAT, **plan, **here}))
        return ""

    def compared() -> str:
        stored = read_json(record)
        compare_plans(stored, plan)
        return _otherwise(stored, here)

    warnings = [trainer.world.on_main_process(compared)]
    if trainer.world.on_main_process(lambda: exists(folder)):
        warnings.append(restore(trainer, folder))
    return "; ".join(warning for warning in warnings if warning)


def _otherwise(stored: dict[str, Any], here: dict[str, Any]) -> str:
    """Say under which other versions, or with how many other threads, a run was begun; "" for none."""
    then, now = stored.get("versions"), here["versions"]
    then = then if isinstance(then, dict) else {}
    found = [f"{name} {then.get(name)}" for name in now if name != "date" and then.get(name) != now[name]]
    if stored.get("threads") != here["threads"]:
        found.append(f"{stored.get('threads')} threads")
    present = ", ".join(f"{name} {now[name]}" for name in now if name != "date")
    here_now = f"{present}, {here['threads']} threads"
    return f"begun with {', '.join(found)}, going on with {here_now}: not the same bit for bit" if found else ""


def _agree(plan: dict[str, Any], world: World) -> None:
    """Refuse to train together where processes were started differently, or see different data.

    Raises:
        UserError: then.
    """
    problem = ""
    try:
        compare_plans(world.on_main_process(lambda: plan), plan)
    except UserError as error:
        problem = f"process {world.rank} is not like the first one: {error}"
    world.raise_if_any(problem)
