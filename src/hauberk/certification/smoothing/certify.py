"""Randomised smoothing (Cohen, Rosenfeld and Kolter 2019): CERTIFY over a data set, PREDICT for a batch."""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.attacks import ModelQueries, frozen_model
from hauberk.attacks.model.check_model import check_model, check_module
from hauberk.certification.records import CertificateRecords
from hauberk.certification.smoothing.certificates import ABSTAINED, SmoothedCertificates
from hauberk.certification.smoothing.noise import noisy_inputs, sampling_error
from hauberk.core.arguments import checked
from hauberk.core.device import send
from hauberk.core.distributed import get_world
from hauberk.core.errors import UserError
from hauberk.core.io import machine, versions
from hauberk.core.numerics import deterministic_mode, float32_mode
from hauberk.core.progress import ProgressBar
from hauberk.core.random import ExampleRng, content_ids
from hauberk.data import Subset, as_dataset, data_digest, fetch_for
from hauberk.models import model_code, model_id

SmoothingPrecision: TypeAlias = Literal["model", "fp32", "tf32"]

_COLUMNS = {"label": np.int64, "selected": np.int64, "count": np.int64, "error": np.float64}
_SELECT, _ESTIMATE, _PREDICT = 1, 2, 3  # stages of the random draws
_FIRST = 16  # examples that are looked at before anything else


