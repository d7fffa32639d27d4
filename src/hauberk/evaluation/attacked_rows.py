"""Some rows of a table before and after an attack, and how far each of its columns can change: what a reader looks for."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.attacks import PGD, Attack, Square, frozen_model
from hauberk.attacks.model.check_model import has_gradient
from hauberk.core.numerics import float32_mode
from hauberk.data import IndexedDataset, fetch_for, reach_of
from hauberk.data.tables.rows import TableDataset, rows_behind
from hauberk.evaluation.records import CLEAN, Records
from hauberk.threat import ThreatModel

_SHOWN = 5
_LOOKED_AT = 500
_QUERIES = 200


@dataclass(frozen=True)
class AttackedRows:
    """Some rows of a table before and after an attack, and how far each column can change, in the units of the file.

    Attributes:
        attack: what they were attacked by, in words.
        columns: of each column that is used its "name", its "kind" and, in words, how far it "can_change".
        rows: of each row its number "i" among the examples, its "label", the classes "predicted" without an attack and
            "predicted_attacked", and by column its values, "clean" and "attacked".
    """

    attack: str
    columns: list[dict[str, str]]
    rows: list[dict[str, Any]]


def attack_rows(
    model: nn.Module, dataset: IndexedDataset, *, threat: ThreatModel, seed: int = 0, records: Records | None = None
) -> AttackedRows | None:
    """Attack some rows of a table, to show them; None of a data set that is no rows of a table.

    Those that lose their class come first, of them those of the last class, which is the one of interest. The attack is PGD-50
    on the margin, and Square where there are categories or no gradient. What is shown of an attacked row, and what the model
    says of it, is of the nearest valid row.

    Args:
        model: classifier from inputs (B, D) to logits, on the device to use; unchanged afterwards.
        dataset: the rows.
        threat: what the adversary may do.
        seed: of the random draws.
        records: of an evaluation of these rows: those that it broke are looked at first.
    """
    if (rows := rows_behind(dataset)) is None:
        return None
    index = _in_order(records)[:_LOOKED_AT] if records else torch.arange(min(_LOOKED_AT, len(dataset)))
    with frozen_model(model) as view, float32_mode("fp32"):
        x, y = fetch_for(model, dataset, index)
        by, x_adv = _attacked(view, rows, x, y, threat, seed)
        with torch.no_grad():
            before, after = view(x).argmax(1), view(x_adv).argmax(1)
    broken, wrong = (before == y) & (after != y), before != y
    order = _sorted((wrong, ~broken, y != len(rows.class_names) - 1))[:_SHOWN]
    found = [
        {"i": i, "label": label, "predicted": old, "predicted_attacked": new, "clean": clean, "attacked": attacked}
        for i, label, old, new, clean, attacked in zip(
            index[order].tolist(), *(column[order].tolist() for column in (y.cpu(), before.cpu(), after.cpu())),
            *(_by_row(rows.values(points[order.to(points.device)])) for points in (x, x_adv)), strict=True,
        )
    ]  # fmt: skip
    return AttackedRows(by, _limits(dataset, rows, threat), found)


def _in_order(records: Records) -> Tensor:
    """Order the examples as :func:`attack_rows` shows them, by what an evaluation found."""
    label, right = records[CLEAN]["label"], records.right
    return _sorted(tuple(map(torch.from_numpy, (~right, records.robust, label != label.max()))))


def _sorted(keys: tuple[Tensor, ...]) -> Tensor:
    """Return an order of examples in which the first key (B,) counts most, False before True."""
    return torch.from_numpy(np.lexsort([key.cpu().numpy() for key in reversed(keys)]))


def _attacked(view: nn.Module, rows: TableDataset, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> tuple[str, Tensor]:
    """Return what was run, and for each input the nearest valid row of the first point that loses it its class."""
    attacks: dict[str, Attack[Any]] = {"PGD-50 on the margin": PGD(50, "eps/10", loss="cw")} if has_gradient(view) else {}
    if threat.one_hot is not None or not attacks:
        attacks[f"Square of {_QUERIES} queries"] = Square(_QUERIES)
    found: Tensor | None = None
    for attack in attacks.values():
        points = rows.nearest(attack(view, x, y, threat, seed=seed).x_adv)
        with torch.no_grad():
            taken = (view(points).argmax(1) != y)[:, None]
            found = points if found is None else torch.where(taken & (view(found).argmax(1) == y)[:, None], points, found)
    assert found is not None  # there is always one of the attacks
    return ", then ".join(attacks), found


def _by_row(values: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def _limits(dataset: IndexedDataset, rows: TableDataset, threat: ThreatModel) -> list[dict[str, str]]:
    reach = reach_of(dataset, threat)
    assert reach is not None  # these are rows of a table
    why = {name: f"no: {reason}" for reason, names in reach.stuck.items() for name in names}
    return [
        {"name": name, "kind": feature.kind, "can_change": reach.how.get(name, why.get(name, "no"))}
        for name, feature in rows.features.items()
    ]
