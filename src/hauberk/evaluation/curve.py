"""Robust accuracy against ε: for each example the smallest distance at which it was broken, found once for all ε."""

import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.attacks import PGD, Attack, ModelQueries, find_attack, frozen_model
from hauberk.attacks.base import GOAL, attack_batch
from hauberk.attacks.minimum_norm import MinimumNormAttack, distance, proportions
from hauberk.attacks.model.check_model import check_logits, check_model, check_module
from hauberk.attacks.presets import AttackLike, find_attacks
from hauberk.core.arguments import checked
from hauberk.core.device import send
from hauberk.core.distributed import get_world
from hauberk.core.errors import UserError
from hauberk.core.imports import code_digest
from hauberk.core.io import machine, versions
from hauberk.core.numerics import deterministic_mode, float32_mode
from hauberk.core.progress import ProgressBar
from hauberk.core.random import ExampleRng, content_ids
from hauberk.data import IndexedDataset, as_dataset, fetch_for
from hauberk.evaluation.identity import evaluated_digest
from hauberk.evaluation.records import CLEAN, RecordStore
from hauberk.evaluation.robustness_curve import RobustnessCurve
from hauberk.evaluation.verify import read_columns, verify_adversarial
from hauberk.fastpath.frozen_copy import make_inference_copy
from hauberk.models import model_id
from hauberk.objectives.functional import logit_margin
from hauberk.threat import ThreatModel, parse_eps
from hauberk.threat.batch import check_inputs

NEAREST = ("fmn-100", "ddn-100", "sigma-zero-1000")  # by name, those that are defined in the norm
WITHIN = ("apgd-ce-5", "apgd-t")
WITHIN_L0 = (PGD(100, "eps", loss="cw", restarts=3),)
GRID = 16  # values of ε, up to twice that of the threat model
_TABLE = "nearest"


@checked
def robustness_curve(
    model: nn.Module,
    test_set: Any,
    *,
    threat: ThreatModel,
    eps: Sequence[float | str] = (),
    attacks: Sequence[AttackLike] = (),
    within: Sequence[AttackLike] = (),
    n: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    out: str | Path | None = None,
    quiet: bool = False,
) -> RobustnessCurve:
    """Measure robust accuracy as a function of ε, in one run.

    Minimum-norm attacks look for the nearest adversarial example of each input. Then attacks of a given ε are tried at the
    largest ε of the grid that is smaller than the distance found; where one succeeds, at the next smaller one, and so on. So
    an example counts as robust at an ε of the grid only after these attacks, too, have failed there or further out. Every
    point is verified in float32 on the model itself, in the box and within its own distance. What is said of any ε is an
    upper bound: a stronger attack may find a nearer example.

    Args:
        model: classifier from inputs (B, ...) in the box to logits (B, C), on the device to use; unchanged afterwards.
        test_set: a pair (x, y) of arrays, a map-style ``Dataset``, or what ``hauberk.data.load_data`` returns.
        threat: norm, box, frozen features; with one ε for each feature, distances are along the one with the largest.
        eps: the grid, numbers or fractions such as "8/255"; by default 16 values up to twice the ε of the threat model.
        attacks: minimum-norm attacks, by name or as objects; by default FMN, DDN in L2 and sigma-zero in L0.
        within: attacks of a given ε; by default APGD on cross-entropy with 5 restarts and targeted APGD, in L0 PGD.
        n: the first n examples only.
        batch_size: examples at a time.
        seed: of all random draws, which are keyed by the content of the example.
        out: folder to keep distances in as they come; called again with the same arguments, the search goes on there.
        quiet: print nothing.

    Raises:
        UserError: for data, model, threat model and attacks that do not fit together, or a folder in use.
    """
    check_module(model)
    if get_world().size > 1:
        raise UserError("a robustness curve is measured by one process; start it without torchrun")
    source, folder = as_dataset(test_set), None if out is None else Path(out)
    count = len(source) if n is None else n
    if not 1 <= count <= len(source) or batch_size < 1:
        raise UserError(f"n must be 1 to {len(source)} and batch_size positive, got {count} and {batch_size}")
    first_x, first_y = fetch_for(model, source, torch.arange(min(count, batch_size)))
    check_inputs(first_x, first_y, threat, source.classes)
    outputs = check_model(model, first_x, first_y, source.classes, probabilities=True)
    grid = _grid(threat, eps)
    nearest, inside = _attacks(threat, attacks, within, outputs)
    plan = {
        "n": count, "stages": {_TABLE: []}, "curve": list(grid), "threat": threat.to_dict(), "seed": seed,
        "batch_size": batch_size, "attacks": {name: code_digest(one) for name, one in (nearest | inside).items()},
        "data": source.name, "data_digest": evaluated_digest(source, count), "model_id": model_id(model),
        **{name: versions()[name] for name in ("hauberk", "torch", "python")},
    }  # fmt: skip
    store = RecordStore(folder, plan)
    with (
        closing(store),
        ProgressBar("curve", 1000, quiet=quiet) as display,
        deterministic_mode(first_x.device, algorithms=False),
        float32_mode("fp32"),
        frozen_model(model) as view,
    ):
        torch.manual_seed(seed)  # for random models; frozen_model puts the caller's generator back
        search = _Search(ModelQueries(view), make_inference_copy(view, first_x), threat, grid, nearest, inside, seed)
        todo = np.flatnonzero(~store.records[_TABLE]["known"])
        for start in range(0, len(todo), batch_size):
            mine = todo[start : start + batch_size]
            _measure(search, source, mine, store)
            done = (count - len(todo) + start + len(mine)) / count
            display.reach(done, f"{round(done * count)} of {count} examples")
        store.write_cost(search.passes)
    table = store.records[_TABLE]
    names = [CLEAN, *nearest, *inside]
    result = RobustnessCurve(
        threat=str(threat), norm=str(threat.norm), eps_text=threat.eps_text, eps=grid,
        distances=np.where(table["broken"], table["norm"], np.inf),
        found_by=[names[k] if k >= 0 else None for k in np.where(table["broken"], table["run"], -1).tolist()],
        provenance={
            "seed": seed, "batch_size": batch_size, "data": source.name, "attacks": [*nearest, *inside],
            "subset": "all" if count == len(source) else f"first {count} of {len(source)}", **store.records.cost(),
            "model_id": plan["model_id"], "versions": versions(), "machine": machine(first_x.device),
        },
    )  # fmt: skip
    if folder is not None:
        result.save(folder / "curve.json")
    return result


