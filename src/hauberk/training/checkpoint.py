"""A run's folder: run.json says what the run is, state.ckpt holds everything that it needs to go on exactly."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hauberk.core.distributed import World
from hauberk.core.errors import UserError, in_one_line, shell_quoted
from hauberk.core.io import as_json, previous, read_json, read_state, versions, write_json, write_state
from hauberk.core.lock import LOCKFILE
from hauberk.training.config import OPTIMIZERS
from hauberk.training.config_file import CONFIG

RUN_FORMAT = "hauberk-run/2"
_RECORD, _STATE = "run.json", "state.ckpt"
_BEFORE = (LOCKFILE, _RECORD, "tensorboard")  # what names begin with where a run ended before anything was saved of it
_SECTIONS = ("model", "method", "threat", "data", "settings", "code")
_MAY_DIFFER = (
    "device",
    "threads",
    "save_minutes",
    "save_every",
    "on_divergence",
    "folder",
    "extra_file",
    "extra_labels",
    "init",
)  # where a run goes on
_OBJECTS = {"optimizer": "optimizer=", "scheduler": "scheduler=", "augment": "augmentation=", "callbacks": "callbacks="}


def open_folder(out: str | Path | None, resume: bool) -> Path | None:
    """Make the folder of a new run, or find that of one to resume. Raises UserError if that is not possible.

    A folder in which nothing was saved, as of a training whose first loss was not finite, is that of a new run.
    """
    if out is None:
        if resume:
            raise UserError("resume=True needs out=, the folder of the run")
        return None
    folder = Path(out)
    if resume:
        read_record(folder)
        return folder
    try:
        if folder.exists() and not (folder.is_dir() and _holds_nothing([entry.name for entry in folder.iterdir()])):
            again = f"--resume {shell_quoted(folder)} (resume=True)"
            raise UserError(f"{folder} exists; go on with it by {again}, or choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    return folder


def _holds_nothing(names: list[str]) -> bool:
    """Whether files of these names are at most what a run leaves that was killed or refused before anything was saved."""
    own = (CONFIG,) if _RECORD in names else ()  # where no run began, it is somebody's own
    return all(name.startswith(_BEFORE + own) for name in names)


def read_record(folder: Path) -> dict[str, Any]:
    """Read what the run in a folder is. Raises UserError if there is none, or one of another version of Hauberk."""
    path = folder / _RECORD
    if not folder.exists():
        raise UserError(f"{folder} does not exist")
    if not path.is_file():
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        killed = names and _holds_nothing(names)
        again = "; it was killed before anything was saved: begin it again, without --resume" if killed else ""
        raise UserError(f"{folder} holds no run to resume{again}")
    stored = read_json(path)
    if stored.get("format") != RUN_FORMAT:
        raise UserError(f"{folder} holds no run to resume: its format is {stored.get('format')!r:.60}, not {RUN_FORMAT}")
    return stored


def begin(folder: Path, plan: Mapping[str, Any], resume: bool, processes: int) -> tuple[dict[str, Any], str]:
    """Write down what a run is; or check that the one in the folder is the same, and read its checkpoint.

    Returns the state to go on from, empty where there is none, and a warning to show, or "". Raises UserError for another run,
    a damaged or foreign checkpoint, and if nothing can be written.
    """
    if not resume:
        write_json(folder / _RECORD, {"format": RUN_FORMAT, **plan, **_here()})
        return {}, ""
    stored, path = read_record(folder), folder / _STATE
    compare_plans(stored, plan)
    warnings = []
    if changed := other_versions(stored):
        now = ", ".join(_listed(_here()))
        warnings.append(f"{folder} was begun with {changed}, going on with {now}: not the same bit for bit")
    state = dict[str, Any]()
    if _has_checkpoint(folder):
        state, warning = read_state(path)
        warnings += [warning] if warning else []
        saved = state.get("processes")
        if state.get("run") != _run_id(plan) or not isinstance(saved, int):
            raise UserError(f"{path} is the checkpoint of another run, or of another version of Hauberk; it was not taken")
        if saved != processes:
            warnings.append(f"{path} was saved by {saved} processes, going on with {processes}: not the same bit for bit")
    return state, "; ".join(warnings)


def save(folder: Path, plan: Mapping[str, Any], state: dict[str, Any]) -> None:
    """Write the state of a training; the checkpoint before is kept beside it.

    Raises UserError if it cannot be written, or, at the first time, if what was passed in has a state that cannot be read back.
    """
    settings = plan["settings"]
    own = settings.get("optimizer") not in OPTIMIZERS or settings.get("scheduler") or settings.get("callbacks")
    if own and not _has_checkpoint(folder):  # what is not ours is read back once
        content = io.BytesIO()
        try:
            torch.save([state["optimizer"], state.get("scheduler"), state["local"]], content)
            content.seek(0)
            torch.load(content, weights_only=True)
        except Exception as error:  # pickling fails in many ways
            what = "the state of the optimizer, the scheduler or a callback"
            raise UserError(f"{what} must be tensors and plain types: {in_one_line(error)}") from error
    write_state(folder / _STATE, {"run": _run_id(plan), **state})


def compare_plans(stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse, by a UserError that names the first difference, to resume a run as something else."""
    for section in _SECTIONS:
        before, after = stored.get(section, {}), now[section]
        if not isinstance(before, dict):
            raise UserError(f"the run's record is damaged: its {section} is {before!r:.60}")
        for key in {**after, **before}:
            if key in _MAY_DIFFER or before.get(key) == after.get(key):
                continue
            if key.endswith("digest"):
                if section == "model":
                    raise UserError("this run was started from other weights; pass the same init again, or use a new folder")
                kind = {"extra_digest": "extra", "val_digest": "validation"}.get(key, "training")
                raise UserError(f"this run was started with other {kind} data: inputs, labels or their order differ")
            if section == "code":
                other = "another" if key == "teacher" else "other code of its"
                raise UserError(f"this run was started with {other} {key}; use a new folder")
            if section == "settings" and key not in before.keys() & after.keys():
                other = f"a version of hauberk with other settings ({key})"
                raise UserError(f"this run was started by {other}; use that, or a new folder")
            advice = f"pass the same {_OBJECTS[key]} again, or " if key in _OBJECTS else ""
            raise UserError(
                f"this run was started with {section} {key} = {before.get(key)!r}, not {after.get(key)!r}; "
                f"{advice}use a new folder"
            )


