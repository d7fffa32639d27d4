"""One cell of a table: train, evaluate, keep both in a folder; a finished cell is never made again."""

from pathlib import Path
from typing import Any

import torch

import hauberk as hb
from hauberk.core.io import read_json
from hauberk.data import Subset, load_data


def first(data: str, split: str, folder: Path, count: int) -> Subset:
    """Return the first examples of a named data set."""
    whole = load_data(data, split, folder)
    return Subset(whole, torch.arange(min(count, len(whole))))


def trained(folder: Path, model: str, train_set: Any, threat: hb.ThreatModel, **how: Any) -> dict[str, Any]:
    """Train into the folder, or go on with what is in it; returns the card of the last epoch."""
    card, begun = folder / "last.json", folder / "run.json"
    if not card.exists() or read_json(card)["epoch"] < read_json(begun)["settings"]["epochs"]:
        resume = begun.exists()
        run = hb.train(model, train_set, threat=threat, out=folder, resume=resume, quiet=True, **how)
        if run.interrupted:
            raise SystemExit("stopped; run the same command to go on")
    return read_json(card)


def evaluated(folder: Path, name: str, test_set: Any, threat: hb.ThreatModel, n: int, **how: Any) -> dict[str, Any]:
    """Evaluate the best network of the folder, or return what was found before."""
    kept = folder / f"{name}.json"
    if not kept.exists():
        hb.evaluate(hb.load(folder), test_set, threat=threat, n=n, out=folder / name, quiet=True, **how).save(kept)
    return read_json(kept)
