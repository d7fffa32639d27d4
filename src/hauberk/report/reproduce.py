"""How to make again what a report shows: the commands, as somebody would type them."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hauberk.core.io import json_roundtrip
from hauberk.data import DATASETS
from hauberk.methods import get_method_spec
from hauberk.objectives import OBJECTIVES
from hauberk.report.blocks import Block, Code, Section, Text
from hauberk.training.config import TrainConfig
from hauberk.training.published import find_published

_OF_THIS_MACHINE = ("device", "save_minutes", "on_divergence")  # change nothing of the result
_PLAIN_THREAT = re.compile(r"(Linf|L2|L1)\(([^,()]+)\)")  # the usual box, nothing frozen
_SCALED = "If it was given --eps, a factor of the table's own ε, give that again; run.json has ε of each input."


def run_again(folder: Path, plan: dict[str, Any], evaluations: Sequence[dict[str, Any]]) -> Section:
    """Return the commands of a run and of its evaluations.

    Args:
        folder: of the run.
        plan: its ``run.json``.
        evaluations: their ``evaluation.json``.
    """
    data, model = plan["data"]["name"], plan["model"]["name"]
    versions = "; ".join(f"{key} {value}" for key, value in plan.get("versions", {}).items())
    lines = [evaluate_command(str(folder), found) for found in evaluations]
    known = data in DATASETS or data.endswith(".toml")
    if model.startswith("python:") or not known or plan["data"].get("unlabelled"):
        note = "Made in Python, from data or a network that no command knows; its method and settings are in run.json."
    else:
        note = _SCALED if data.endswith(".toml") else ""
        lines.insert(0, train_command(plan))
    blocks: list[Block] = [Text(note)] if note else []
    blocks += [Code("\n".join(lines))] if lines else []
    return Section("Do it again", [*blocks, Code(versions)])


def train_command(plan: dict[str, Any]) -> str:
    """Return the command that trains the same network, with what differs from its defaults."""
    how, data, model = dict(plan["method"]), plan["data"], plan["model"]
    name, seed, preset = how.pop("name"), how.pop("seed"), how.pop("preset")
    words = ["hauberk", "train", "--data", data["name"], "--model", model["name"], "--method", name, "--preset", preset]
    words += ["--norm", plan["threat"]["norm"]]
    if data["name"] in DATASETS:  # a table has its own ε, files and normalisation
        words += ["--eps", str(plan["threat"]["eps"])]
        words += ["--data-dir", data["folder"]] if data["folder"] not in ("", "data") else []
        words += ["--normalize"] if model["mean"] else []
    published = find_published(data["name"], model["name"], name, preset)
    usual = json_roundtrip(asdict(TrainConfig(**published.settings)))
    for key, value in {**plan["settings"], "seed": seed}.items():
        if value != usual[key] and key not in _OF_THIS_MACHINE:
            words += _option(key, value)
    if unused := published.method.keys() - how.keys():  # the method was made in Python, or by a version that did not take them
        own = _own_settings(name, preset)
        how |= {key: own[key] for key in sorted(unused)}
    words += ["--set", *(f"{key}={_set(value)}" for key, value in how.items())] if how else []
    return shlex.join(words)


def _own_settings(name: str, preset: str) -> dict[str, Any]:
    """What a method has where nobody says otherwise."""
    recipe = get_method_spec(name)
    attack = vars(recipe.attack) if recipe.attack else {}
    code = recipe.official if preset == "official" else {}
    return {**attack, **OBJECTIVES[recipe.objective].settings, **recipe.settings, **code}


def evaluate_command(target: str, found: dict[str, Any]) -> str:
    """Return the command of an evaluation, in the JSON that :meth:`hauberk.Evaluation.save` writes."""
    about = found["provenance"]
    if found["suite"] == "custom":
        words = ["--attacks", *about["attacks"], *(["--sequential"] if found["sequential"] else [])]
    else:
        words = ["--suite", found["suite"]]
    if threat := _PLAIN_THREAT.fullmatch(found["threat"]):
        words += ["--norm", threat[1], "--eps", threat[2]]
    words += ["--surrogate", "OTHER"] if any(name.startswith("transfer-") for name in about["attacks"]) else []
    words += ["--n", str(found["n"])] if about["subset"] != "all" else []
    for key, usual in (("seed", 0), ("batch_size", 256), ("precision", "fp32")):
        words += _option(key, about[key]) if about[key] != usual else []
    return shlex.join(["hauberk", "evaluate", target, *words])


def _option(key: str, value: Any) -> list[str]:
    name = f"--{key.replace('_', '-')}"
    if isinstance(value, bool):
        return [name if value else name.replace("--", "--no-", 1)]
    return [name, *map(str, value)] if isinstance(value, list) else [name, str(value)]


def _set(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