@checked
def certify_smoothed(
    model: nn.Module,
    test_set: Any,
    *,
    sigma: float,
    draws: int = 100_000,
    selection_draws: int = 100,
    alpha: float = 0.001,
    n: int | None = None,
    batch_size: int = 1000,
    seed: int = 0,
    precision: SmoothingPrecision = "fp32",
    out: str | Path | None = None,
    quiet: bool = False,
) -> SmoothedCertificates:
    """Certify, in L2, the smoothed classifier that a network makes: ``g(x) = argmax_c P(f(x + σn) = c)``, n ~ N(0, I).

    This is CERTIFY of Cohen, Rosenfeld and Kolter (2019). The class c that is most frequent in n₀ noisy copies of an example is
    chosen; of n others k give it; p_A is Clopper and Pearson's lower bound, of confidence 1 - α, for its probability. Where
    p_A > 1/2, g gives c at every input nearer than ``R = σ Φ⁻¹(p_A)``; otherwise it abstains. **What is certified is g**, which
    has to be used as g is (:func:`predict_smoothed`), and not the network f alone. A network is trained for that by the methods
    "gaussian" and "smoothadv".

    Noisy inputs lie outside the box, too, and are passed to the network as they are, as in the paper. They are rounded to a
    grid of σ/128 or finer, so that floating point tells the network nothing of the input that the theorem forbids; what the
    rounding of the draws may change is taken off p_A (see ``hauberk.certification.smoothing.noise``). An output that is not
    finite counts for no class.

    The draws are keyed by (seed, content of the example, number of the draw): counts do not depend on order, batch size,
    processes or interruptions, but for the rounding of the network's own sums. Within a ``torch.distributed`` process group
    the processes share the examples and all return the same result.

    Args:
        model: classifier from inputs (B, ...) to logits (B, C), on the device to use, in evaluation mode; unchanged
            afterwards. Normalisation belongs inside, so that σ is in the units of the data.
        test_set: a pair (x, y) of arrays, a map-style ``Dataset``, or what ``hauberk.data.load_data`` returns.
        sigma: σ.
        draws: n, of each example; the largest radius is ``σ Φ⁻¹(α^(1/n))``, 3.8 σ for 100,000.
        selection_draws: n₀, of each example.
        alpha: with what probability, over the noise, a certificate may be wrong; each of them.
        n: certify the first n examples only.
        batch_size: noisy inputs in a pass; all passes have this one shape.
        seed: of all draws.
        precision: "fp32": the network computes in true float32; "tf32": it may use TF32 on CUDA; "model": under torch's
            switches as they are. The network is what is computed then.
        out: folder to keep counts in as they come; called again with the same arguments, it goes on there. Another ``alpha``
            needs no new draws.
        quiet: print nothing.

    Returns:
        SmoothedCertificates: radius and class of each example, and the accuracy that is certified at any radius.

    Raises:
        UserError: for data and model that do not fit together, settings that make no sense, or a folder in use.
    """
    check_module(model)
    source, world, folder = as_dataset(test_set), get_world(), None if out is None else Path(out)
    count = len(source) if n is None else n
    if not 1 <= count <= len(source):
        raise UserError(f"n must be 1 to {len(source)}, got {count}")
    _check_settings(sigma, alpha, draws=draws, selection_draws=selection_draws, batch_size=batch_size)
    first_x, first_y = fetch_for(model, source, torch.arange(min(count, _FIRST)))
    outputs = check_model(model, _checked_inputs(first_x), first_y, source.classes, probabilities=True)
    digest = data_digest(Subset(source, torch.arange(count)))
    plan = {
        "certificates": "smoothing", "n": count, "sigma": sigma, "draws": draws, "selection_draws": selection_draws,
        "seed": seed, "precision": precision, "data": source.name, "data_digest": digest, "model_id": model_id(model),
        "model_code": model_code(model), **{name: versions()[name] for name in ("hauberk", "torch")},
    }  # fmt: skip
    begun = time.monotonic()
    with (
        closing(CertificateRecords(folder, plan, _COLUMNS, world)) as records,
        ProgressBar("certify", 1000, quiet=quiet or not world.is_main) as display,
        deterministic_mode(first_x.device, algorithms=False),
        float32_mode(precision),
        frozen_model(model) as view,
    ):
        torch.manual_seed(seed)  # for random models; frozen_model puts the caller's generator back
        sampler = _Sampler(ModelQueries(view), outputs, sigma, min(batch_size, draws))
        mine = world.local_shard(np.flatnonzero(~records.known).tolist())
        group = max(1, sampler.rows // selection_draws)  # so many examples choose their class in one pass
        whole, done = len(mine) * (draws + selection_draws), 0

        def show() -> None:
            part = min(sampler.queries.forwards / whole, 1.0)
            display.reach(part, f"{done} of {len(mine)} examples")

        try:
            for start in range(0, len(mine), group):
                some = mine[start : start + group]
                x, y = fetch_for(view, source, torch.tensor(some))
                x = _checked_inputs(x)
                ids = send(content_ids(x), x.device)
                chosen = sampler.counts(x, ExampleRng(seed, ids, _SELECT), selection_draws, show).argmax(1)
                error = sampling_error(x, sigma).cpu().numpy()
                rng = ExampleRng(seed, ids, _ESTIMATE)
                for k, example in enumerate(some):
                    row = torch.tensor([k], device=x.device)
                    seen = sampler.counts(x[row], rng.index_select(row), draws, show)[0]
                    found = {"label": y[k].item(), "selected": chosen[k], "count": seen[chosen[k]], "error": error[k]}
                    records.write(np.array([example]), **{name: np.array([value]) for name, value in found.items()})
                    done += 1
        finally:
            records.write_cost(time.monotonic() - begun)
        records.share()
    columns = records.columns
    if not ((columns["count"] >= 0) & (columns["count"] <= draws) & (columns["error"] >= 0)).all():
        raise UserError(f"the counts in {folder} cannot be of {draws} draws; choose another folder")
    result = SmoothedCertificates(
        sigma, draws, selection_draws, alpha, columns["label"].copy(), columns["selected"].copy(), columns["count"].copy(),
        columns["error"].copy(),
        provenance={
            "seed": seed, "batch_size": batch_size, "precision": precision, "data": source.name,
            "subset": "all" if count == len(source) else f"first {count} of {len(source)}",
            "passes": {"forwards": count * (draws + selection_draws), "backwards": 0}, "seconds": records.seconds,
            "processes": world.size, "model_id": plan["model_id"], "versions": versions(), "machine": machine(first_x.device),
        },
    )  # fmt: skip
    if folder is not None and world.is_main:
        result.save(folder / "smoothing.json")
    return result


@checked
def predict_smoothed(
    model: nn.Module,
    x: Tensor,
    *,
    sigma: float,
    draws: int = 1000,
    alpha: float = 0.001,
    batch_size: int = 1000,
    seed: int = 0,
) -> Tensor:
    """Classify inputs by the smoothed classifier, or abstain: PREDICT of Cohen, Rosenfeld and Kolter (2019).

    The two classes that are most frequent among the n noisy copies of an input are compared by a two-sided binomial test; the
    first is the answer where they differ at level α. With a probability of at least 1 - α an answer is the smoothed
    classifier's, which is the same everywhere within the radius that :func:`certify_smoothed` finds.

    Args:
        model: classifier from inputs (B, ...) to logits (B, C); unchanged afterwards.
        x: inputs, (B, ...), on the device of the model.
        sigma: σ, as it was certified with.
        draws: n, of each input.
        alpha: α.
        batch_size: noisy inputs in a pass.
        seed: of the draws, which are keyed by the content of each input.

    Returns:
        Classes, (B,) int64 on the device of ``x``; -1 where it abstains.

    Raises:
        UserError: for settings that make no sense, or a model that cannot take such inputs.
    """
    from scipy.special import bdtrc  # slow to import, seldom needed

    check_module(model)
    _check_settings(sigma, alpha, draws=draws, batch_size=batch_size)
    x = _checked_inputs(x)
    outputs = check_model(model, x[:_FIRST], x.new_zeros(len(x[:_FIRST]), dtype=torch.int64), probabilities=True)
    with float32_mode("fp32"), frozen_model(model) as view:
        torch.manual_seed(seed)
        sampler = _Sampler(ModelQueries(view), outputs, sigma, min(batch_size, draws * len(x)))
        counts = sampler.counts(x, ExampleRng(seed, send(content_ids(x), x.device), _PREDICT), draws)
    ranked = np.argsort(-counts, axis=1, kind="stable")
    first, second = (np.take_along_axis(counts, ranked[:, k : k + 1], 1)[:, 0] for k in (0, 1))
    # Two-sided with probability 1/2: twice the chance of so many, or more, of both; never above 1.
    unequal = np.minimum(2 * bdtrc(first - 1, np.maximum(first + second, 1), 0.5), 1.0) <= alpha
    return torch.from_numpy(np.where(unequal & (first > 0), ranked[:, 0], ABSTAINED)).to(x.device)


class _Sampler:
    """Counts the classes that a network gives to noisy copies of inputs, in passes of one shape.

    Args:
        queries: the network, lent by ``frozen_model``.
        outputs: number of classes.
        sigma: σ.
        rows: noisy inputs in a pass.
    """

    def __init__(self, queries: ModelQueries, outputs: int, sigma: float, rows: int):
        self.queries, self.outputs, self.sigma, self.rows = queries, outputs, sigma, rows

    def counts(self, x: Tensor, rng: ExampleRng, draws: int, show: Callable[[], None] = lambda: None) -> np.ndarray:
        """Return how many of so many noisy copies of each input (B, ...) get each class, (B, C) int64; ``show`` each pass."""
        width = self.outputs + 1  # the last is for outputs that are not finite
        total = len(x) * draws
        counts = torch.zeros(len(x) * width + 1, dtype=torch.int64, device=x.device)  # the last is for rows that fill a pass
        for start in range(0, total, self.rows):
            row = torch.arange(start, start + self.rows, device=x.device)
            example, draw = (row % total) // draws, (row % total) % draws
            noisy = noisy_inputs(x[example], self.sigma, rng.index_select(example), draw)
            logits = self.queries.logits(noisy.to(x.dtype))
            given = torch.where(logits.isfinite().all(1), logits.argmax(1), self.outputs)
            place = torch.where(row < total, example * width + given, len(x) * width)
            counts.index_add_(0, place, torch.ones_like(place))
            show()
        found: np.ndarray = counts[:-1].view(len(x), width)[:, : self.outputs].cpu().numpy()
        return found


def _checked_inputs(x: Tensor) -> Tensor:
    """Return inputs (B, ...) without a graph, or raise a UserError for what are none."""
    if x.ndim < 2 or not len(x) or not x.is_floating_point():
        raise UserError(f"x must be inputs of shape (B, ...), floating, got {tuple(x.shape)}, {x.dtype}")
    if not bool(x.isfinite().all()):
        raise UserError("the inputs have NaN or infinite values")
    return x.detach()


def _check_settings(sigma: float, alpha: float, **counts: int) -> None:
    if not sigma > 0:
        raise UserError(f"sigma must be positive, got {sigma}")
    if not 0 < alpha < 1:
        raise UserError(f"alpha must be between 0 and 1, got {alpha}")
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{name} must be positive, got {value}")
