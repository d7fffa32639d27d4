"""Rows of a table in a report: what an attacker may change, and some rows before and after an attack."""

from pathlib import Path
from typing import Any

import torch

from hauberk.attacks import pgd
from hauberk.core.errors import UserError
from hauberk.core.imports import is_import_path
from hauberk.data import Table as DataTable
from hauberk.data import fetch_for, find_dataset
from hauberk.report.html import Block, Marked, Table
from hauberk.threat import ThreatModel, read_threat, threats_of
from hauberk.training import load

_ROWS = 5
_LOOKED_AT = 500
_WAYS = {"any": "up or down", "up": "up only", "down": "down only"}


def table_behind(card: dict[str, Any]) -> DataTable | None:
    """Return the table that a run was trained on, by the card of its checkpoint; None for other data, or where it is gone."""
    name = card["data"]["name"]
    if is_import_path(name):  # a report imports nothing
        return None
    try:
        named = find_dataset(name)
    except UserError:
        return None
    return named if isinstance(named, DataTable) else None


def table_blocks(folder: Path, card: dict[str, Any], table: DataTable) -> list[Block]:
    """Show rows of the run in ``folder`` before and after an attack, then what can change.

    Raises:
        UserError: if the network cannot be loaded, or does not fit the table.
    """
    threat = threats_of(read_threat(card["threat"]))[0]
    return [_attacked_rows(folder, table, threat), _limits(table, threat)]


def _attacked_rows(folder: Path, table: DataTable, threat: ThreatModel) -> Table:
    model, test = load(folder), table.test
    x, y = fetch_for(model, test, torch.arange(min(_LOOKED_AT, len(test))))
    x_adv = pgd(model, x, y, threat, steps=50, step_size="eps/10", loss="cw").x_adv
    with torch.no_grad():
        before, after = model(x).argmax(1).cpu(), model(x_adv).argmax(1).cpu()
    y = y.cpu()
    broken = (before == y) & (after != y)
    wanted = broken & (y == len(table.classes) - 1)
    order = torch.cat([some.nonzero().squeeze(1) for some in (wanted, broken & ~wanted, ~broken & (before == y))])[:_ROWS]
    clean, moved = table.rows(x.cpu()[order]), table.rows(x_adv.cpu()[order])
    names = [str(name) for name in test.class_names]
    places = order.tolist()
    rows: list[list[Any]] = [
        ["true class", *(names[y[k]] for k in places)],
        ["the network says", *(_cell(names[before[k]], names[after[k]]) for k in places)],
    ]
    changed = [name for name in clean.columns if (clean[name] != moved[name]).any()]
    for name in [*changed, *(name for name in clean.columns if name not in changed)]:
        pairs = zip(clean[name].tolist(), moved[name].tolist(), strict=True)
        rows.append([name, *(_cell(_text(old), _text(new)) for old, new in pairs)])
    count = int(broken[order].sum())
    caption = (
        f"{len(places)} test rows before → after an attack (PGD-50 on the margin), which turns {count} of them; what it "
        "changed is marked, and columns with a change come first"
    )
    return Table("rows-under-attack", caption, ["", *(f"row {k}" for k in places)], rows)


def _limits(table: DataTable, threat: ThreatModel) -> Table:
    """Say for each column how far it can change, in its own units."""
    radius = torch.as_tensor(threat.around(table.test.x[:1]).radius).expand(1, len(table.columns))[0].tolist()
    rows = []
    for name, feature in table.schema.features.items():
        eps = max(one for one, column in zip(radius, table.columns, strict=True) if column.feature == name)
        if feature.kind == "category":
            can = f"any of {sum(column.feature == name for column in table.columns)} values" if eps > 0.5 else "no"
        else:
            can = f"{_WAYS.get(feature.change, '')} by up to {eps:.4g}" if eps > 0 else "no"
        rows.append([name, feature.kind, can])
    rows.sort(key=lambda row: row[2] == "no")
    return Table("what-can-change", "What an attacker may change, in units of the file", ["column", "kind", "can change"], rows)


def _cell(old: str, new: str) -> str:
    return old if old == new else Marked(f"{old} → {new}")


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
