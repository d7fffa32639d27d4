"""The first draft of a table's schema: kinds, bounds and ε guessed from the values, and in words what it lets change."""

import json
import math
from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from hauberk.core.errors import UserError, unknown_name
from hauberk.data.tables.reach import Reach, reach_of
from hauberk.data.tables.schema import parse_schema
from hauberk.data.tables.table import column_of, make_table, texts_of, values_of

if TYPE_CHECKING:
    from pandas import DataFrame

_EPS = 0.25  # standard deviations
_ONE_UNIT = 1.1  # units of an integer that its ε comes to at least: the deviation of the training rows is a little different
_MOST_VALUES = 20  # of a column of words where most rows have one of their own: more are names or dates, and no category
_MOST_CLASSES = 100
_ADVICE = (
    "As it stands, that is the worst case: write change = "
    '"none" where nobody can change a column, "up" or "down" where only one way.'
)


def infer_schema(frame: "DataFrame", label: str, train: str, target: str = "", can_change: Sequence[str] = ()) -> str:
    """Return the text of a schema to start from: kinds guessed from the values, bounds from what is there.

    Everything can change in it unless ``can_change`` says what, each number by a quarter of a standard deviation, an integer by
    one unit at least, a category to any other value: the worst case, from which those are to be taken that nobody can change.
    Columns of one value, and of words that are no category, such as names and dates, are left out.

    Args:
        frame: the rows.
        label: column with the class.
        train: name of the file that they were read from.
        target: the class of interest (default, fraud), a value of the label, whose recall and cost are measured; needed where
            there are two.
        can_change: the columns that can change, where not all of them can.

    Raises:
        UserError: if there is no such column or class, the label is no class or has missing values, or the class of interest
            is not told.
    """
    classes = _classes(frame, label, target)
    head = [
        f"train = {_quoted(train)}",
        f"label = {_quoted(label)}",
        f"classes = [{', '.join(map(_quoted, classes))}]" + "  # the class of interest last" * bool(target),
        "test_fraction = 0.2  # of the rows, drawn by class; or test = a file; or the last ones by date = a column",
        f"eps = {_EPS:g}  # standard deviations: how far a column without an eps of its own may move",
    ]
    if len(classes) == 2:
        missed, alarm = (f"taking {_quoted(one)} for {_quoted(other)}" for one, other in (classes[::-1], classes))
        head.append(f"costs = [1, 1]  # of {missed}, of {alarm}: yours to say")
    for name in can_change:
        column_of(frame, name)  # refuses what is none
    used, left_out = dict[str, list[str]](), dict[str, str]()
    for name in map(str, frame.columns):
        if name != label:
            lines, why = _drafted(name, frame[name], "any" if name in can_change or not can_change else "none")
            if why:
                left_out[name] = f"{name} is left out: {why}"
            else:
                used[name] = lines
    if not used:
        raise UserError(f"there is no column besides {label!r} to learn from: {'; '.join(left_out.values())}")
    for name in can_change:
        if name not in used:
            raise UserError(f"{name} cannot change: {left_out.get(name, 'it is the label')}")
    features = {name: ["", f"[features.{_quoted(name)}]", *lines] for name, lines in used.items()}
    said, how = _said(frame, [*head, *(line for lines in features.values() for line in lines)])
    notes = [said, *([] if can_change else [_ADVICE]), *left_out.values()]
    comments = [f"# {line}" for note in notes for line in wrap(note, 110)]
    for name, lines in features.items():
        if name in how:
            lines.insert(2, f"# can change {how[name]}")
    return "\n".join([*comments, *head, *(line for lines in features.values() for line in lines)]) + "\n"


def _classes(frame: "DataFrame", label: str, target: str) -> tuple[str, ...]:
    """The classes, that of interest last."""
    counts = texts_of(frame, label).value_counts()
    values = values_of(frame, label)
    if len(values) > max(2, min(_MOST_CLASSES, len(frame) // 2)):
        raise UserError(f"the label {label!r} has {len(values):,} different values in {len(frame):,} rows, so it is no class")
    if target and target not in values:
        raise unknown_name("class", target, values)
    if len(values) == 2 and not target:
        there = " or ".join(f"{value!r} ({counts[value]:,} rows)" for value in values)
        raise UserError(f"which class is the one of interest, whose recall and cost count, {there}? Say it: --target VALUE")
    return (*(value for value in values if value != target), *([target] if target else []))


def _drafted(name: str, column: Any, change: str) -> tuple[list[str], str]:
    """The lines of a column, or why it is left out."""
    from pandas.api.types import is_bool_dtype, is_integer_dtype, is_numeric_dtype

    different = int(column.nunique(dropna=False))
    if different < 2:
        return [], "it has only one value"
    if not is_numeric_dtype(column) or is_bool_dtype(column):
        if different > max(_MOST_VALUES, len(column) // 2):
            return (
                [],
                f"{different:,} different values in {len(column):,} rows are no category (a name, a number of a row, a date?)",
            )
        values = ", ".join(_quoted(value) for value in sorted(map(str, column.dropna().unique())))
        return ['kind = "category"', f'change = "{change}"', f"values = [{values}]"], ""
    integer, spread = is_integer_dtype(column), float(column.std(ddof=0))
    lines = [
        f'kind = "{"integer" if integer else "number"}"',
        f'change = "{change}"',
        f"low = {column.min()}",
        f"high = {column.max()}",
    ]
    if integer and change == "any" and _EPS * spread < _ONE_UNIT:
        lines.append(f"eps = {math.ceil(100 * _ONE_UNIT / spread) / 100:g}  # 1 unit; {_EPS:g} would let it change by none")
    return lines, ""


def _said(frame: "DataFrame", lines: list[str]) -> tuple[str, dict[str, str]]:
    """What can change by these lines, and how far, by column; or why they cannot be read."""
    try:
        table = make_table(parse_schema("\n".join(lines), "the first schema"), frame, frame)
        reach = reach_of(table.train, table.threat)
    except UserError as error:
        return f"Cannot be read as it is: {error}.", {}
    assert isinstance(reach, Reach)
    return f"{reach}.", dict(reach.how)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
