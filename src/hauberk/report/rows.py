"""Rows of a table in a report: some before and after an attack, and what an attacker may change."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from hauberk.core.errors import UserError
from hauberk.core.imports import is_import_path
from hauberk.data import Table as DataTable
from hauberk.data import find_dataset
from hauberk.evaluation.attacked_rows import attack_rows
from hauberk.report.html import Block, Marked, Table
from hauberk.report.words import class_name
from hauberk.threat import read_threat, threats_of
from hauberk.training import load


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


def rows_of_run(folder: Path, card: dict[str, Any], table: DataTable) -> list[Block]:
    """Attack rows of the table with the run in ``folder``, of which no evaluation holds any.

    Raises:
        UserError: if the network cannot be loaded, or does not fit the table.
    """
    found = attack_rows(load(folder), table.test, threat=threats_of(read_threat(card["threat"]))[0])
    assert found is not None  # it is a table
    return row_blocks(asdict(found), table.test.class_names)


def row_blocks(found: dict[str, Any], class_names: Sequence[str]) -> list[Block]:
    """Show rows before and after an attack, then how far each column can change.

    Args:
        found: "attacked_rows" of the JSON of an evaluation.
        class_names: what each class is called.
    """
    rows, said = found["rows"], partial(class_name, {"class_names": class_names})
    broken = sum(row["predicted"] == row["label"] != row["predicted_attacked"] for row in rows)
    lines: list[list[Any]] = [
        ["true class", *(said(row["label"]) for row in rows)],
        ["the model says", *(_cell(said(row["predicted"]), said(row["predicted_attacked"])) for row in rows)],
    ]
    names = [column["name"] for column in found["columns"]]
    changed = [name for name in names if any(_text(row["clean"][name]) != _text(row["attacked"][name]) for row in rows)]
    for name in [*changed, *(name for name in names if name not in changed)]:
        lines.append([name, *(_cell(_text(row["clean"][name]), _text(row["attacked"][name])) for row in rows)])
    caption = (
        f"{len(rows)} test rows before → after an attack ({found['attack']}), which turns {broken} of them; what it changed is "
        "marked, and columns with a change come first"
    )
    limits = [[column["name"], column["kind"], column["can_change"]] for column in found["columns"]]
    limits.sort(key=lambda row: row[2].startswith("no"))
    return [
        Table("rows-under-attack", caption, ["", *(f"row {row['i']}" for row in rows)], lines),
        Table("what-can-change", "What an attacker may change, in units of the file", ["column", "kind", "can change"], limits),
    ]


def _cell(old: str, new: str) -> str:
    return old if old == new else Marked(f"{old} → {new}")


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