def _grid(threat: ThreatModel, eps: Sequence[float | str]) -> tuple[float, ...]:
    """The values of ε, from the smallest to the largest."""
    if not eps:
        largest = _largest(threat)
        values = [2 * largest * k / GRID for k in range(1, GRID + 1)]
        values = [max(round(value), 1) for value in values] if threat.norm.p == 0 else values
    else:
        values = [float(parse_eps(value)[0]) for value in eps]
    grid = tuple(sorted({float(value) for value in values}))
    if grid[0] <= 0:
        raise UserError("a robustness curve needs values of eps above 0, and a threat model whose eps is")
    return grid


def _largest(threat: ThreatModel) -> float:
    """ε, or that of the feature with the largest."""
    return float(threat.eps.double().max()) if isinstance(threat.eps, Tensor) else threat.eps


def _attacks(
    threat: ThreatModel, attacks: Sequence[AttackLike], within: Sequence[AttackLike], outputs: int
) -> tuple[dict[str, Attack[Any]], dict[str, Attack[Any]]]:
    """Minimum-norm attacks, and those of a given ε, by name."""
    usual: list[AttackLike] = [name for name in NEAREST if find_attack(name)[1].attack.defined_in(threat.norm)]
    nearest: dict[str, Attack[Any]] = {}
    for name, preset in find_attacks(attacks or usual).items():
        if not isinstance(preset.attack, MinimumNormAttack):
            raise UserError(f"{name} is no minimum-norm attack; attacks of a given eps go into within=")
        nearest[name] = preset.attack.for_threat(threat)
    usual = [name for name in WITHIN if find_attack(name)[1].attack.defined_in(threat.norm)] or list(WITHIN_L0)
    presets = find_attacks(within or usual)
    return nearest, {name: preset.adapted(threat, outputs)[0] for name, preset in presets.items()}


def _measure(search: "_Search", source: IndexedDataset, mine: np.ndarray, store: RecordStore) -> None:
    """Find the distances of some examples, and keep them."""
    x, y = fetch_for(search.reference.model, source, torch.from_numpy(mine))
    check_inputs(x, y, search.threat, source.classes)
    logits, ids = search.reference.logits(x), send(content_ids(x), x.device)
    check_logits(logits, y, probabilities=True)
    predicted = logits.argmax(1)
    found = search.run(x, y, ids, predicted != y)
    clean = {"id": ids, "label": y, "predicted": predicted, "margin": logit_margin(logits, y), "right": predicted == y}
    store.write(CLEAN, mine, **read_columns(clean))
    seen = read_columns({"broken": found.by >= 0, "norm": found.distance, "run": found.by})
    store.write(_TABLE, mine, **{**seen, "norm": np.where(seen["broken"], seen["norm"], -1.0)})


