"""evaluate: robust accuracy of a model, resumable, repeatable, and every success verified."""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from hauberk.attacks.checks import check_model
from hauberk.attacks.frozen_model import frozen_model
from hauberk.attacks.presets import AttackLike
from hauberk.attacks.suites import find_suite
from hauberk.core.distributed import World, get_world
from hauberk.core.environment import machine, versions
from hauberk.core.errors import UserError
from hauberk.core.progress import ProgressBar
from hauberk.core.random import ExampleRng, content_ids
from hauberk.data import Subset, as_dataset, data_digest, fetch_for
from hauberk.data.dataset import in_memory
from hauberk.evaluation.columns import columns
from hauberk.evaluation.contract import contract
from hauberk.evaluation.diagnostics import Diagnostic
from hauberk.evaluation.partial import shuffled_order
from hauberk.evaluation.probes import SAMPLE, eps_curve, probe_gradients
from hauberk.evaluation.records import RecordStore, difference
from hauberk.evaluation.result import Evaluation
from hauberk.evaluation.runner import EvaluationRunner
from hauberk.evaluation.search import probe_search
from hauberk.evaluation.signs import signs
from hauberk.evaluation.summary import summarize
from hauberk.fastpath.frozen_copy import make_inference_copy
from hauberk.models import model_code
from hauberk.threat import ThreatModel
from hauberk.threat.checks import check_inputs

Precision: TypeAlias = Literal["full", "bf16"]

_TRANSFER = "transfer-pgd-20"


def evaluate(
    model: nn.Module,
    test_set: Any,
    *,
    threat: ThreatModel,
    suite: str = "quick",
    attacks: Sequence[AttackLike] = (),
    sequential: bool = False,
    n: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    precision: Precision = "full",
    surrogate: nn.Module | None = None,
    detects: bool = False,
    out: str | Path | None = None,
    adversarials: bool = False,
    probes: bool = True,
    quiet: bool = False,
) -> Evaluation:
    """Measure clean and robust accuracy.

    Attacks run one after the other; examples wait in a queue, and one that is broken makes room for the next. A success counts
    only if the point is inside ball and box and the model, in evaluation mode and its own precision, misclassifies it again.
    Random draws are keyed by (seed, content of the example, attack, turn, step): verdicts do not depend on the order of the
    examples, on how many processes share them, or on interruptions; and on the batch size only through float rounding.

    Within a ``torch.distributed`` process group, the processes share the examples and all return the same result.

    Args:
        model: classifier from inputs (B, ...) in the box to logits (B, C), on the device to use; unchanged afterwards.
        test_set: a pair (x, y) of arrays, a map-style ``Dataset``, or what ``hauberk.data.load_data`` returns.
        threat: what the adversary may do.
        suite: "quick": FGSM, PGD-20, CW-30 and PGD-100, a cheap upper bound; "papers": the columns of the MAIL and MART tables;
            "standard": AutoAttack; "plus" and "rand": its larger version, and the one for randomised defences.
        attacks: names of attacks (``hauberk.attacks.PRESETS``) instead of a suite.
        sequential: run each of them only on the examples that still stand.
        n: evaluate the first n examples only.
        batch_size: examples at a time.
        seed: of all random draws.
        precision: "full", or "bf16" to run the attacks with gradients, never the verdicts, in bfloat16.
        surrogate: another classifier of the same inputs; adds the attack "transfer-pgd-20", crafted on it.
        detects: the model's last output is a class of adversarial inputs. Attacks then try to be misclassified without
            being recognised, robust accuracy is with rejection (an adversarial input does no harm if it gets its label or is
            recognised), and ``detection`` says how many adversarial inputs that do not try to hide are recognised, and how
            many clean inputs are taken for adversarial.
        out: folder to keep verdicts in as they come; called again with the same arguments, the evaluation goes on there.
        adversarials: keep the inputs too, in ``adversarials.npy`` of that folder, (N, ...): the first verified adversarial
            example of each example, or the clean input where there is none.
        probes: look for signs of masked gradients on a few examples, and measure accuracy against ε.
        quiet: print no progress.

    Returns:
        Evaluation; look at its ``warnings`` before its numbers.

    Raises:
        UserError: for data, model and threat model that do not fit together, unknown names, or a folder in use.
    """
    plan = find_suite(suite, attacks, sequential, also=() if surrogate is None else (_TRANSFER,))
    source = as_dataset(test_set)
    count = len(source) if n is None else n
    _check_options(count, len(source), batch_size, precision, adversarials and out is None)
    first_x, first_y = fetch_for(model, source, torch.arange(min(count, 16)))
    check_inputs(first_x, first_y, threat, source.classes)
    needed = None if source.classes is None else source.classes + detects
    outputs = check_model(model, first_x, first_y, needed, probabilities=True)
    # Refuses now what it would refuse later.
    notes = {name: preset.adapted(threat, outputs, detects, surrogate)[1] for name, preset in plan.attacks.items()}
    width = min(batch_size, count)
    folder = None if out is None else Path(out)
    world = get_world()
    # Only what goes on, or is shared, is compared. Each example is compared again in the clean pass, so data that are not in
    # memory are not read twice for that.
    bound = folder is not None or world.size > 1
    known = count if bound and in_memory(source) else min(count, 16)
    about = {
        "suite": "custom" if attacks else suite,
        "stages": {name: list(spared) for name, spared in plan.stages.items()},
        "threat": threat.to_dict(),
        "data": source.name,
        "data_digest": data_digest(Subset(source, torch.arange(known))),
        "n": count,
        "model_id": model_id(model),
        "model_code": model_code(model),
        "surrogate_id": None if surrogate is None else model_id(surrogate),
        "surrogate_code": None if surrogate is None else model_code(surrogate),
        "seed": seed,
        "batch_size": width,
        "precision": precision,
        "detects": detects,
        "adversarials": adversarials,  # stored with the verdicts: those of an earlier session could not be made up
        **{name: versions()[name] for name in ("hauberk", "torch", "python")},
        "threads": torch.get_num_threads(),
        "device": first_x.device.type,
    }
    ledger = _open(folder, about, world, first_x[0] if adversarials else None)
    hidden = quiet or not world.is_main
    with closing(ledger), ProgressBar("evaluate", 1000, quiet=hidden, unit="") as display, frozen_model(model) as view:
        torch.manual_seed(seed)  # for random models; frozen_model puts the caller's generator back
        if ledger.warning:
            display.line(ledger.warning)
        exact = make_inference_copy(view, first_x)
        campaign = EvaluationRunner(
            model=view,
            source=source,
            threat=threat,
            suite=plan,
            ledger=ledger,
            share=world.local_shard(shuffled_order(seed, count)),
            seed=seed,
            width=width,
            outputs=needed,
            evading=detects,
            exact=exact,
            quick=make_inference_copy(view, first_x, torch.bfloat16) if precision == "bf16" else exact,
            surrogate=surrogate,
            display=display,
            state_path=None if folder is None else folder / f"state-{world.rank}.pt",
        )
        try:
            campaign.clean_pass()
            contracted = contract(view, first_x, plan.eot_iter) + columns(source, threat)
            probed, curve = _probe(campaign) if probes else ([], [])
            for found in (d for d in contracted + probed if d.verdict != "ok"):
                display.line(f"{found.verdict.upper()} {found.name}: {found.measured}; {found.advice}")
            campaign.attack()
        finally:
            campaign.write_cost()
    parts = world.all_gather_object((list(ledger.records.values()), curve, contracted + probed))
    total = summarize([record for part in parts for record in part[0]], plan)
    result = Evaluation(
        threat=str(threat),
        suite="custom" if attacks else suite,
        sequential=plan.sequential,
        **total.numbers(),
        detection=total.detected(outputs) if detects else None,
        curve=parts[0][1],
        diagnostics=parts[0][2] + signs(total, outputs),
        provenance={
            "seed": seed,
            "batch_size": batch_size,
            "precision": precision,
            "draws": plan.eot_iter,
            "data": source.name,
            "subset": "all" if count == len(source) else f"first {count} of {len(source)}",
            "attacks": {name: preset.source for name, preset in plan.attacks.items()},
            "substitutes": {name: note for name, note in notes.items() if note},
            **total.cost(),
            "processes": world.size,
            "dtype": str(first_x.dtype),
            "model_id": about["model_id"],
            "versions": versions(),
            "machine": machine(first_x.device),
        },
    )
    if folder is not None and world.is_main:
        result.save(folder / "evaluation.json")
    return result


