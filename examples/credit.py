"""Credit scoring that applicants may try to mislead: what training costs, and what it saves. One to three minutes.

    python examples/credit.py credit_default.csv
    python examples/credit.py german_credit.csv

The first file is UCI's "default of credit card clients", the second its "German credit", each as CSV (or .npz with x, y,
feature_names and categories_json) with the columns that examples/credit_default.toml and german_credit.toml describe.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from sklearn.model_selection import train_test_split

import hauberk as hb
from hauberk.data import make_table, read_frame, read_schema
from hauberk.evaluation import measure_risk

METHODS = ("standard", "at", "mart", "mail-at", "mail-trades")


def main(path: Path) -> None:
    """Train by each method, and print what errors cost."""
    torch.set_num_threads(1)  # the network is small
    schema = read_schema(Path(__file__).with_name(f"{path.stem}.toml"))
    frame = from_npz(path, schema.label) if path.suffix == ".npz" else read_frame(path)
    train, test = train_test_split(frame, test_size=schema.test_fraction, random_state=0, stratify=frame[schema.label])
    table = make_table(schema, train, test)
    miss, false_alarm = schema.costs
    shown = Table(title=f"{path.stem}: clean -> under attack, {table.threat}")
    for column in ("method", "recall, %", "precision, %", "AUC", "cost of an example"):
        shown.add_column(column, justify="left" if column == "method" else "right")
    models = {}
    for method in METHODS:
        print(f"{method} ...", flush=True)
        run = hb.train(
            table.default_model("mlp"),
            table.train,
            method=method,
            threat=table.threat,
            epochs=max(6, 40_000 // len(train)),
            lr=0.01,
            class_weights="balanced",  # defaults are rare
            quiet=True,
        )
        models[method] = run.model
        risk = measure_risk(run.model, table.test, threat=table.threat, miss=miss, false_alarm=false_alarm)
        pairs = ((risk.recall, risk.recall_attacked, 100), (risk.precision, risk.precision_attacked, 100))
        pairs += ((risk.auc, risk.auc_attacked, 1), (risk.cost, risk.cost_attacked, 1))
        shown.add_row(method, *(f"{scale * clean:.3g} -> {scale * attacked:.3g}" for clean, attacked, scale in pairs))
    Console().print(shown)
    show_one(models["standard"], table)


def show_one(model: torch.nn.Module, table) -> None:
    """Print what an applicant of class 1 would change to pass the network that was trained without an attack."""
    x, y = table.test.fetch((table.test.y == 1).nonzero().squeeze(1)[:200])
    caught = model(x).argmax(1) == y
    found = hb.attacks.pgd(model, x, y, table.threat, steps=50, step_size="eps/10")
    for place in (caught & found.success).nonzero().squeeze(1)[:1].tolist():
        before, after = (table.rows(rows[place : place + 1]).iloc[0] for rows in (x, found.x_adv))
        print(f"An application that standard training takes for {table.classes[1]}, and no longer after these changes:")
        for name in before.index[before != after]:
            print(f"  {name}: {before[name]} -> {after[name]}")


def from_npz(path: Path, label: str) -> pd.DataFrame:
    """Read rows from arrays."""
    arrays = np.load(path)
    frame = pd.DataFrame(arrays["x"].astype(int), columns=arrays["feature_names"])
    for name, values in json.loads(str(arrays["categories_json"])).items():
        frame[name] = [values[k] for k in frame[name]]
    frame[label] = arrays["y"]
    return frame


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
