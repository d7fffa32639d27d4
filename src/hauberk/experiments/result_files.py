"""Which evaluations there are in folders, and which method and seed each is of."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hauberk.core.errors import UserError
from hauberk.core.io import read_json
from hauberk.experiments.experiment import EVALUATION

_SEED = re.compile(r"(?:(?P<name>.*?)[-_. ]+)?(?:seed[-_=. ]*|s)?(?P<seed>\d{1,9})$")
_BEGINNING = b'"format": "hauberk-evaluation/'
_NO_PART = ("seed", "threads", "device", "save_minutes")  # of settings: may differ between the runs of one method


@dataclass(frozen=True)
class _File:
    """An evaluation on disk, with the method and the seed that it is of, and what else the run says of its training."""

    path: Path
    method: str
    seed: int | None
    made: dict[str, Any] | None = None


def find_results(words: Sequence[str]) -> tuple[dict[str, list[Path]], tuple[int, ...]]:
    """Find evaluations on disk, and sort them by method and seed.

    A folder may be that of an evaluation, of a run with one evaluation, or one with such folders, or evaluations as files, in
    it. Method and seed are those of the run that the evaluation belongs to; where there is none, they are read from the name
    of the file or folder: ``mine-0``, ``mine-seed-1``, ``mine/seed-2``.

    Args:
        words: folders and files, or ``NAME=PATH,PATH``, which names a method and has its evaluations in the order of the seeds.

    Returns:
        The files by method, and the seeds that they are of; no seeds where they are not known, or methods have different ones.

    Raises:
        UserError: if there are no evaluations, or it cannot be told which belong together.
    """
    groups: dict[str, list[_File]] = {}
    named = {word.partition("=")[0].strip() for word in words if _is_named(word)}
    for word in words:
        name, _, paths = word.partition("=") if _is_named(word) else ("", "", "")
        for path in paths.split(",") if name else [word]:
            for file in _below(Path(path.strip()).expanduser()):
                groups.setdefault(name.strip() or file.method, []).append(file)
    for method, files in groups.items():
        if method not in named:
            groups[method] = _by_seed(method, files)
    seeds = {method: tuple(file.seed for file in files) for method, files in groups.items()}
    found = {method: [file.path for file in files] for method, files in groups.items()}
    several = {method: some for method, some in seeds.items() if method not in named and len(some) > 1}
    if len(set(several.values())) > 1:
        said = "; ".join(f"{method!r}: {', '.join(map(str, some))}" for method, some in several.items())
        raise UserError(f"methods have different seeds ({said}), so nothing is paired; {_NAME_THEM}")
    first = next(iter(seeds.values()), ())
    same = set(seeds.values()) == {first} and len(set(first)) == len(first)
    return found, tuple(seed for seed in first if seed is not None) if same and None not in first else ()


_NAME_THEM = "say which belong together, in the order of the seeds: NAME=PATH,PATH"


def _is_named(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals and name.strip()) and not Path(word).exists()


def _by_seed(method: str, files: list[_File]) -> list[_File]:
    """Sort the evaluations of a method by seed, or refuse what no seed tells apart or settings do."""
    seen: dict[int | None, _File] = {}
    for file in files:
        if file.seed in seen:
            which = "no seed" if file.seed is None else f"seed {file.seed}"
            raise UserError(f"{seen[file.seed].path} and {file.path} are both of {method!r} with {which}; {_NAME_THEM}")
        seen[file.seed] = file
        if differs := _difference(files[0].made, file.made):
            raise UserError(f"{files[0].path} and {file.path} are both of {method!r}, with other {differs}; {_NAME_THEM}")
    return sorted(files, key=lambda file: -1 if file.seed is None else file.seed)


def _difference(one: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    """Name the first thing in which two trainings differ; "" for none, or where it is not known."""
    if one is None or other is None:
        return ""
    return next((key for key in {**one, **other} if one.get(key) != other.get(key)), "")


def _below(path: Path) -> list[_File]:
    """Return the evaluations that a path holds."""
    if path.is_file():
        return [_described(path)]
    if not path.is_dir():
        raise UserError(f"{path} does not exist")
    found = _in_folder(path)
    if not found:
        raise UserError(f"{path} holds no evaluation; 'hauberk evaluate' makes one, or Evaluation.save")
    return [_described(one) for one in found]


def _in_folder(folder: Path) -> list[Path]:
    if (folder / EVALUATION).is_file():
        return [folder / EVALUATION]
    if (folder / "run.json").exists():
        found = sorted((folder / "evaluations").glob(f"*/{EVALUATION}"))
        if len(found) > 1:
            raise UserError(f"{folder} has {len(found)} evaluations; name one: {', '.join(map(str, found))}")
        return found
    files = [path for path in sorted(folder.glob("*.json")) if _is_evaluation(path)]
    folders = (one for one in sorted(folder.iterdir()) if one.is_dir() and not one.is_symlink() and one.name[0] != ".")
    return files + [found for one in folders for found in _in_folder(one)]


def _is_evaluation(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _BEGINNING in file.read(200)
    except OSError:
        return False


def _described(path: Path) -> _File:
    """Return a file with the method and the seed of its run, or those that its name tells."""
    folder = path.absolute().parent
    for place in (folder, folder.parent, folder.parent.parent):
        for name in ("experiment.json", "run.json"):
            if (place / name).is_file() and (found := _of_run(path, read_json(place / name))):
                return found
    names = [folder.name, folder.parent.name]
    names = names if path.name == EVALUATION else [path.stem, *names]
    match = _SEED.match(names[0])
    if match is None:
        return _File(path, names[0], None)
    method = "" if match["name"] in (None, "seed") else match["name"]
    return _File(path, method or names[1] or names[0], int(match["seed"]))


def _of_run(path: Path, record: dict[str, Any]) -> _File | None:
    """Return what the record of an experiment or a run says; None where it does not say it."""
    method, settings = record.get("method"), record.get("settings")
    if isinstance(method, dict):  # of a run
        name, seed = method.get("name"), settings.get("seed") if isinstance(settings, dict) else None
    else:
        name, seed = record.get("label") or method, record.get("seed")
    if not isinstance(name, str) or not name or not isinstance(seed, int | None):
        return None
    made = {"method": method, "hyperparameters": record.get("hyperparameters"), "model": record.get("model")}
    made |= {"threat model": record.get("threat"), "settings": settings}
    return _File(path, name, seed, {key: _without_seed(value) for key, value in made.items()})


def _without_seed(value: Any) -> Any:
    return {k: v for k, v in value.items() if k not in _NO_PART} if isinstance(value, dict) else value
