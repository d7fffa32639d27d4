"""hauberk evaluate."""

import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from hauberk.cli.options import command, parse, say
from hauberk.cli.target import TargetOptions, build_named, find_target, load_target
from hauberk.core.errors import UserError
from hauberk.experiments.options import EvaluationOptions, digest

_CHANGES_NO_NUMBER = ("to", "threads", "device", "out", "diagnostics", "card", "status", "json", "quiet")
_MODEL_AND_DATA = ("target", "which", "model", "data", "threat", "has_reject_class")
_OF_A_CURVE = (*_MODEL_AND_DATA, "evaluation", "n", "batch_size", "seed", "threads", "device", "out", "curve", "json", "quiet")
_PASSED_ON = ("to", "n", "batch_size", "seed", "precision", "save_adversarials", "diagnostics")


@dataclass(frozen=True)
class Evaluate(TargetOptions):
    """Measure clean and robust accuracy of a trained model on the test set.

    Example: hauberk evaluate runs/mnist-trades --attacks pgd-40 cw-100

    Data set, its folder, and threat model are those of the training unless others are given.
    """

    union: tuple[str, ...] = ()
    """Further threat models, each NORM:EPS as in L2:0.5 L1:12: robust accuracy under each of them, and under all at once."""
    evaluation: EvaluationOptions = EvaluationOptions()
    surrogate: Path | None = None
    """Another run or exported model, to craft transfer attacks on."""
    surrogate_model: str = ""
    """The package.module:factory to build the surrogate with, where its card cannot (this imports your module)."""
    bpda: str = ""
    """A package.module:function, or module, that stands in for the model in the backward pass of attacks (BPDA)."""
    to: float = 1.0
    """Of the suite fast: go on until the interval of the estimate is within ± so many points; 0 for the full protocol. The same
    command with another value goes on from there."""
    n: Annotated[int | None, tyro.conf.arg(aliases=("--limit",))] = None
    """Number of examples to evaluate, the first ones; by default all. Under torchrun write --limit, as it takes --n itself."""
    batch_size: int = 256
    """Number of examples that the model sees at a time."""
    seed: int = 0
    """Seed of the random starts."""
    threads: int = 0
    """Number of CPU threads; 0 leaves torch's choice."""
    device: str = "auto"
    """Device to run on: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1", ..."""
    precision: Literal["model", "fp32", "tf32", "bf16", "auto"] = "fp32"
    """What the attacks run on, never the verdicts: the model as it is, a fused copy of it in true float32, with TF32 allowed on
    CUDA, in bfloat16 (attacks with gradients only), or what a measurement finds fastest."""
    costs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[ROW ...]")] = ()
    """What mistakes cost, a matrix: a row for each true class, in it the costs of each prediction with commas between them. Of
    two classes 0,1 5,0 says that a false alarm costs 1 and a miss 5. Adds the highest cost that attacks find."""
    has_reject_class: bool = False
    """The last output of the model is a class of adversarial inputs, where its card does not say so."""
    out: Path | None = None
    """Folder for verdicts, as they come, and result; by default evaluations/SUITE beside the model. Called again with
    the same options, an evaluation that was interrupted goes on there."""
    save_adversarials: bool = False
    """Keep the adversarial examples, in adversarials.npy of that folder."""
    diagnostics: Literal["all", "cheap"] = "all"
    """all: look for signs of masked gradients, and measure accuracy against ε, on a few examples; cheap: without attacks of
    their own."""
    curve: bool = False
    """Measure robust accuracy at every ε instead, from the nearest adversarial examples that minimum-norm attacks find (by
    --attacks others than the usual ones of the norm); curve.json, its table as curve.csv, and its picture as curve.png."""
    card: Path | None = None
    """File to write a card to, too, in the style of RobustBench."""
    status: bool = False
    """Print what the evaluation in the folder TARGET knows so far, and do nothing."""
    json: bool = False
    """Print the result as JSON instead of a table."""
    quiet: bool = False
    """Print no progress."""