def require_same_plan(plan: Mapping[str, Any], world: World) -> None:
    """Refuse, by a UserError, to train together where processes were started differently, or see different data."""
    problem = ""
    try:
        compare_plans(world.on_main_process(lambda: plan), plan)
    except UserError as error:
        problem = f"process {world.rank} is not like the first one: {error}"
    world.raise_if_any(problem)


def _run_id(plan: Mapping[str, Any]) -> str:
    """Return a digest of all in a plan that fixes the result of a run, 16 hexadecimal digits: what a checkpoint belongs to."""
    fixed = {section: {k: v for k, v in plan[section].items() if k not in _MAY_DIFFER} for section in _SECTIONS}
    return hashlib.sha256(as_json(fixed).encode()).hexdigest()[:16]


def _has_checkpoint(folder: Path) -> bool:
    return (folder / _STATE).exists() or previous(folder / _STATE).exists()


def other_versions(record: Mapping[str, Any], threads: int = 0) -> str:
    """Return under which other versions a run was begun than there are here, and with how many threads; "" for the same.

    ``threads`` is how many there are here; 0 for those of this process.
    """
    here = _here() | ({"threads": threads} if threads else {})
    return ", ".join(then for then, now in zip(_listed(record), _listed(here), strict=True) if then != now)


def _here() -> dict[str, Any]:
    return {"versions": versions(), "threads": torch.get_num_threads()}


def _listed(record: Mapping[str, Any]) -> list[str]:
    """The versions and the number of threads that a record names."""
    stored = record.get("versions")
    known = stored if isinstance(stored, dict) else {}
    return [f"{name} {known.get(name)}" for name in versions() if name != "date"] + [f"{record.get('threads')} threads"]
