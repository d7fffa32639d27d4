"""hauberk evaluate."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from hauberk.cli.parse import parse
from hauberk.errors import UserError

if TYPE_CHECKING:
    from hauberk.evaluation import Evaluation
    from hauberk.threat import ThreatModel


@dataclass(frozen=True)
class Evaluate:
    """Measure clean and robust accuracy of a trained model on the test set.

    Example: hauberk evaluate runs/mnist-trades --attacks pgd-40 cw-100
    """

    target: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, or an exported .safetensors or .json file, or a PyTorch state dict (with --model)."""
    which: Literal["best", "last"] = "best"
    """Which checkpoint of a run."""
    model: str = ""
    """module:factory, to build a model that its card cannot build (this imports your module)."""
    data: str = ""
    """Name of the data set; by default the one the model was trained on."""
    data_dir: Path | None = None
    """Folder with the data set's original files; by default where training read them."""
    verify: bool = True
    """Compare checksums of the files with the original ones."""
    norm: Literal["Linf", "L2", "L1"] = "Linf"
    """Norm of the threat model, with --eps."""
    eps: str = ""
    """Radius ε, e.g. 8/255; by default the threat model of the training."""
    suite: str = "quick"
    """Suite of attacks: quick (FGSM, PGD-20, CW-30, PGD-100)."""
    attacks: tuple[str, ...] = ()
    """Names of attacks instead of a suite, e.g. pgd-40 cw-100."""
    n: int | None = None
    """Evaluate the first N examples of the test set only."""
    batch_size: int = 256
    """Examples at a time."""
    seed: int = 0
    """Of the random starts."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    device: str = "auto"
    """"auto", "cpu", "cuda", ..."""
    out: Path | None = None
    """Where to write the result as JSON; by default evaluation.json in the folder of the run."""
    json: bool = False
    """Print the result as JSON instead of a table."""
    quiet: bool = False
    """Print no progress."""


def evaluate(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Evaluate, "evaluate", arguments)
    import torch
    from rich.console import Console

    from hauberk.data import load_data
    from hauberk.evaluation import evaluate as evaluate_model
    from hauberk.evaluation import table
    from hauberk.training import load, pick_device, read_card

    if options.threads:
        torch.set_num_threads(options.threads)
    foreign = options.target.suffix in (".pt", ".pth")
    card: dict[str, Any] = {} if foreign else read_card(options.target, options.which)[0]
    trained_on = card.get("data", {})
    name = options.data or str(trained_on.get("name", ""))
    if not name:
        raise UserError("the card does not say which data set to use; give --data")
    folder = options.data_dir or Path(str(trained_on.get("folder") or "data"))
    test = load_data(name, "test", folder, verify=options.verify)
    model = load(options.target, model=_built(options.model, test), which=options.which, device=pick_device(options.device))
    result = evaluate_model(
        model,
        test,
        threat=_threat(options, card),
        suite=options.suite,
        attacks=options.attacks,
        n=options.n,
        batch_size=options.batch_size,
        seed=options.seed,
        detects=_detects(card),
        quiet=options.quiet or options.json,
    )
    out = options.out or (options.target if options.target.is_dir() else options.target.parent) / "evaluation.json"
    result.save(out)
    if options.json:
        print(json.dumps(result.to_dict()))
        return 0
    Console().print(table({options.target.name: result}))
    _explain(result, out)
    return 0


def _explain(result: "Evaluation", out: Path) -> None:
    for found in result.warnings:
        print(f"{found.verdict.upper()} {found.name}: {found.measured}; {found.advice}")
    print(f"{result}\nWritten to {out}")


def _threat(options: Evaluate, card: dict[str, Any]) -> "ThreatModel":
    from hauberk.data import DATA_SETS
    from hauberk.threat import make_threat, threat_from_dict

    if options.eps:
        return make_threat(options.norm, options.eps)
    if "threat" in card:
        return threat_from_dict(card["threat"])
    if options.data in DATA_SETS:
        return make_threat("Linf", DATA_SETS[options.data].eps)
    raise UserError("the card does not name a threat model; give --eps (and --norm)")


def _detects(card: dict[str, Any]) -> bool:
    """Whether the card's method gives the model a class of adversarial inputs."""
    from hauberk.methods import find_recipe
    from hauberk.objectives import OBJECTIVES

    name = card.get("method", {}).get("name")
    return isinstance(name, str) and OBJECTIVES[find_recipe(name).objective].extra_outputs > 0


def _built(name: str, test: Any) -> Any:
    """Build the model the user named, or leave it to the card."""
    if not name:
        return None
    from hauberk.models import ModelSpec

    return ModelSpec(name, tuple(test.x.shape[1:]), test.classes).build()
