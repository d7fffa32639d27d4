"""evaluate: robust accuracy of a model, resumable, repeatable, and every success verified."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.attacks import ModelQueries, Suite, find_suite, frozen_model
from hauberk.attacks.base import check_draws
from hauberk.attacks.model.bpda import StandInLike, with_stand_in
from hauberk.attacks.model.check_model import check_model, check_module, check_surrogate, has_gradient
from hauberk.attacks.presets import AttackLike
from hauberk.certification.bounds.region import check_threat
from hauberk.core.arguments import checked
from hauberk.core.distributed import World, get_world
from hauberk.core.errors import UserError
from hauberk.core.imports import code_digest
from hauberk.core.io import machine, read_json, versions
from hauberk.core.numerics import Precision, deterministic_mode, float32_mode, float32_switches
from hauberk.core.progress import ProgressBar
from hauberk.core.random import shuffled_order
from hauberk.data import IndexedDataset, Subset, as_dataset, fetch_for
from hauberk.data.tables.rows import rows_behind
from hauberk.evaluation.attacked_rows import attack_rows
from hauberk.evaluation.certified import certify_standing, check_certifiable
from hauberk.evaluation.cost import measure_cost
from hauberk.evaluation.diagnostics import DiagnosticSpec, find_diagnostics, run_diagnostics
from hauberk.evaluation.diagnostics.gradients import SAMPLE, Sample
from hauberk.evaluation.diagnostics.results import CleanInputs, Verdicts
from hauberk.evaluation.finding import worst_first
from hauberk.evaluation.identity import FIRST, identity, require_same_plan, stand_in_identity
from hauberk.evaluation.records import CLEAN, PLAN, Records, RecordStore
from hauberk.evaluation.result import Evaluation
from hauberk.evaluation.runner import EvaluationRunner
from hauberk.evaluation.tabular_risk import risk_of_rows
from hauberk.evaluation.two_phase import run_two_phases, survivors_of
from hauberk.evaluation.union import evaluate_union
from hauberk.fastpath.frozen_copy import make_inference_copy
from hauberk.fastpath.precision import autotune_precision
from hauberk.models import model_id
from hauberk.objectives.expected_cost import read_costs
from hauberk.objectives.functional import AttackLoss, Criterion, evades, fooled, make_goal
from hauberk.threat import ThreatModel
from hauberk.threat.batch import check_inputs
from hauberk.threat.union import threat_digest

EvaluationPrecision: TypeAlias = Literal["model", "fp32", "tf32", "bf16", "auto"]

_TRANSFER = "transfer-pgd-20"


@checked
def evaluate(
    model: nn.Module,
    test_set: Any,
    *,
    threat: ThreatModel | Sequence[ThreatModel],
    suite: str = "quick",
    attacks: Sequence[AttackLike] = (),
    sequential: bool = False,
    to: float = 1.0,
    n: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    precision: EvaluationPrecision = "fp32",
    surrogate: nn.Module | None = None,
    bpda: StandInLike | None = None,
    criterion: Criterion | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    has_reject_class: bool = False,
    diagnostics: str | Sequence[str | DiagnosticSpec] = "all",
    certify: bool = False,
    costs: Any = None,
    out: str | Path | None = None,
    save_adversarials: bool = False,
    quiet: bool = False,
) -> Evaluation:
    """Measure clean and robust accuracy.

    Attacks run one after the other; examples wait in a queue, and one that is broken makes room for the next. A success counts
    only if the point is inside ball and box and the model, in evaluation mode and its own precision (true float32, not TF32),
    misclassifies it again.
    Random draws are keyed by (seed, content of the example, attack, run, step): verdicts do not depend on the order of the
    examples, on how many processes share them, or on interruptions; and on the batch size only through float rounding.

    Within a ``torch.distributed`` process group, the processes share the examples and all return the same result.

    Args:
        model: classifier from inputs (B, ...) in the box to logits (B, C), on the device to use; unchanged afterwards.
        test_set: a pair (x, y) of arrays, a map-style ``Dataset``, or what ``hauberk.data.load_data`` returns.
        threat: what the adversary may do; several of them for each and for their union: ``results`` has one evaluation for
            each, and an example is robust if it is so under all.
        suite: "quick": FGSM, PGD-20, CW-30 and PGD-100, a cheap upper bound; "papers": the columns of the MAIL and MART tables;
            "standard": AutoAttack; "fast": its accuracy, estimated with an interval at a fraction of the price; "plus" and
            "rand": AutoAttack's larger version, and the one for randomised defences; "scores": random points and Square. On a
            model without gradients (``hauberk.models.GradientFree``) "quick" is a shorter form of the last, and all others are
            refused; no attack and no diagnostic is then run that goes by gradients, and a diagnostic says so.
        attacks: attacks instead of a suite: names (``hauberk.attacks.PRESETS``), objects such as ``hb.attacks.PGD(steps=50)``,
            or functions ``f(model, x, y, threat) -> x_adv`` of a frozen model; what yours claim is verified as what ours do. A
            second one of the same name is reported as "NAME #2".
        sequential: run each of them only on the examples that are still robust.
        to: of the suite "fast": go on until the interval of the estimate is within ± so many points (hundredths of all
            examples); 0 for all examples, which is what "standard" does. May be another when an evaluation goes on.
        n: evaluate the first n examples only.
        batch_size: examples at a time.
        seed: of all random draws.
        precision: what the attacks run on. "model": the model as it is, under torch's switches as they are; "fp32": a fused
            copy of it, where that agrees with it, in true float32; "tf32": for attacks with gradients, TF32 is allowed on CUDA;
            "bf16": these run on a copy in bfloat16; "auto": measure which is fastest and agrees. Clean pass, verdicts and
            diagnostics are by the model in true float32, whatever torch's switches say.
        surrogate: another classifier of the same inputs; adds the attack "transfer-pgd-20", crafted on it.
        bpda: a differentiable stand-in for a model that hides its gradients, a module or a function of inputs (B, ...) that
            returns what the model returns: attacks and diagnostics that go by gradients take them from it, see
            :class:`hauberk.attacks.BPDA`. Verdicts are the model's own. Your own functions are handed the model as it is.
        criterion: a function of outputs and labels that says which outputs are mistakes, (B,) bool; None for misclassification.
            With a loss besides, labels and outputs may be anything that these two understand, such as floats (B, L): what goes
            by classes is then left out (``by_class``, some diagnostics) or refused (attacks with targets).
        loss: a function of outputs and labels, (B,), that all attacks maximise which have no loss of your own; "margin" in
            records is then minus this.
        has_reject_class: the model's last output is a class of adversarial inputs. Attacks then try to be misclassified without
            being recognised, robust accuracy is with rejection (an adversarial input does no harm if it gets its label or is
            recognised), and ``detection`` says how many adversarial inputs that do not try to hide are recognised, and how
            many clean inputs are taken for adversarial.
        diagnostics: "all" of ``hauberk.evaluation.DIAGNOSTICS``, with accuracy against ε; "cheap": those that run no attacks of
            their own; or a list of their names and of your own :class:`hauberk.evaluation.DiagnosticSpec`.
        certify: prove, after the first attack, for as many as possible of the examples that stand that no attack can break them
            (see :func:`hauberk.certify`, whose defaults these are); only 16 of these are attacked any further, as a check, and
            the result has a lower bound of robust accuracy, too.
        costs: matrix of what mistakes cost, (C, C), row the true class, column the predicted one: adds ``cost``, the highest
            cost that an attack finds for each example (see :func:`hauberk.evaluation.measure_cost`).
        out: folder to keep verdicts in as they come; called again with the same arguments, the evaluation goes on there.
        save_adversarials: keep the inputs too, in ``adversarials.npy`` of that folder, (N, ...): the first verified adversarial
            example of each example, or the clean input where there is none.
        quiet: print nothing but warnings, on stderr.

    Returns:
        Evaluation; look at its ``warnings`` before its numbers.

    Raises:
        UserError: for data, model and threat model that do not fit together, unknown names, a folder in use, or a model or a
            threat model that there are no certificates for, where they are asked for.
        RuntimeError: if an attack breaks an example that was certified.
    """
    if not isinstance(threat, ThreatModel):
        if suite == "fast" and not attacks:
            raise UserError("the suite 'fast' estimates one threat model at a time; give one, or take suite='standard'")
        settings = {name: value for name, value in locals().items() if name not in ("threat", "out")}
        return evaluate_union(partial(evaluate, **settings), threat, out)
    check_module(model)
    attacked = with_stand_in(model, bpda)
    chosen = find_suite(suite, attacks, sequential, also=() if surrogate is None else (_TRANSFER,))
    chosen = chosen.for_model(attacked, "" if attacks else suite)
    chosen = chosen if attacks else chosen.for_threat(threat)  # the caller's own attacks stay in order of cost
    specs = [spec for spec in find_diagnostics(diagnostics) if spec.evidence != "sample" or has_gradient(attacked)]
    goal = _goal(criterion, loss, has_reject_class)
    check_draws(chosen.eot_iter, goal)
    if costs is not None and goal.criterion is not fooled:
        raise UserError("costs are of classes that are taken for others; leave out criterion and has_reject_class")
    if certify:
        check_certifiable(goal, chosen.eot_iter)
        check_threat(threat)
    source, folder, world = as_dataset(test_set, goal.of_classes), None if out is None else Path(out), get_world()
    count = len(source) if n is None else n
    _check_options(count, len(source), batch_size, to, save_adversarials and folder is None)
    first_x, first_y = fetch_for(model, source, torch.arange(min(count, FIRST)))
    check_inputs(first_x, first_y, threat, source.classes, goal.of_classes)
    classes = None if source.classes is None else source.classes + goal.extra_outputs
    outputs = check_model(model, first_x, first_y, classes, probabilities=True, of_classes=goal.of_classes)
    if costs is not None:
        read_costs(costs, outputs)
    if surrogate is not None:
        check_surrogate(surrogate, first_x, first_y, goal.of_classes)
    adapted = {name: one.adapted(threat, outputs, goal, surrogate) for name, one in chosen.attacks.items()}
    width = min(batch_size, count)
    used: Precision
    if precision == "auto" and not has_gradient(model):
        used = "fp32"  # there is nothing to measure
    elif precision == "auto":
        used = world.on_main_process(lambda: _measured_precision(model, source, width, folder))
    else:
        used = precision
    with float32_mode(used):
        in_attacks = float32_switches()
    plan: dict[str, Any] = {
        "suite": "custom" if attacks else suite, "stages": {name: list(earlier) for name, earlier in chosen.stages.items()},
        "n": count, "seed": seed, "batch_size": width, "precision": precision, "attack_precision": used,
        "goal": code_digest(goal), "certify": certify,
        "save_adversarials": save_adversarials,  # stored with the verdicts: those of an earlier session could not be made up
        "float32": in_attacks, "threads": torch.get_num_threads(), "device": first_x.device.type, "model_id": model_id(model),
    }  # fmt: skip
    if folder is not None or world.size > 1:  # there are others to compare with
        plan |= {"threat": threat.to_dict(), **identity(model, surrogate, source, count), "bpda": stand_in_identity(bpda)}
        plan["attacks"] = {name: code_digest(preset.attack) for name, preset in chosen.attacks.items()}
    if world.size > 1:
        require_same_plan(plan, source, count, world)
    store = _open_store(folder, plan, world, first_x[0] if save_adversarials else None)
    hidden, order = quiet or not world.is_main, shuffled_order(seed, count)
    certified, sampled = None, None
    with (
        closing(store),
        ProgressBar("evaluate", 1000, quiet=hidden) as display,
        deterministic_mode(first_x.device, algorithms=False),
        frozen_model(attacked),
    ):
        torch.manual_seed(seed)  # for random models; frozen_model puts the caller's generator back
        if store.warning and world.is_main:
            display.warn(store.warning)
        fp32 = model if used == "model" else make_inference_copy(model, first_x)
        lowest = make_inference_copy(model, first_x, used) if used in ("tf32", "bf16") else fp32
        forms = model, fp32, with_stand_in(lowest, bpda)
        reference_model, fp32_model, attack_model = (ModelQueries(form, chosen.eot_iter) for form in forms)
        runner = EvaluationRunner(
            reference_model, fp32_model, attack_model, source=source, threat=threat,
            attacks={name: attack for name, (attack, _) in adapted.items()},
            runs={name: range(adapted[name][0].n_runs(outputs))[slice(*one.runs)] for name, one in chosen.attacks.items()},
            draws={name: one.whole or name for name, one in chosen.attacks.items()}, stages=chosen.stages, store=store,
            shard=world.local_shard(order).numpy(), seed=seed, batch_size=width, outputs=outputs,
            goal=goal, display=display, precision=used,
            state_path=None if folder is None else folder / f"state-{world.rank}.pt",
        )  # fmt: skip
        try:
            with float32_mode("fp32"):
                runner.clean_pass()
                found = run_diagnostics(
                    specs, "model", CleanInputs(model, first_x, chosen.eot_iter, source, threat, goal.of_classes)
                )
                more, curve = _run_on_sample(runner, specs, bpda, chosen)
            for one in worst_first(found + more):
                display.line(str(one))
            if certify:
                certified = certify_standing(runner, chosen, world, folder)
            if chosen.sampled:
                sampled = run_two_phases(runner, chosen, world, order.numpy(), to / 100)
            else:
                runner.run_attacks(chosen.stages)
        finally:
            store.write_cost(runner.passes)
    records = store.records
    records.share(world)
    records.check_certified()
    found, curve = world.on_main_process(lambda: (found + more, curve))
    provenance = {
        "seed": seed, "batch_size": batch_size, "precision": used, "float32": in_attacks,
        "draws": chosen.eot_iter, "data": source.name, "data_digest": records.data_digest(),
        "threat_digest": threat_digest(threat),
        "subset": "all" if count == len(source) else f"first {count} of {len(source)}",
        "attacks": {name: preset.source for name, preset in chosen.attacks.items()},
        "substitutes": {name: note for name, (_, note) in adapted.items() if note},
        **records.cost(),
        "processes": world.size, "dtype": str(first_x.dtype), "model_id": plan["model_id"], "versions": versions(),
        "machine": machine(first_x.device),
    }  # fmt: skip
    weights = np.ones(count) if sampled is None else sampled.weights
    rows, tested = rows_behind(source), Subset(source, torch.arange(count))
    risk, cost, shown = None, None, None
    if costs is not None:
        cost = world.on_main_process(lambda: measure_cost(attacked, tested, threat=threat, costs=costs, seed=seed))
    if rows is not None and goal.criterion is fooled:
        risk = world.on_main_process(lambda: risk_of_rows(model, tested, threat=threat, seed=seed))
        shown = world.on_main_process(lambda: attack_rows(attacked, tested, threat=threat, seed=seed, records=records))
    verdicts = Verdicts(records, chosen, outputs, weights, goal, tested, threat)
    result = Evaluation(
        str(threat), plan["suite"], chosen.sequential,
        **_fractions(records, chosen, weights, goal, outputs), curve=curve,
        diagnostics=found + run_diagnostics(specs, "verdicts", verdicts),
        provenance=provenance, records=records, sampled=sampled, certified=certified,
        risk=risk, cost=cost, class_names=rows.class_names if rows else (), attacked_rows=shown,
    )  # fmt: skip
    if folder is not None and world.is_main:
        result.save(folder / "evaluation.json")
    return result


def _goal(criterion: Criterion | None, loss: Callable[[Tensor, Tensor], Tensor] | None, has_reject_class: bool) -> AttackLoss:
    """What the adversary is after: ``has_reject_class`` is short for the criterion ``evades``."""
    if has_reject_class and criterion not in (None, evades):
        raise UserError("has_reject_class is a criterion itself; give one of the two")
    return make_goal(evades if has_reject_class else criterion, loss)


def _check_options(count: int, there: int, batch_size: int, to: float, no_folder: bool) -> None:
    if not 0 <= to <= 100:
        raise UserError(f"to must be 0 to 100 points, got {to}")
    if not 1 <= count <= there:
        raise UserError(f"n must be 1 to {there}, got {count}")
    if batch_size < 1:
        raise UserError(f"batch_size must be positive, got {batch_size}")
    if no_folder:
        raise UserError("adversarial examples are saved in the folder of the evaluation; give out=")


def _measured_precision(model: nn.Module, source: IndexedDataset, batch_size: int, folder: Path | None) -> Precision:
    """Return the precision that an evaluation that goes on was begun with, otherwise what is faster here."""
    if folder is not None and (folder / PLAN).exists():
        begun = read_json(folder / PLAN).get("attack_precision")
        return next((name for name in get_args(Precision) if name == begun), "fp32")
    x, _ = fetch_for(model, source, torch.arange(batch_size))
    with deterministic_mode(x.device, algorithms=False):
        return autotune_precision(model, x, "auto", "off").precision


def _open_store(folder: Path | None, plan: dict[str, Any], world: World, point: Tensor | None) -> RecordStore:
    """Open the records; rank 0 sets the folder up before the others look at it. All processes raise a UserError, or none."""
    with ExitStack() as undo:
        for first in (True, False):
            problem = ""
            if world.is_main == first:
                try:
                    store = undo.enter_context(closing(RecordStore(folder, plan, world.rank)))
                    if point is not None:
                        store.open_points(point)
                except UserError as error:
                    problem = str(error)
            world.raise_if_any(problem)
        undo.pop_all()
    return store


def _run_on_sample(
    runner: EvaluationRunner, specs: list[DiagnosticSpec], bpda: StandInLike | None, suite: Suite
) -> tuple[list[Any], list[dict[str, Any]]]:
    """Run diagnostics on the first examples that this process has and that are right; return them, and accuracy against ε."""
    some = runner.right()[:SAMPLE]
    if not len(some) or all(spec.evidence != "sample" for spec in specs):
        return [], []
    model, fp32, draws = runner.reference_model.model, runner.fp32_model.model, runner.reference_model.eot_iter
    x, y = fetch_for(model, runner.source, torch.from_numpy(some))
    attacks = [preset.attack for preset in suite.attacks.values()]
    queries = runner.fp32_model if bpda is None else ModelQueries(with_stand_in(fp32, bpda), draws)
    sample = Sample(with_stand_in(model, bpda), queries, x, y, runner.threat, runner.seed, draws, runner.goal, attacks)
    return run_diagnostics(specs, "sample", sample), sample.curve


def _fractions(records: Records, suite: Suite, weights: np.ndarray, goal: AttackLoss, outputs: int) -> dict[str, Any]:
    """Count accuracies, and rates of detection, as fields of an :class:`Evaluation`; each example as ``weights`` (n,) says."""
    right, robust, clean = records.right, records.robust, records[CLEAN]

    def standing(attacks: Sequence[str]) -> float:
        some = right & ~records.broken(attacks)
        return float(weights[some].sum() if set(attacks) & set(suite.sampled) else some.sum()) / records.n

    rates = {
        "detection_rate": int(clean["recognised"][right].sum()) / max(int(right.sum()), 1),
        "false_alarms": int((clean["predicted"] == outputs - 1).sum()) / records.n,
    }
    return {
        "clean_accuracy": int(right.sum()) / records.n,
        "robust_accuracy": float(weights[robust].sum()) / records.n,
        "by_attack": {name: standing(attacks) for name, attacks in suite.columns.items()},
        "by_class": _by_class(records, survivors_of(records, suite), weights),
        "detection": rates if goal.extra_outputs else None,
    }


def _by_class(records: Records, survivors: np.ndarray, weights: np.ndarray) -> dict[int, float]:
    """Robust accuracy of each class; none of a task without classes.

    Of a sample, how many survivors (n,) a class has is known, and only which share of them is left is estimated: from those of
    the class that were sampled, as the weights of a few add up to another number, or from all where none of the class was.
    """
    label, robust = records[CLEAN]["label"], records.robust
    classes = np.unique(label[label >= 0])

    def share_left(some: np.ndarray) -> tuple[float, float]:
        return float(weights[some & robust].sum()), float(weights[some].sum())

    found = {}
    for c in classes.tolist():
        mine = label == c
        left, tried = share_left(mine & survivors)
        left, tried = (left, tried) if tried else share_left(survivors)
        kept = int((mine & robust & ~survivors).sum())
        found[c] = (kept + int((mine & survivors).sum()) * left / max(tried, 1.0)) / int(mine.sum())
    return found
