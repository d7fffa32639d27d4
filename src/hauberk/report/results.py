"""Everything that was measured of a run: which evaluation counts most, and all of them, curves and certificates beside it."""

from collections import Counter
from pathlib import Path
from typing import Any

from hauberk.core.errors import SCHEMA_ERRORS, UserError
from hauberk.core.io import read_json
from hauberk.evaluation.finding import Diagnostic, warning_mark
from hauberk.models import model_id
from hauberk.report.curve import curve_figure, curve_of
from hauberk.report.figures import lines
from hauberk.report.html import Block, Figure, Section, Table
from hauberk.report.reproduce import PLAIN_THREAT
from hauberk.report.words import data_name, interval_in_words, reach_in_words
from hauberk.threat import read_threat
from hauberk.threat.union import threat_digest
from hauberk.training import load

_BY_STRENGTH = "plus", "standard", "fast", "papers", "rand", "custom", "scores", "quick"  # suites
_RANKS = {name: k for k, name in enumerate(_BY_STRENGTH)}
_OTHER = "of other weights than the best checkpoint's"


def read_evaluations(folder: Path, card: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Read the evaluations of the run in ``folder``, by the names of their folders, the one that counts most first.

    That is one of the best checkpoint, whose card is ``card``, under the threat model of the training, by the strongest suite,
    on most examples. Where certificates are of the same examples, weights and threat model, they are what it has as
    "certified".
    """
    found = {path.parent.name: read_json(path) for path in sorted(folder.glob("evaluations/*/evaluation.json"))}
    if not found:
        return {}
    digest, best = threat_digest(read_threat(card["threat"])), _best_id(folder)
    for one in found.values():
        one["other_weights"] = best not in ("", one["provenance"]["model_id"])

    def rank(name: str) -> tuple[Any, ...]:
        one = found[name]
        other_threat = one["provenance"]["threat_digest"] != digest
        return one["other_weights"], other_threat, _RANKS.get(one["suite"], len(_RANKS)), -one["n"]

    proofs = [read_json(path) for path in sorted(folder.glob("certificates/*/certificates.json"))]
    return {name: _with_proof(found[name], proofs) for name in sorted(found, key=rank)}


def _best_id(folder: Path) -> str:
    """Return the digest of the best checkpoint's weights as evaluations have it; empty where the network cannot be built."""
    try:
        return model_id(load(folder))
    except (UserError, *SCHEMA_ERRORS):
        return ""


def _with_proof(found: dict[str, Any], proofs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return an evaluation with the certificates of the same examples that prove most, where it has none of its own."""
    same = [proof for proof in proofs if _of_the_same(proof, found)]
    if found["certified"] is not None or not same:
        return found
    proof = max(same, key=lambda one: one["certified_accuracy"])
    share = proof["certified_accuracy"]
    by = Counter(example["proved_by"] for example in proof["examples"] if example["proved_by"])
    certified = {"accuracy": share, "interval": proof["interval"], "undecided": found["robust_accuracy"] - share, "by": by}
    return {**found, "certified": certified}


def _of_the_same(proof: dict[str, Any], found: dict[str, Any]) -> bool:
    plain = PLAIN_THREAT.fullmatch(found["threat"])  # others do not say all in a line
    alike = all(proof["provenance"][key] == found["provenance"][key] for key in ("data", "subset", "model_id"))
    return bool(plain) and alike and (proof["threat"], proof["n"]) == (found["threat"], found["n"])


def result_sections(folder: Path, evaluations: dict[str, dict[str, Any]]) -> list[Section]:
    """Lay out all evaluations, curves and certificates of a run, and draw the curves; nothing where there is one at most.

    Args:
        folder: of the run.
        evaluations: what :func:`read_evaluations` returns.
    """
    rows = [_evaluation_row(name, found) for name, found in evaluations.items()]
    if rows:
        rows[0][0] += " (in detail below)"
    blocks: list[Block] = []
    for path in sorted(folder.glob("evaluations/*/curve.json")):
        row, figure = _curve(path.parent.name, read_json(path))
        rows.append(row)
        blocks.append(figure)
    for path in sorted(folder.glob("certificates/*/certificates.json")):
        found = read_json(path)
        shares = _percent(found["clean_accuracy"]), "", _percent(found["certified_accuracy"])
        how = f"proofs: {', '.join(found['methods'])}"
        rows.append(_row(f"certificates/{path.parent.name}", found["threat"], how, found, *shares))
    for path in sorted(folder.glob("certificates/*/smoothing.json")):
        row, figure = _smoothing(path.parent.name, read_json(path))
        rows.append(row)
        blocks.append(figure)
    others = any(found["other_weights"] for found in evaluations.values())
    if len(rows) < 2 and not blocks and not others:
        return []
    caption = "Everything that was measured of this run, in % of the examples; (!) after a number: there are warnings about it"
    header = ["evaluation", "clean, %", "at most, %", "at least, %", "examples", "threat model", "by", "date"]
    return [Section("All evaluations", [Table("all-evaluations", caption, header, rows), *blocks])]


def _row(name: str, threat: str, how: str, found: dict[str, Any], clean: str, most: str, least: str) -> list[str]:
    date = found["provenance"]["versions"].get("date", "")[:10]
    return [name, clean, most, least, f"{found['n']:,}", threat, how, date]


def _evaluation_row(name: str, found: dict[str, Any]) -> list[str]:
    threat = reach_in_words(found).partition(";")[0] or found["threat"]
    most = _percent(found["robust_accuracy"]) + warning_mark([Diagnostic(**one) for one in found["diagnostics"]])
    least = _percent(found["certified"]["accuracy"]) if found["certified"] else ""
    name = f"{name}, {_OTHER}" if found["other_weights"] else name
    return _row(name, threat, ", ".join(found["by_attack"]), found, _percent(found["clean_accuracy"]), most, least)


def _curve(name: str, found: dict[str, Any]) -> tuple[list[str], Figure]:
    """Return a row and a picture of robust accuracy at every ε."""
    curve = curve_of(found)
    most = _percent(curve.robust_accuracy(curve.eps_text)) if curve.eps_text else ""
    by = f"nearest examples: {', '.join(sorted({one for one in curve.found_by if one and one != 'clean'}))}"
    row = _row(name, curve.threat, by, found, _percent(curve.clean_accuracy), most, "")
    return row, curve_figure(curve, f"curve-{name}")


def _smoothing(name: str, found: dict[str, Any]) -> tuple[list[str], Figure]:
    """Return a row and a picture of what randomised smoothing certified."""
    name = f"certificates/{name}"
    x, shares = ([point[key] for point in found["curve"]] for key in ("radius", "certified_accuracy"))
    points = [
        [f"{point['radius']:.4g}", _percent(point["certified_accuracy"]), interval_in_words(point["interval"])]
        for point in found["curve"]
    ]
    caption = (
        f"Certified accuracy of the smoothed classifier, at least, against the L2 radius ({name}): σ = {found['sigma']:g}, "
        f"each certificate holds with probability {1 - found['alpha']:.4g}. {data_name(found['provenance'])}, "
        f"n = {found['n']:,}"
    )
    picture = lines(
        x, {"certified": [100 * share for share in shares]}, xlabel="L2 radius", ylabel="certified, %", ylim=(0, 102)
    )
    figure = Figure("smoothing", caption, ["L2 radius", "certified, %", "95 % interval"], points, picture)
    how = f"randomised smoothing, σ = {found['sigma']:g}"
    return _row(name, "any L2 radius, see the picture", how, found, _percent(found["accuracy"]), "", ""), figure


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
