"""Several threat models at once: an example is robust if it is so under each of them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hauberk.core.distributed import get_world
from hauberk.evaluation.certified import joined
from hauberk.evaluation.cost import dearest_of
from hauberk.evaluation.records import CLEAN, Records
from hauberk.evaluation.result import Evaluation
from hauberk.threat import ThreatModel, as_threat, threats_of
from hauberk.threat.union import names_of, threat_digest


def evaluate_union(evaluate: Callable[..., Evaluation], threats: Sequence[ThreatModel], out: str | Path | None) -> Evaluation:
    """Evaluate under each of the threat models, in folders of their own, and count what is robust under all.

    Args:
        evaluate: takes ``threat`` and ``out``.
        threats: the threat models.
        out: folder; None for none.

    Raises:
        UserError: for no threat model, the same one twice, and an estimate of one, which says little of the union.
    """
    union = as_threat(list(threats))
    results = {}
    for name, threat in zip(names_of(union), threats_of(union), strict=True):
        folder = None if out is None else Path(out) / re.sub(r"\W+", "-", name).strip("-")
        results[name] = evaluate(threat=threat, out=folder)
    found = _union_of(results, threat_digest(union))
    if out is not None and get_world().is_main:
        found.save(Path(out) / "evaluation.json")
    return found


def _union_of(results: dict[str, Evaluation], digest: str) -> Evaluation:
    """The evaluation whose attacks are those of all ``results``, by the names of the threat models; ``digest`` is of these."""
    first, records = next(iter(results.values())), _joined(results)
    left = np.bincount(records[CLEAN]["label"][records.robust], minlength=1) if first.by_class else np.zeros(1, dtype=int)
    members = np.bincount(records[CLEAN]["label"]) if first.by_class else left
    passes = [result.provenance["passes"] for result in results.values()]
    right, costs = records.right, [result.cost for result in results.values() if result.cost]
    recognised = int(records[CLEAN]["recognised"][right].sum()) / max(int(right.sum()), 1)
    return replace(
        first,
        threat=" and ".join(results),
        sequential=False,
        robust_accuracy=int(records.robust.sum()) / records.n,
        by_attack={name: result.robust_accuracy for name, result in results.items()},
        by_class={c: int(left[c]) / int(members[c]) if c < len(left) else 0.0 for c in first.by_class},
        detection=None if first.detection is None else {**first.detection, "detection_rate": recognised},
        curve=[],
        diagnostics=[replace(d, name=f"{name}: {d.name}") for name, result in results.items() for d in result.diagnostics],
        provenance=first.provenance
        | {
            "threat_digest": digest,
            "passes": {kind: sum(some[kind] for some in passes) for kind in passes[0]},
            "seconds": round(sum(result.provenance["seconds"] for result in results.values()), 3),
            **{
                key: {f"{name}: {a}": said for name, r in results.items() for a, said in r.provenance[key].items()}
                for key in ("attacks", "substitutes")
            },
        },
        records=records,
        certified=None if first.certified is None else joined([r.certified for r in results.values() if r.certified]),
        results=results,
        risk=None,  # each of the results has its own
        attacked_rows=None,
        cost=dearest_of(costs) if costs else None,
    )


def _joined(results: dict[str, Evaluation]) -> Records:
    """The records of all, in which each attack bears the name of its threat model, too; recognised is what all would be."""
    first = next(iter(results.values())).records
    joined = Records(first.n, [f"{name}: {attack}" for name, result in results.items() for attack in result.records.attacks])
    joined[CLEAN][:] = first[CLEAN]
    joined[CLEAN]["recognised"] = np.logical_and.reduce([r.records[CLEAN]["recognised"] for r in results.values()])
    for name, result in results.items():
        for attack in result.records.attacks:
            joined[f"{name}: {attack}"][:] = result.records[attack]
    return joined
