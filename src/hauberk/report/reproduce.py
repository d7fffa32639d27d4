"""How to make again what a report shows: the commands, as somebody would type them."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hauberk.core.errors import shell_quoted
from hauberk.core.imports import is_import_path
from hauberk.core.io import json_roundtrip
from hauberk.data import DATASETS
from hauberk.data.named import TABLE_SUFFIX
from hauberk.methods import default_settings
from hauberk.report.html import Code, Section
from hauberk.training.config_file import CONFIG
from hauberk.training.published import resolve

_OF_THIS_MACHINE = ("device", "save_minutes", "on_divergence")  # change nothing of the result
PLAIN_THREAT = re.compile(r"(Linf|L2|L1|L0)\(([^,()]+)\)")  # the usual box, nothing frozen
_SCALED = "If it was given --eps, a factor of the table's own ε, give that again; run.json has ε of each input."


def reproduction_commands(folder: Path, plan: dict[str, Any], evaluations: Sequence[dict[str, Any]]) -> Section:
    """Return the commands that make the run in ``folder`` again, from its ``run.json``, and its evaluations, from theirs."""
    data, model = plan["data"]["name"], plan["model"]["name"]
    again = f" --data {data}" if is_import_path(data) else ""
    commands = [evaluate_command(str(folder), found) + again for found in evaluations]
    table = data.endswith(TABLE_SUFFIX)
    known = data in DATASETS or table or is_import_path(data)
    passed = "python:" in json.dumps(plan["settings"])
    passed = passed or "val_digest" in plan["data"] or (plan["data"].get("extra") and not plan["data"].get("extra_file"))
    if model.startswith("python:") or passed or not known:
        note = "Made in Python, from data, a network or other objects that no command knows; run.json has method and settings."
    else:
        note = _SCALED if table else ""
        commands.insert(0, train_command(plan))
        if (config := folder / CONFIG).exists():
            note = f"{note} The same training in one file: hauberk train --config {shell_quoted(config)}".strip()
    versions = "; ".join(f"{key} {value}" for key, value in plan.get("versions", {}).items())
    return Section("Reproduce", [*filter(None, [note]), *map(Code, filter(None, ["\n".join(commands), versions]))])


def train_command(plan: dict[str, Any]) -> str:
    """Return the command that trains the same network, with what differs from its defaults."""
    settings, data, model = dict(plan["method"]), plan["data"], plan["model"]
    name, seed, preset = settings.pop("name"), settings.pop("seed"), settings.pop("preset", "paper")
    words = ["hauberk", "train", "--data", data["name"], "--model", model["name"], "--method", name, "--preset", preset]
    first, *further = plan["threat"].get("threats", [plan["threat"]])
    words += ["--norm", first["norm"]]
    if data["name"] in DATASETS or is_import_path(data["name"]):  # a table has its own ε, files and normalisation
        words += ["--eps", str(first["eps"])]
        words += ["--union", *(f"{one['norm']}:{one['eps']}" for one in further)] if further else []
        words += ["--data-dir", data["folder"]] if data["folder"] not in ("", "data") else []
        words += ["--normalize"] if model["mean"] else []
    published = resolve(data["name"], model["name"], name, preset=preset)
    usual = json_roundtrip(asdict(published.config))
    for key, value in {**plan["settings"], "seed": seed}.items():
        if value != usual[key] and key not in _OF_THIS_MACHINE and (key != "extra_share" or data.get("extra")):
            words += _option(key, value)
    words += ["--extra", data["extra_file"]] if data.get("extra_file") else []
    words += ["--extra-labels", data["extra_labels"]] if data.get("extra_labels") else []
    words += ["--init", model["init"]] if model.get("init") else []
    # Where the method was made in Python, or by a version that did not take the published settings, its own are spelled out.
    if missing := sorted(published.added.keys() - settings.keys()):
        own = default_settings(name, preset)
        settings |= {key: own[key] for key in missing}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    words += ["--set", *(f"{key}={text}" for key, text in texts.items())] if texts else []
    return shlex.join(words)


def evaluate_command(target: str, found: dict[str, Any]) -> str:
    """Return the command of an evaluation, in the JSON that :meth:`hauberk.Evaluation.save` writes."""
    origin = found["provenance"]
    attacks = dict.fromkeys(name.rsplit(": ", 1)[-1] for name in origin["attacks"])  # of a union, without the threat model
    if found["suite"] == "custom":
        words = ["--attacks", *attacks, *(["--sequential"] if found["sequential"] else [])]
    else:
        words = ["--suite", found["suite"]]
    threats = [PLAIN_THREAT.fullmatch(threat) for threat in found["threat"].split(" and ")]
    if plain := [(threat[1], threat[2]) for threat in threats if threat] if all(threats) else []:
        (norm, eps), *further = plain
        words += ["--norm", norm, "--eps", eps, *(["--union", *map(":".join, further)] if further else [])]
    words += ["--surrogate", "OTHER"] if any(name.startswith("transfer-") for name in attacks) else []
    if found.get("cost"):
        words += ["--costs", *(",".join(str(cost).removesuffix(".0") for cost in row) for row in found["cost"]["costs"])]
    words += ["--n", str(found["n"])] if origin["subset"] != "all" else []
    for key, usual in (("seed", 0), ("batch_size", 256), ("precision", "fp32")):
        words += _option(key, origin[key]) if origin[key] != usual else []
    return shlex.join(["hauberk", "evaluate", target, *words])


def _option(key: str, value: Any) -> list[str]:
    name = f"--{key.replace('_', '-')}"
    if isinstance(value, bool):
        return [name if value else name.replace("--", "--no-", 1)]
    return [name, *map(str, value)] if isinstance(value, list) else [name, str(value)]
