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
        given: the folder of the standard run; by default one beside ``folder``, of the same data and network.

    Returns:
        The folder, and the first two evaluations, its and the run's, of the same examples under the same attacks and threat
        model; None where there are none.

    Raises:
        UserError: if the folder that was given has no such evaluation, or holds no run.
    """
    if given is None and plan["method"]["name"] == "standard":
        return None
    places = [given] if given else sorted(path.parent for path in folder.resolve().parent.glob("*/run.json"))
    for place in places:
        try:
            other = read_json(place / "run.json")
            fits = given is not None or _is_standard_of(other, plan)
            others = _evaluations(place) if fits else []
        except (UserError, *SCHEMA_ERRORS):
            if given:
                raise
            continue  # another's run, damaged or of another version
        for found in evaluations:
            if match := next((one for one in others if _same(one, found)), None):
                return place, match, found
    if given:
        raise UserError(f"{given} has no evaluation of the same examples, threat model and suite as {folder}")
    return None


def _is_standard_of(other: dict[str, Any], plan: dict[str, Any]) -> bool:
    alike = all(other[part]["name"] == plan[part]["name"] for part in ("data", "model"))
    return alike and other["method"]["name"] == "standard"


def _evaluations(folder: Path) -> list[dict[str, Any]]:
    return [read_json(path) for path in sorted(folder.glob("evaluations/*/evaluation.json"))]


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
