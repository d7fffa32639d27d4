"""From rows of a pandas DataFrame to inputs of a network, with every value checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hauberk.core.errors import UserError, unknown_name
from hauberk.tables.schema import Description, Feature

if TYPE_CHECKING:
    from pandas import DataFrame, Series


@dataclass(frozen=True, eq=False)
class Column:
    """One input of the network: a feature, or one value of a category.

    Attributes:
        feature: its name.
        value: of the category; empty for a number.
    """

    feature: str
    value: str = ""


def columns_of(frame: "DataFrame", description: Description) -> tuple[Column, ...]:
    """Return the inputs that the features become; values of a category that names none are those in the rows."""
    columns: list[Column] = []
    for feature, about in description.features.items():
        if about.kind == "category":
            columns += [Column(feature, value) for value in about.values or values_of(frame, feature)]
        else:
            columns.append(Column(feature))
    return tuple(columns)


def values_of(frame: "DataFrame", name: str) -> tuple[str, ...]:
    """Return the values of a column as text, in order."""
    return tuple(sorted(map(str, column_of(frame, name).unique())))


def encode(frame: "DataFrame", description: Description, columns: Sequence[Column]) -> Tensor:
    """Return rows as inputs (N, D).

    Raises:
        UserError: if a column is missing, or a value is missing, not finite, out of bounds, not whole or unknown.
    """
    encoded = []
    for column in columns:
        values, feature = column_of(frame, column.feature), description.features[column.feature]
        if feature.kind == "category":
            encoded.append(torch.tensor((values.astype(str) == column.value).to_numpy(copy=True), dtype=torch.float64))
        else:
            encoded.append(_numbers(values, column.feature, feature))
    _check_categories(frame, description, columns)
    return torch.stack(encoded, 1).float()


def _numbers(values: "Series[Any]", name: str, feature: Feature) -> Tensor:
    try:
        numbers = torch.tensor(values.to_numpy(dtype="float64", copy=True))
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {error}; a column of words is a category") from error
    problems = {
        "not finite or missing": ~numbers.isfinite(),
        f"outside [{feature.low:g}, {feature.high:g}]": (numbers < feature.low) | (numbers > feature.high),
        "not whole": (numbers != numbers.round()) & (feature.kind == "integer"),
        "beyond what float32 counts exactly": (numbers.abs() > 2**24) & (feature.kind == "integer"),
    }
    for problem, where in problems.items():
        if bool(where.any()):
            row = int(where.nonzero()[0])
            raise UserError(f"{name}: {int(where.sum())} values are {problem}, the first in row {row}: {numbers[row].item():g}")
    return numbers


def _check_categories(frame: "DataFrame", description: Description, columns: Sequence[Column]) -> None:
    for name, feature in description.features.items():
        if feature.kind == "category":
            known = {column.value for column in columns if column.feature == name}
            if unknown := sorted(set(frame[name].astype(str)) - known):
                raise UserError(f"{name} has values that are not described: {', '.join(unknown[:5])}")


def encode_labels(frame: "DataFrame", label: str, classes: Sequence[str]) -> Tensor:
    """Return labels (N,).

    Raises:
        UserError: if the column is missing, or a value is unknown.
    """
    places = {value: k for k, value in enumerate(classes)}
    found = column_of(frame, label).astype(str)
    if unknown := sorted(set(found) - set(places)):
        raise UserError(f"the label {label!r} has values that are not described: {', '.join(unknown[:5])}")
    return torch.tensor([places[value] for value in found])


def column_of(frame: "DataFrame", name: str) -> "Series[Any]":
    """Return a column.

    Raises:
        UserError: if there is none of that name.
    """
    if name not in frame.columns:
        raise unknown_name("column", name, [str(column) for column in frame.columns])
    return frame[name]
