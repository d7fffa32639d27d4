"""certify: a lower bound of robust accuracy, by linear relaxations of the network."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.attacks import frozen_model
from hauberk.attacks.model.check_model import check_model, check_module
from hauberk.certification.bounds.crown import interval_bounds
from hauberk.certification.bounds.graph import Graph
from hauberk.certification.bounds.region import Region, check_threat
from hauberk.certification.bounds.trace import trace
from hauberk.certification.methods import METHODS, Undecided
from hauberk.certification.records import CertificateRecords
from hauberk.certification.result import Certificates
from hauberk.core.arguments import checked
from hauberk.core.distributed import get_world
from hauberk.core.errors import UserError, unknown_name
from hauberk.core.io import machine, versions
from hauberk.core.numerics import deterministic_mode, float32_mode
from hauberk.core.progress import ProgressBar
from hauberk.data import IndexedDataset, Subset, as_dataset, data_digest, fetch_for
from hauberk.data.dataset import in_memory
from hauberk.models import model_code, model_id
from hauberk.threat import ThreatModel
from hauberk.threat.batch import check_inputs

_FIRST = 16  # examples that are looked at before anything else
COLUMNS = {"label": np.int64, "predicted": np.int64, "margin": np.float64, "bound": np.float64, "proof": np.int64}


@checked
def certify(
    model: nn.Module,
    test_set: Any,
    *,
    threat: ThreatModel,
    methods: Sequence[str] = ("ibp", "crown-ibp", "crown", "alpha-crown"),
    steps: int = 20,
    branches: int = 1000,
    n: int | None = None,
    batch_size: int = 32,
    out: str | Path | None = None,
    quiet: bool = False,
) -> Certificates:
    """Prove for as many examples as possible that no point of the threat model's set is misclassified.

    For each example and each other class k, ``z_y - z_k`` is bounded from below on the whole set; the example is certified if
    all bounds are positive. An example that is not certified may be robust all the same; attacks
    (:func:`hauberk.evaluate`) bound robust accuracy from above.

    A certificate holds for what the model computes in its own dtype, float32 or float64, not only for the real function that it
    stands for: every operation is granted its rounding error, and every point that Hauberk counts as inside ball and box is
    covered. It rests on two things: matrix products and convolutions add up products, in any order (TF32, Winograd's algorithm
    and the FFT round more), and sigmoid and tanh are right to 16 roundings.

    Within a ``torch.distributed`` process group, the processes share the examples and all return the same result.

    Args:
        model: classifier from inputs (B, ...) in the box to logits (B, C), on the device to use; taken in evaluation mode and
            unchanged afterwards. It may consist of linear layers, convolutions, batch normalisation, ReLU, leaky ReLU, sigmoid,
            tanh, average and max pooling, sums, concatenations, products with constants, and what moves numbers about.
        test_set: a pair (x, y) of arrays, a map-style ``Dataset``, or what ``hauberk.data.load_data`` returns.
        threat: what the adversary may do, in L∞, L2 or L1.
        methods: bounds to try, cheapest first, each on what those before have left undecided: "ibp", interval bound
            propagation (Gowal et al. 2018); "crown-ibp", linear relaxation between bounds of intervals (Zhang et al. 2020);
            "crown", between bounds of its own (Zhang et al. 2018); "alpha-crown", with lower slopes of ReLUs optimised for each
            class (Xu et al. 2021), the intermediate bounds being those of CROWN; "branch-and-bound", only if it is named here,
            cuts what is still open into parts that are bounded by themselves (Bunel et al. 2020, Wang et al. 2021): boxes where
            up to 24 features can change, otherwise signs of ReLUs; it is complete but for the number of parts.
        steps: of the optimisation of "alpha-crown".
        branches: how many parts "branch-and-bound" may bound for each example and class.
        n: certify the first n examples only.
        batch_size: examples at a time.
        out: folder to keep verdicts in as they come; called again with the same arguments, it goes on there.
        quiet: print nothing but warnings, on stderr.

    Returns:
        Certificates, with the certified accuracy and one verdict for each example.

    Raises:
        UserError: for an operation of the model or a norm that there are no bounds for, which is named; for data, model and
            threat model that do not fit together; or a folder in use.

    Example:
        >>> import torch, hauberk as hb
        >>> x = torch.tensor([[0.2, 0.8], [0.45, 0.55]])
        >>> net = torch.nn.Linear(2, 2).requires_grad_(False)
        >>> _ = net.weight.copy_(torch.eye(2)), net.bias.zero_()
        >>> result = hb.certify(net, (x, torch.tensor([1, 1])), threat=hb.Linf(0.1), quiet=True)
        >>> result.certified.tolist(), result.clean_accuracy
        ([True, False], 1.0)
    """
    check_module(model)
    check_threat(threat)
    chosen = _find_methods(methods)
    source, folder, world = as_dataset(test_set), None if out is None else Path(out), get_world()
    count = len(source) if n is None else n
    if not 1 <= count <= len(source):
        raise UserError(f"n must be 1 to {len(source)}, got {count}")
    if min(batch_size, steps, branches) < 1:
        raise UserError(f"batch_size, steps and branches must be positive, got {batch_size}, {steps} and {branches}")
    first_x, first_y = fetch_for(model, source, torch.arange(min(count, _FIRST)))
    check_inputs(first_x, first_y, threat, source.classes)
    check_model(model, first_x, first_y, source.classes, probabilities=True)
    plan: dict[str, Any] = {
        "certificates": "bounds", "n": count, "methods": list(chosen), "steps": steps, "branches": branches,
        "threat": threat.to_dict(), "model_id": model_id(model),
    }  # fmt: skip
    if folder is not None or world.size > 1:  # there are others to compare with
        digest = data_digest(Subset(source, torch.arange(count if in_memory(source) else min(count, _FIRST))))
        own = {name: versions()[name] for name in ("hauberk", "torch")}
        plan |= {"data": source.name, "data_digest": digest, "model_code": model_code(model), **own}
    begun, hidden = time.monotonic(), quiet or not world.is_main
    with (
        closing(CertificateRecords(folder, plan, COLUMNS, world)) as records,
        ProgressBar("certify", 1000, quiet=hidden) as display,
        deterministic_mode(first_x.device, algorithms=False),
        float32_mode("fp32"),
        frozen_model(model),
        torch.no_grad(),
    ):
        graph = trace(model, _unlike(first_x[:1], threat))
        mine = world.local_shard(torch.arange(count))
        left = mine[torch.from_numpy(~records.known[mine.numpy()])]
        try:
            for done, index in enumerate(left.split(batch_size) if len(left) else ()):
                batch = _certify_batch(model, graph, source, threat, index, chosen, steps, branches)
                records.write(index.numpy(), **{name: value.cpu().numpy() for name, value in batch.items()})
                known = int(records.known[mine.numpy()].sum())
                proved = int((records.columns["proof"][records.known] >= 0).sum())
                display.reach(
                    known / len(mine), f"certified {proved} of {int(records.known.sum())}", _left(begun, done, left, batch_size)
                )
        finally:
            records.write_cost(time.monotonic() - begun)
    records.share()
    result = Certificates(
        str(threat), tuple(chosen), **records.columns,
        provenance={
            "steps": steps, "branches": branches, "batch_size": batch_size, "data": source.name,
            "subset": "all" if count == len(source) else f"first {count} of {len(source)}", "seconds": records.seconds,
            "processes": world.size, "dtype": str(first_x.dtype), "model_id": plan["model_id"], "versions": versions(),
            "machine": machine(first_x.device),
        },
    )  # fmt: skip
    if folder is not None and world.is_main:
        result.save(folder / "certificates.json")
    return result


def _unlike(x: Tensor, threat: ThreatModel) -> Tensor:
    """An input, one at the end of its set, and one that differs in every number, frozen ones too. (1, ...) -> (3, ...)."""
    sets = threat.around(x)
    return torch.cat([x, torch.where(sets.upper > x, sets.upper, sets.lower), x + 1 + x.abs()])


def _left(begun: float, done: int, left: Tensor, batch_size: int) -> float:
    """How many seconds are left."""
    spent = min((done + 1) * batch_size, len(left))
    return (time.monotonic() - begun) / spent * (len(left) - spent)


def _find_methods(names: Sequence[str]) -> dict[str, Callable[[Undecided, int], Tensor]]:
    """The bounds of these names, the cheapest first."""
    for name in names:
        if name not in METHODS:
            raise unknown_name("bound", name, METHODS)
    if not names:
        raise UserError(f"methods is empty; there are {', '.join(METHODS)}")
    return {name: how for name, how in METHODS.items() if name in names}


def _certify_batch(
    model: nn.Module,
    graph: Graph,
    source: IndexedDataset,
    threat: ThreatModel,
    index: Tensor,
    methods: dict[str, Callable[[Undecided, int], Tensor]],
    steps: int,
    branches: int,
) -> dict[str, Tensor]:
    """Certify some examples; returns the columns of their records."""
    x, y = fetch_for(model, source, index)
    y = check_inputs(x, y, threat, source.classes)
    logits = model(x).double()
    predicted, own = logits.argmax(1), logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :-1]
    margin = (own - logits.gather(1, others[:, :1])).squeeze(1)
    sets = threat.around(x)
    region = Region(sets)
    intervals = interval_bounds(graph, region)
    _check_inside(logits, *intervals.intervals[graph.output])
    bound = torch.full_like(others, -torch.inf, dtype=torch.float64)
    proof = torch.full_like(y, -1)
    some, rows = Undecided(graph, region, others, y, intervals, model, sets, branches), torch.arange(len(y), device=y.device)
    keep = (margin > 0).nonzero().squeeze(1)
    for number, how in enumerate(methods.values()):
        if not len(keep):
            break
        some, rows = some.index_select(keep), rows[keep]
        bound[rows] = torch.maximum(bound[rows], how(some, steps))
        proved = bound[rows].amin(1) > 0
        proof[rows[proved]] = number
        keep = (~proved).nonzero().squeeze(1)
    tried = torch.where(margin > 0, bound.amin(1), torch.nan)
    return {"label": y, "predicted": predicted, "margin": margin, "bound": tried, "proof": proof}


def _check_inside(logits: Tensor, low: Tensor, high: Tensor) -> None:
    """Refuse a model whose answer is not where the graph that was read of it says."""
    if bool(((logits < low) | (logits > high) | ~logits.isfinite()).any()):
        raise UserError(
            "the model does not compute what was read of it: it is random, depends on the values of its inputs in a way that "
            "cannot be followed, or computes in lower precision"
        )
