"""Fraud in a series of payments, dressed up by whoever commits it: what can change, a split by date, costs by month.

    python examples/fraud_series.py

The data are made up: accounts with a row a day (sum, number of payments, share of new payees), some taken over at some day,
from which on money leaves in more payments and to newer payees. Whoever does that can pay less, in the last days only: what is
past is on record. Half a minute on one CPU core.
"""

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import hauberk as hb
from hauberk.data import make_windows, window_constraints
from hauberk.evaluation import measure_cost

NAMES = ("sum", "payments", "new payees")
COSTS = [[0, 1], [20, 0]]  # of a call to the customer without need, of a fraud that passes
LENGTH, LAST, DAYS, ACCOUNTS = 14, 5, 360, 60
SETTINGS = {"epochs": 8, "lr": 0.05, "class_weights": "balanced", "quiet": True}


def accounts() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return values (M, 3) in [0, 1], labels, dates and accounts, (M,) each, of all accounts one below the other."""
    draw = np.random.default_rng(0)
    days = np.arange(DAYS)
    values, labels = [], []
    for _ in range(ACCOUNTS):
        level, weekly = draw.uniform(0.15, 0.4), 0.08 * np.sin(2 * np.pi * (days + draw.integers(7)) / 7)
        rows = level + weekly[:, None] * [1, 0.8, 0.2] + draw.normal(0, 0.07, (DAYS, 3))
        taken = np.zeros(DAYS, dtype=np.int64)
        for begin in np.flatnonzero(draw.random(DAYS) < 1 / 90):
            taken[begin : begin + 10] = 1
        drift = 0.28 - 0.1 * days / DAYS  # frauds grow quieter over the year
        rows += (taken * drift)[:, None] * [0.9, 0.7, 1.2]
        values.append(rows.clip(0, 1))
        labels.append(taken)
    dates = np.tile(np.datetime64("2026-01-01") + days, ACCOUNTS)
    return np.concatenate(values), np.concatenate(labels), dates, np.repeat(np.arange(ACCOUNTS), DAYS)


def main() -> None:
    """Train with and without an adversary, and print what errors cost, month by month."""
    torch.set_num_threads(1)
    values, labels, dates, account = accounts()
    windows = make_windows(values, labels, dates, length=LENGTH, stride=3, series=account, name="payments")
    past, test = windows.split(0.35)
    train, val = past.split(0.15)
    constraints = window_constraints(LENGTH, NAMES, change=dict.fromkeys(NAMES, "down"), last=LAST)
    threat = hb.Linf(0.1, **constraints)
    months = test.ends.astype("datetime64[M]").astype(str)
    print(f"{len(train):,} windows to train on, {len(test):,} later ones to test on; {threat}, last {LAST} of {LENGTH} days")
    shown = Table(title="cost of a window: as it is -> under attack")
    shown.add_column("method")
    for column in ("all", *np.unique(months)):
        shown.add_column(column, justify="right")
    for method in ("standard", "at", "mail-at"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(LENGTH * len(NAMES), 64), nn.ReLU(), nn.Linear(64, 2))
        run = hb.train(net, train, val_set=val, method=method, threat=threat, **SETTINGS)
        cost = measure_cost(run.model, test, threat=threat, costs=COSTS)
        cells = [f"{cost.mean:.2f} -> {cost.mean_attacked:.2f}"]
        cells += [f"{month['cost']:.2f} -> {month['cost_attacked']:.2f}" for month in cost.over(months)]
        shown.add_row(method, *cells)
    Console().print(shown)


if __name__ == "__main__":
    main()
