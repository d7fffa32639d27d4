"""Certificates of tables, where what an adversary may do can be listed row by row."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import hauberk as hb

pd = pytest.importorskip("pandas")

from hauberk.data import ColumnSchema, TableSchema, make_table  # noqa: E402


def table(rows=300, seed=0):
    draw = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "age": draw.integers(20, 70, rows),
            "late": draw.integers(0, 6, rows),
            "home": draw.choice(["own", "rent", "other"], rows),
            "sex": draw.choice(["f", "m"], rows),
        }
    )
    frame["default"] = ((frame.late * 2 + (frame.home == "rent") * 3 - frame.age / 15 + draw.normal(size=rows)) > 2).astype(int)
    columns = {
        "age": ColumnSchema("integer", "none"),
        "late": ColumnSchema("integer", "down", eps=1.0, low=0, high=6),
        "home": ColumnSchema("category"),
        "sex": ColumnSchema("category", "none"),
    }
    return make_table(TableSchema(columns, "default"), frame[:200], frame[200:])


def reachable(x, threat):
    """All valid rows within reach of one."""
    region = threat.around(x[None])
    low, high = region.lower[0].round().int().tolist(), region.upper[0].round().int().tolist()
    rows = [
        torch.tensor(row, dtype=x.dtype)
        for row in itertools.product(*(range(a, b + 1) for a, b in zip(low, high, strict=True)))
    ]
    return torch.stack([row for row in rows if row[2:5].sum() == 1 and row[5:].sum() == 1])


@pytest.mark.parametrize("width", [0, 12])
def test_rows_are_certified_where_all_rows_within_reach_are_right(width):
    data = table()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, width), nn.ReLU(), nn.Linear(width, 2)) if width else nn.Linear(7, 2)
    model = data.wrap(net)
    run = hb.train(model, data.train, method="at", threat=data.threat, epochs=5, quiet=True, val_size=0)
    x, y = data.test.fetch(torch.arange(100))
    threat = data.threat
    with torch.no_grad():
        truth = np.array(
            [bool((run.model(reachable(row, threat)).argmax(1) == label).all()) for row, label in zip(x, y, strict=True)]
        )
    result = hb.certify(run.model, data.test, threat=threat, quiet=True)
    assert not (result.certified & ~truth).any()
    whole = hb.certify(
        run.model, data.test, threat=threat, methods=["ibp", "crown", "branch-and-bound"], branches=300, quiet=True
    )
    assert (whole.certified == truth).all()
    assert 0.1 < truth.mean() < 1
    assert result.certified_accuracy <= whole.certified_accuracy