@dataclass
class _Found:
    """The nearest verified adversarial examples of a batch so far."""

    distance: Tensor  # (B,) float64, infinity for none
    by: Tensor  # (B,) int64, 0 for the clean input, else 1 + the number of the attack, -1 for none


@dataclass
class _Search:
    """How distances are found.

    Attributes:
        reference: the caller's model, for verdicts.
        attacked: the form of it that attacks see.
        threat: norm, box and frozen features.
        grid: values of ε, rising.
        nearest: minimum-norm attacks.
        within: attacks of a given ε.
        seed: of the draws.
    """

    reference: ModelQueries
    attacked: nn.Module
    threat: ThreatModel
    grid: tuple[float, ...]
    nearest: dict[str, Attack[Any]]
    within: dict[str, Attack[Any]]
    seed: int

    def __post_init__(self) -> None:
        self._passes = {"forwards": 0.0, "backwards": 0.0}
        self._largest = _largest(self.threat)

    @property
    def passes(self) -> dict[str, int]:
        """Examples that went forward and backward."""
        return {kind: round(count) + getattr(self.reference, kind) for kind, count in self._passes.items()}

    def run(self, x: Tensor, y: Tensor, ids: Tensor, wrong: Tensor) -> _Found:
        """Search for the nearest adversarial examples of inputs (B, ...), of which some are ``wrong`` as they are."""
        distance = torch.where(wrong, 0.0, torch.inf).double()
        found = _Found(distance, torch.where(wrong, 0, -1))
        for number, (name, attack) in enumerate(self.nearest.items()):
            rows = (found.distance > 0).nonzero().squeeze(1)
            if len(rows):
                points, claimed = self._attack(name, attack, self.threat, x, y, ids, rows, None)
                self._take(found, points, claimed, 1 + number, x, y, rows, None)
        self._descend(found, x, y, ids)
        return found

    def _descend(self, found: _Found, x: Tensor, y: Tensor, ids: Tensor) -> None:
        """Try the attacks of a given ε at the next ε of the grid below each distance, as long as one succeeds."""
        grid = torch.tensor(self.grid, dtype=torch.float64, device=x.device)
        widest = self.threat.scaled(self.grid[-1] / self._largest)
        going = found.distance > grid[0]
        while bool(going.any()):
            place = torch.searchsorted(grid, found.distance) - 1  # the largest ε below the distance
            before = found.distance.clone()
            for number, (name, attack) in enumerate(self.within.items()):
                rows = (going & (found.distance == before)).nonzero().squeeze(1)
                if not len(rows):
                    break
                eps = grid[place[rows]]
                points, claimed = self._attack(name, attack, widest, x, y, ids, rows, eps / grid[-1])
                self._take(found, points, claimed, 1 + len(self.nearest) + number, x, y, rows, eps)
            going = going & (found.distance < before) & (found.distance > grid[0])

    def _attack(
        self, name: str, attack: Attack[Any], threat: ThreatModel, x: Tensor, y: Tensor, ids: Tensor, rows: Tensor,
        fraction: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Run an attack on some rows; returns points, and which are said to be adversarial."""
        rng = ExampleRng(self.seed, ids[rows], zlib.crc32(name.encode()))
        part = None if fraction is None else fraction.to(x.dtype)
        done = attack_batch(attack, self.attacked, x[rows], y[rows], threat, seed=rng, radius_fraction=part)
        for kind in self._passes:
            self._passes[kind] += len(rows) * getattr(done, kind)
        return done.x_adv, done.success

    def _take(
        self, found: _Found, points: Tensor, claimed: Tensor, by: int, x: Tensor, y: Tensor, rows: Tensor, eps: Tensor | None
    ) -> None:
        """Keep the points that are nearer than what is known, and hold when looked at again within their own distance."""
        exact = self.threat.around(x[rows].double())
        away = distance(exact, points.double(), proportions(exact))
        away = away if eps is None else torch.minimum(away, eps)  # inside by the rounding of the inputs' own numbers
        nearer = (claimed & (away < found.distance[rows])).nonzero().squeeze(1)
        if not len(nearer):
            return
        rows, points, away = rows[nearer], points[nearer], away[nearer]
        largest = float(away.max())
        sets = self.threat.scaled(largest / self._largest).around(x[rows]).with_radius_scaled((away / largest).to(x.dtype))
        holds = verify_adversarial(self.reference, sets, points, y[rows], len(x), GOAL)["holds"]
        found.distance[rows] = torch.where(holds, away, found.distance[rows])
        found.by[rows] = torch.where(holds, by, found.by[rows])
