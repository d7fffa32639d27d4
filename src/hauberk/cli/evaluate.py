"""hauberk evaluate."""

import hashlib
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from hauberk.cli.options import parse, program
from hauberk.core.errors import UserError

if TYPE_CHECKING:
    from hauberk.tables import Risk
    from hauberk.threat import ThreatModel

_PATIENCE = timedelta(days=1)  # the processes' shares may take times that differ by hours


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
    """quick (FGSM, PGD-20, CW-30, PGD-100), papers (those, APGD-CE and AutoAttack), standard (AutoAttack), plus, rand (for
    random models)."""
    attacks: tuple[str, ...] = ()
    """Names of attacks instead of a suite, e.g. pgd-40 cw-100; "hauberk attacks" lists them."""
    sequential: bool = False
    """Run each of the attacks named only on the examples that are still robust."""
    surrogate: Path | None = None
    """Another run or exported model, to craft transfer attacks on."""
    n: Annotated[int | None, tyro.conf.arg(aliases=("--first",))] = None
    """Evaluate the first N examples of the test set only. (Under torchrun write --first, because it takes --n for its own.)"""
    batch_size: int = 256
    """Examples at a time."""
    seed: int = 0
    """Of the random starts."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    device: str = "auto"
    """"auto", "cpu", "cuda", ..."""
    precision: Literal["model", "fp32", "bf16", "auto"] = "fp32"
    """What the attacks run on, never the verdicts. model: the model as it is; fp32: a fused copy of it; bf16: attacks with
    gradients on a copy in bfloat16; auto: measure whether bf16 is faster and agrees."""
    has_reject_class: bool = False
    """The model's last output is a class of adversarial inputs, where its card does not say so."""
    out: Path | None = None
    """Folder for verdicts, as they come, and result; by default evaluations/SUITE beside the model. Called again with
    the same options, an evaluation that was interrupted goes on there."""
    save_adversarials: bool = False
    """Keep the adversarial examples, in adversarials.npy of that folder."""
    diagnostics: Literal["all", "cheap"] = "all"
    """all: look for signs of masked gradients, and measure accuracy against ε, on a few examples; cheap: without attacks of
    their own."""
    card: Path | None = None
    """Write a card in the style of RobustBench, too."""
    status: bool = False
    """TARGET is the folder of an evaluation: print what it knows so far, and do nothing."""
    json: bool = False
    """Print the result as JSON instead of a table."""
    quiet: bool = False
    """Print no progress."""


def evaluate(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Evaluate, "evaluate", arguments)
    if options.status:
        return _status(options.target)
    import torch
    from rich.console import Console

    from hauberk.core.distributed import init_distributed
    from hauberk.core.io import as_json, write_json
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
    out = options.out or _folder(options)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    with init_distributed(timeout=_PATIENCE) as world:
        device = pick_device(options.device)
        model = load(options.target, model=_built(options.model, test), which=options.which, device=device)
        surrogate = None if options.surrogate is None else load(options.surrogate, device=device)
        try:
            result = evaluate_model(
                model,
                test,
                threat=_threat(options, card, name),
                suite=options.suite,
                attacks=options.attacks,
                sequential=options.sequential,
                n=options.n,
                batch_size=options.batch_size,
                seed=options.seed,
                precision=options.precision,
                surrogate=surrogate,
                has_reject_class=options.has_reject_class or card.get("has_reject_class") is True,
                diagnostics=options.diagnostics,
                out=out,
                save_adversarials=options.save_adversarials,
                quiet=options.quiet or options.json,
            )
        except KeyboardInterrupt:
            if world.is_main:
                print(f"Stopped; the same command goes on from there. So far:\n{_early(out)}", file=sys.stderr)
            return 1
    if not world.is_main:
        return 0
    if options.card:
        write_json(options.card, result.robustbench_card(options.target.stem, name, str(card.get("model", {}).get("name", ""))))
    risk = _risk(model, test, _threat(options, card, name), name) if name.endswith(".toml") and test.classes == 2 else None
    if options.json:
        print(as_json(result.to_dict() | ({"risk": risk.to_dict()} if risk else {})))
        return 0
    Console().print(table({options.target.name: result}))
    for found in result.warnings:
        print(f"{found.verdict.upper()} {found.name}: {found.measured}; {found.advice}")
    for found in result.diagnostics:
        if found.name == "columns-can-change" and found.verdict == "ok":
            print(f"Of the table {found.measured}")
    if risk:
        print(f"Of the class {_last_class(name)}: {risk}")
    next_target = options.target if (options.target / "run.json").exists() else out
    print(f"{result}\nWritten to {out / 'evaluation.json'}. Next: {program()} report {next_target}")
    return 0


def _folder(options: Evaluate) -> Path:
    """Where an evaluation with these options is kept: one folder for each combination that gives other numbers."""
    beside = options.target if options.target.is_dir() else options.target.parent
    numbers = (
        options.target.name, options.which, options.model, options.data, options.norm, options.eps, options.suite,
        options.attacks, options.sequential, options.surrogate, options.n, options.batch_size, options.seed, options.precision,
        options.save_adversarials, options.has_reject_class,
    )  # fmt: skip
    digest = hashlib.sha256(repr(numbers).encode()).hexdigest()[:8]
    return beside / "evaluations" / f"{'custom' if options.attacks else options.suite}-{digest}"


def _status(folder: Path) -> int:
    print(_early(folder))
    print("Next: the command that began it, given again, goes on with it")
    return 0


def _early(folder: Path) -> str:
    from hauberk.evaluation import partial_result

    return str(partial_result(folder))


def _threat(options: Evaluate, card: dict[str, Any], data: str) -> "ThreatModel":
    from hauberk.data import DATASETS
    from hauberk.tables import default_threat
    from hauberk.threat import make_threat, threat_from_dict

    if options.eps and not data.endswith(".toml"):
        return make_threat(options.norm, options.eps)
    if "threat" in card and not options.eps:
        return threat_from_dict(card["threat"])
    if data in DATASETS or data.endswith(".toml"):
        return default_threat(data, options.norm, options.eps)
    raise UserError("the card does not name a threat model; give --eps (and --norm)")


def _risk(model: Any, test: Any, threat: "ThreatModel", data: str) -> "Risk":
    from hauberk.tables import measure_risk, read_schema

    miss, false_alarm = read_schema(data).costs
    return measure_risk(model, test, threat=threat, miss=miss, false_alarm=false_alarm)


def _last_class(data: str) -> str:
    from hauberk.tables import read_table

    return repr(read_table(data).classes[-1])


def _built(name: str, test: Any) -> Any:
    """Build the model the user named, or leave it to the card."""
    if not name:
        return None
    from hauberk.models import ModelSpec

    return ModelSpec(name, tuple(test.x.shape[1:]), test.classes).build()