def model_id(model: nn.Module) -> str:
    """Return a digest of all parameters and buffers, 16 hexadecimal digits."""
    return _digest(list(model.state_dict().values()))


def _digest(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for value in tensors:
        if isinstance(value, Tensor):
            digest.update(str((value.dtype, tuple(value.shape))).encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_options(count: int, there: int, batch_size: int, precision: str, homeless: bool) -> None:
    if not 1 <= count <= there:
        raise UserError(f"n must be 1 to {there}, got {count}")
    if batch_size < 1:
        raise UserError(f"batch_size must be positive, got {batch_size}")
    if precision not in ("full", "bf16"):
        raise UserError(f"precision is 'full' or 'bf16', not {precision!r}")
    if homeless:
        raise UserError("adversarials are kept in the folder of the evaluation; give out=")


def _open(folder: Path | None, about: dict[str, Any], world: World, point: Tensor | None) -> RecordStore:
    """Open the ledger; the first process sets the folder up before the others look at it.

    Raises:
        UserError: in all processes, if they were started differently, or see other data or another model.
    """
    differs = difference(world.on_main_process(lambda: about), about, harmless=())
    world.raise_if_any(f"process {world.rank} is not like the first one: other {differs}" if differs else "")
    with ExitStack() as undo:
        for turn in (0, 1):
            problem = ""
            if (world.rank > 0) == turn:
                try:
                    ledger = undo.enter_context(closing(RecordStore(folder, about, world.rank)))
                    if point is not None:
                        ledger.open_points(about["n"], point)
                except UserError as error:
                    problem = str(error)
            world.raise_if_any(problem)
        undo.pop_all()
    return ledger


def _probe(campaign: EvaluationRunner) -> tuple[list[Diagnostic], list[dict[str, Any]]]:
    """Probe the model on the first examples that this process has and that are classified right."""
    some = campaign.right()[:SAMPLE]
    if not some:
        return [], []
    x, y = fetch_for(campaign.model, campaign.source, torch.tensor(some))
    rng = ExampleRng(campaign.seed, content_ids(x).to(x.device), stage=1)
    evading, draws = campaign.evading, campaign.suite.eot_iter
    found = probe_gradients(campaign.exact_sight, x, y, campaign.threat, rng, evading)
    if evading:
        return found, []  # the curve's attack does not try to hide
    curve, more = eps_curve(campaign.model, x, y, campaign.threat, rng, draws)
    other = ExampleRng(campaign.seed, content_ids(x).to(x.device), stage=2)
    return found + more + probe_search(campaign.model, x, y, campaign.threat, rng, other, draws), curve
