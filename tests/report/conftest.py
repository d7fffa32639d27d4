"""A table, and runs on it with their reports, which tests of several files look at."""

import numpy as np
import pytest
import torch

from hauberk.cli import main
from helpers import made_once

SCHEMA = """
train = "rows.csv"
label = "late"
classes = ["no", "<script>yes"]
eps = 0.5
costs = [5, 1]

[features.income]
change = "down"
[features."<b>debt"]
[features.months]
kind = "integer"
low = 1
high = 120
[features.children]
kind = "integer"
[features.sex]
kind = "category"
change = "none"
"""


@pytest.fixture(scope="session")
def loans(tmp_path_factory):
    """A table whose names are hostile, with a standard and a robust run, evaluated."""
    return made_once(tmp_path_factory, "loans-report", make_loans)


def make_loans(folder):
    pd = pytest.importorskip("pandas")
    torch.set_num_threads(1)
    draw = np.random.default_rng(0)
    income, debt = draw.normal(2000, 500, 400), draw.normal(0, 1000, 400)
    late = debt - income / 2 + 300 * draw.normal(size=400) > -700
    columns = {"income": income, "<b>debt": debt, "months": draw.integers(1, 121, 400), "children": draw.integers(0, 2, 400)}
    columns |= {"sex": draw.choice(["f", "m"], 400), "late": np.where(late, "<script>yes", "no")}
    pd.DataFrame(columns).to_csv(folder / "rows.csv", index=False)
    (folder / "loans.toml").write_text(SCHEMA)
    data = ["--data", str(folder / "loans.toml")]
    for method in ("standard", "at"):
        where = ["--out", str(folder / "runs" / method), "--epochs", "8", "--lr", "0.01", "--threads", "1", "--quiet"]
        assert main(["train", *data, "--model", "mlp", "--method", method, *where]) == 0
        assert main(["evaluate", str(folder / "runs" / method), "--attacks", "pgd-20", "--quiet"]) == 0
        assert main(["report", str(folder / "runs" / method), "--figures", str(folder / f"figures-{method}")]) == 0
