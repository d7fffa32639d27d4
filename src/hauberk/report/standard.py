"""The standard network beside a robust one: found where runs lie together, if both were evaluated alike."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hauberk.core.errors import SCHEMA_ERRORS, UserError
from hauberk.core.io import read_json
from hauberk.training.callbacks import read_metrics

_ALIKE = ("threat", "suite", "sequential", "n")
_SAME_ORIGIN = ("data", "subset", "data_digest", "threat_digest")


def find_standard(
    folder: Path, plan: dict[str, Any], evaluations: Sequence[dict[str, Any]], given: Path | None = None
) -> tuple[Path, dict[str, Any], dict[str, Any]] | None:
    """Find the run of standard training to compare the run in ``folder`` with.

    Args:
        folder: of the run.
        plan: its ``run.json``.
        evaluations: its evaluations, the one that counts most first.
        given: what stands for it, as for :func:`match_given`; by default a run beside ``folder``, of the same data and network.

    Returns:
        The folder, and the first two evaluations, its and the run's, of the same examples under the same attacks and threat
        model; None where there are none.

    Raises:
        UserError: if what was given has no such evaluation.
    """
    if given is not None:
        return match_given(given, evaluations, str(folder))
    if plan["method"]["name"] == "standard":
        return None
    for place in sorted(path.parent for path in folder.resolve().parent.glob("*/run.json")):
        try:
            others = _evaluations(place) if _is_standard_of(read_json(place / "run.json"), plan) else []
        except (UserError, *SCHEMA_ERRORS):
            continue  # another's run, damaged or of another version
        if match := _first_alike(evaluations, others):
            return place, *match
    return None


def match_given(given: Path, evaluations: Sequence[dict[str, Any]], target: str) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Match evaluations with those of the standard model that was named: the folder of a run, or of an evaluation, or its file.

    Returns:
        As :func:`find_standard`.

    Raises:
        UserError: if none is of the same examples under the same attacks and threat model as one of ``target``.
    """
    if match := _first_alike(evaluations, _evaluations(given)):
        return given, *match
    raise UserError(f"{given} has no evaluation of the same examples, threat model and suite as {target}")


def _first_alike(
    evaluations: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    return next(((one, found) for found in evaluations for one in others if _same(one, found)), None)


def _is_standard_of(other: dict[str, Any], plan: dict[str, Any]) -> bool:
    alike = all(other[part]["name"] == plan[part]["name"] for part in ("data", "model"))
    return alike and other["method"]["name"] == "standard"


def _evaluations(folder: Path) -> list[dict[str, Any]]:
    alone = folder if folder.is_file() else folder / "evaluation.json"
    places = [alone] if alone.exists() else sorted(folder.glob("evaluations/*/evaluation.json"))
    if not places:
        raise UserError(f"{folder} holds no evaluation, and no run with one")
    return [read_json(path) for path in places]


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if any(one[key] != other[key] for key in _ALIKE) or list(one["by_attack"]) != list(other["by_attack"]):
        return False
    return all(one["provenance"][key] == other["provenance"][key] for key in _SAME_ORIGIN)


def training_seconds(folder: Path) -> float | None:
    """Return what training took, in seconds; None where it is not known."""
    try:
        rows = read_metrics(folder / "metrics.jsonl")
    except UserError:
        return None
    return float(rows[-1]["seconds"]) if rows else None
