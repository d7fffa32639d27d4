"""Checkpoints: everything that a training needs to go on exactly, written down and read back."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hauberk.core.errors import UserError, in_one_line
from hauberk.core.io import SCHEMA_ERRORS, previous, read_state, write_state
from hauberk.training.early_failure import require_finite
from hauberk.training.metrics import EpochMetrics
from hauberk.training.plan import run_id

if TYPE_CHECKING:
    from hauberk.training.trainer import Trainer

_STATE = "state.ckpt"


def save(trainer: "Trainer") -> None:
    """Write a checkpoint; called by all processes together.

    Raises:
        TrainingDiverged: if the loss is not finite.
        UserError: if it cannot be written; the checkpoint before is kept.
    """
    if trainer.folder is None:
        return
    path = trainer.folder / _STATE
    meter = trainer.meter.total(trainer.world)
    require_finite(meter.read()["loss"], trainer.here)
    parts = trainer.world.all_gather_object(_own(trainer))
    trainer.world.on_main_process(lambda: write_state(path, _whole(trainer, meter, parts)))


def exists(folder: Path) -> bool:
    """Whether there is a checkpoint in a folder."""
    return (folder / _STATE).exists() or previous(folder / _STATE).exists()


def restore(trainer: "Trainer", folder: Path) -> str:
    """Go on where the checkpoint in ``folder`` stopped; called by all processes together.

    Returns:
        A warning to show, or "".

    Raises:
        UserError: if it is damaged, foreign, or of another model.
    """
    world, path = trainer.world, folder / _STATE
    state, warning = world.on_main_process(lambda: read_state(path))
    if state.get("run") != run_id(trainer.plan.to_dict()):
        raise UserError(f"{path} is the checkpoint of another run, or of another version of Hauberk; it was not taken")
    try:
        _put_whole(trainer, state)
        same = state["processes"] == world.size
        _put_own(trainer, state["method"], state["parts"][world.rank] if same else {})
    except SCHEMA_ERRORS as error:
        raise UserError(f"{path} is of another model or version: {in_one_line(error)}") from error
    world.on_main_process(lambda: trainer.record.restore(trainer.epoch))
    if not same:
        changed = f"saved by {state['processes']} processes, going on with {world.size}: not the same bit for bit"
        warning = f"{warning}; {changed}" if warning else changed
    return warning


def _whole(trainer: "Trainer", meter: EpochMetrics, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What all processes share, and in ``parts`` what each has of its own."""
    return {
        "run": run_id(trainer.plan.to_dict()),
        "epoch": trainer.epoch,
        "step": trainer.step,
        "seconds": trainer.seconds,
        "returns": trainer.returns,
        **trainer.numerics(),
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "ema": None if trainer.ema is None else trainer.ema.state_dict(),
        "meter": meter.state(),
        "method": trainer.plan.method.state_dict(),
        "best": trainer.best,
        "best_weights": trainer.best_weights,
        "parts": parts,
    }


def _put_whole(trainer: "Trainer", state: dict[str, Any]) -> None:
    trainer.use(state["precision"], state["compiled"])
    trainer.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    if trainer.ema is not None:
        trainer.ema.load_state_dict(state["ema"])
    trainer.meter.restore(state["meter"], share=int(trainer.world.is_main))
    trainer.epoch, trainer.step, trainer.returns = (int(state[name]) for name in ("epoch", "step", "returns"))
    trainer.seconds = float(state["seconds"])
    if trainer.epoch:  # then one is the best
        metrics = {name: float(value) for name, value in state["best"]["metrics"].items()}
        trainer.best = {"epoch": int(state["best"]["epoch"]), "metrics": metrics | {"epoch": int(metrics["epoch"])}}
        trainer.score(metrics)  # has all that the next epochs will be compared with
        like, best = trainer.judged.state_dict(), state["best_weights"]
        trainer.best_weights = {name: torch.empty_like(like[name], device="cpu").copy_(best[name]) for name in like}


def _own(trainer: "Trainer") -> dict[str, Any]:
    """What this process has of its own: random state, and free training's perturbation of its part of the batch."""
    on_gpu = trainer.device.type == "cuda"
    return {
        "carried": trainer.plan.method.local_state(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(trainer.device) if on_gpu else None,
    }


def _put_own(trainer: "Trainer", method: dict[str, Any], own: dict[str, Any]) -> None:
    """Restore the method's state and this process's own; with another number of processes, it begins anew."""
    trainer.plan.method.load_state_dict(_moved(method, trainer.device))
    trainer.plan.method.load_local_state(_moved(own.get("carried", {}), trainer.device))
    if own:
        torch.set_rng_state(own["rng"])
        if trainer.device.type == "cuda" and own["cuda_rng"] is not None:
            torch.cuda.set_rng_state(own["cuda_rng"], trainer.device)


def _moved(state: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in state.items()}
