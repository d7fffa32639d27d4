"""Splits by date: the test examples come after all training examples, as they will when the model is used."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hauberk.core.arguments import checked
from hauberk.core.errors import UserError, in_one_line


@checked
def split_by_date(
    dates: Any, test_fraction: float = 0.2, *, starts: Any = None, gap: float | np.timedelta64 = 0
) -> tuple[Tensor, Tensor]:
    """Split examples so that every training example is over before the first test example begins.

    Examples of one date are never parted. The boundary is the earliest date from which on at most ``test_fraction`` of the
    examples are, or the last date, if there are more of that one.

    Args:
        dates: date of each example, (N,): numbers, numpy or pandas dates, or texts of dates such as "2026-11-30". Of a window
            of a series the last date whose value it or its label holds.
        test_fraction: fraction of the examples to test on, at most.
        starts: first date that an example looks at, (N,), where that is an earlier one, as of a window. A test example that
            begins before the boundary is left out, so that no value is in training and test examples both.
        gap: how much time to leave out before the boundary, in the units of the dates, where labels become known late.

    Returns:
        Indices of the training and of the test examples, int64, each in the order of their dates.

    Raises:
        UserError: if dates cannot be read or are missing, or if there is nothing to train or test on.
    """
    when = _as_numbers(dates, "dates")
    first = when if starts is None else _as_numbers(starts, "starts")
    if first.shape != when.shape or not (first <= when).all():
        raise UserError("starts must be one date for each example, not after its own")
    if not 0 < test_fraction < 1:
        raise UserError(f"test_fraction must be between 0 and 1, got {test_fraction}")
    distinct, counts = np.unique(when, return_counts=True)
    after = counts[::-1].cumsum()[::-1]  # examples from each date on
    few = np.flatnonzero(after <= test_fraction * len(when))
    boundary = distinct[few[0]] if len(few) else distinct[-1]
    order = np.argsort(when, kind="stable")
    train, test = order[when[order] < boundary - gap], order[first[order] >= boundary]
    if not len(train) or not len(test):
        raise UserError(
            f"a split by date leaves {len(train)} examples to train on and {len(test)} to test on; "
            "take another test_fraction, or a smaller gap"
        )
    return torch.from_numpy(train.astype(np.int64)), torch.from_numpy(test.astype(np.int64))


def _as_numbers(dates: Any, name: str) -> np.ndarray:
    """Return dates as numbers or numpy dates, (N,)."""
    values: np.ndarray = np.asarray(dates)
    if values.dtype.kind not in "iufM":
        values = _parsed(values.tolist(), name)
    if values.ndim != 1 or not len(values):
        raise UserError(f"{name} must be one for each example, got an array of shape {values.shape}")
    missing = np.isnat(values) if values.dtype.kind == "M" else ~np.isfinite(values)
    if missing.any():
        raise UserError(f"{name}: {int(missing.sum())} are missing, the first in row {int(missing.argmax())}")
    return values


def _parsed(texts: Sequence[Any], name: str) -> np.ndarray:
    try:
        return np.array([np.datetime64(str(text)) for text in texts], dtype="datetime64[us]")
    except ValueError as error:
        raise UserError(f"{name} must be numbers or dates such as 2026-11-30: {in_one_line(error)}") from error