def evaluate(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Evaluate, "evaluate", arguments)
    from hauberk.evaluation import partial_result, table

    if options.status:
        say(f"{partial_result(options.target)}\nNext: the command that began it, given again, goes on with it")
        return 0
    import torch
    from rich.console import Console

    from hauberk.core.distributed import init_distributed
    from hauberk.core.imports import import_object
    from hauberk.core.io import as_json, write_json
    from hauberk.evaluation import evaluate as evaluate_model
    from hauberk.experiments.experiment import further_threats
    from hauberk.threat import only_threat, threats_of
    from hauberk.training import pick_device

    if options.surrogate_model and not options.surrogate:
        raise UserError("--surrogate-model builds the network of --surrogate, which is not given")
    if options.curve and (unused := _unused_by_a_curve(options)):
        raise UserError(f"--curve does not use {', '.join(unused)}; leave {'them' if unused[1:] else 'it'} out")
    costs = cost_matrix(options.costs) if options.costs else None
    if options.threads:
        torch.set_num_threads(options.threads)
    target = find_target(options)
    card, name, named, test, threat = target.card, target.name, target.named, target.test, target.threat
    threats = [*threats_of(threat), *further_threats(named, options.union)]
    has_reject_class = options.has_reject_class or card.get("has_reject_class") is True
    if options.curve and has_reject_class:
        raise UserError("--curve knows no class of adversarial inputs, which this model has; leave --curve out")
    if options.card and len(threats) > 1:  # before an evaluation that may take hours
        raise UserError("--card is of one threat model, and there are several: leave it out, or choose one (--norm and --eps)")
    out = options.out or _folder(options)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    with init_distributed(timeout=timedelta(days=1)) as world:  # their parts may take times that differ by hours
        device = pick_device(options.device)
        model = load_target(options, target, device)
        if options.curve:
            return _curve(options, model, test, only_threat(threat, "a curve is"), out)
        surrogate = None if options.surrogate is None else _load_surrogate(options.surrogate, options.surrogate_model, device)
        try:
            result = evaluate_model(
                model,
                test,
                threat=threats if len(threats) > 1 else threats[0],
                **asdict(options.evaluation),
                **{name: getattr(options, name) for name in _PASSED_ON},
                surrogate=surrogate,
                bpda=import_object(options.bpda, "stand-in") if options.bpda else None,
                has_reject_class=has_reject_class,
                costs=costs,
                out=out,
                quiet=options.quiet or options.json,
            )
        except KeyboardInterrupt:
            if world.is_main:
                say(f"Stopped; the same command goes on from there. So far:\n{partial_result(out)}", file=sys.stderr)
            return 1
    if not world.is_main:
        return 0
    if options.card:
        write_json(options.card, result.robustbench_card(options.target.stem, name, str(card.get("model", {}).get("name", ""))))
    if options.json:
        print(as_json(result.to_dict()))
        return 0
    Console().print(table(result.results or {options.target.name: result}))
    for warning in result.warnings:
        say(warning)
    for found in result.diagnostics:
        if found.name == "columns-can-change" and found.verdict == "ok":
            say(f"Of the table {found.measured}")
    for name, one in (result.results or {"": result}).items():
        if one.risk:
            say(f"Of the class {one.class_names[-1]!r}{' under ' * bool(name)}{name}: {one.risk}")
        if one.cost:
            say(f"By the cost matrix{' under ' * bool(name)}{name}: {one.cost}")
            if parts := one.cost.over_time():
                means = ", ".join(f"{part['cost']:.4g} -> {part['cost_attacked']:.4g}" for part in parts)
                say(f"In {len(parts)} equal parts in order of time: {means}")
    next_target = options.target if (options.target / "run.json").exists() else out
    say(f"{result}\nWritten to {out / 'evaluation.json'}. Next: {command('report', next_target)}")
    return 0


def _unused_by_a_curve(options: Evaluate) -> list[str]:
    """Return the options that are given and mean nothing to a curve."""
    usual, unused = Evaluate(options.target), list[str]()
    for now, before, used in ((options, usual, _OF_A_CURVE), (options.evaluation, usual.evaluation, ("attacks",))):
        unused += [
            f"--{name.replace('_', '-')}"
            for name in vars(before)
            if name not in used and getattr(now, name) != getattr(before, name)
        ]
    return unused


def _curve(options: Evaluate, model: Any, test: Any, threat: Any, out: Path) -> int:
    """Measure robust accuracy at every ε."""
    from rich.console import Console

    from hauberk.core.io import as_json
    from hauberk.evaluation import robustness_curve
    from hauberk.report.curve import curve_page
    from hauberk.report.html import write_figures

    settings = {name: getattr(options, name) for name in ("n", "batch_size", "seed")}
    try:
        curve = robustness_curve(
            model,
            test,
            threat=threat,
            attacks=options.evaluation.attacks,
            out=out,
            quiet=options.quiet or options.json,
            **settings,
        )
    except KeyboardInterrupt:
        say("Stopped; the same command goes on from there", file=sys.stderr)
        return 1
    write_figures(curve_page(curve), out)
    if options.json:
        print(as_json(curve.to_dict()))
        return 0
    Console().print(curve.table())
    say(f"Written to {out / 'curve.json'}, drawn in {out / 'curve.png'}, .svg and .pdf. Next: {command('report', out)}")
    return 0


def cost_matrix(rows: Sequence[str]) -> list[list[float]]:
    """Read --costs: for each true class a text of numbers with commas between them."""
    try:
        return [[float(cost) for cost in row.split(",")] for row in rows]
    except ValueError as error:
        raise UserError(f"--costs takes a row of numbers for each class, such as 0,1 5,0, not {' '.join(rows)}") from error


def _load_surrogate(path: Path, factory: str, device: Any) -> Any:
    from hauberk.training import load

    return load(path, model=build_named(path, "best", factory), device=device)


def _folder(options: Evaluate) -> Path:
    """Where an evaluation with these options is kept: one folder for each combination that gives other numbers."""
    beside = options.target if options.target.is_dir() else options.target.parent
    told = {key: value for key, value in asdict(options).items() if key not in _CHANGES_NO_NUMBER}
    told |= {"target": options.target.name, "data": options.data.name}
    kind = "custom" if options.evaluation.attacks else options.evaluation.suite
    kind = "curve" if options.curve else kind
    return beside / "evaluations" / f"{kind}-{digest(told)}"
