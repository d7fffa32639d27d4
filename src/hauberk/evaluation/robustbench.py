"""RobustBench's interface to an evaluation: a network by its data set and norm, clean and robust accuracy back."""

from pathlib import Path
from typing import Any, Literal

from torch import nn

from hauberk.core.arguments import checked
from hauberk.core.errors import UserError
from hauberk.core.progress import warn
from hauberk.data import DATASETS, as_dataset, load_data, standard_subset
from hauberk.evaluation.evaluate import evaluate
from hauberk.threat import ThreatModel
from hauberk.threat.model import make_threat

_EPS = {("cifar10", "L2"): 0.5}  # of RobustBench's leaderboards, beside those in L∞ that our data sets have


@checked
def benchmark(
    model: nn.Module,
    n_examples: int = 10_000,
    dataset: Any = "cifar10",
    threat_model: str = "Linf",
    *,
    eps: float | str | None = None,
    batch_size: int = 256,
    data_dir: str | Path = "data",
    subset: Literal["first", "standard"] = "first",
    suite: str = "standard",
    seed: int = 0,
    out: str | Path | None = None,
) -> tuple[float, float]:
    """Measure clean accuracy and robust accuracy by AutoAttack, as ``robustbench.benchmark`` does (Croce et al. 2021).

    Names of arguments and order are theirs. The model stays on its device, doubts about the number are warnings on stderr, and
    :func:`hauberk.evaluate` says more. A network of their model zoo is ``hb.load("Zhang2019Theoretically.pt", model=net)``,
    where ``net`` is of its own class, or a wide ResNet of ours in TRADES' layout.

    Args:
        model: classifier from inputs (B, ...) in [0, 1] to logits (B, C); unchanged afterwards.
        n_examples: of the test set; all where there are fewer.
        dataset: the name of a data set of images, of which the test set is read; or whatever
            :func:`hauberk.data.as_dataset` takes, with ``eps``.
        threat_model: "Linf", "L2" or "L1".
        eps: radius; None for that of the leaderboard.
        batch_size: examples at a time.
        data_dir: folder of the data set's files.
        subset: "first": the first examples, as RobustBench takes them of CIFAR-10 and -100; "standard":
            :func:`hauberk.data.standard_subset`, for large data sets. Their 5,000 images of ImageNet are neither, but a
            shuffle by torch's generator of the files in alphabetical order.
        suite: what attacks, as for :func:`hauberk.evaluate`.
        seed: of all random draws.
        out: folder to keep verdicts in, to go on there.

    Returns:
        Clean accuracy and robust accuracy on these examples, fractions.

    Raises:
        UserError: as :func:`hauberk.evaluate`; for a threat model without a norm, and a radius that nobody has set.
    """
    if threat_model.startswith("corruptions"):
        raise UserError("robustness to corruptions is no question of attacks; threat_model is Linf, L2 or L1")
    if n_examples < 1:
        raise UserError(f"n_examples must be at least 1, got {n_examples}")
    source = load_data(dataset, "test", data_dir) if isinstance(dataset, str) else as_dataset(dataset)
    n = min(n_examples, len(source))
    chosen = standard_subset(source, n) if subset == "standard" else source
    threat = _threat(dataset, threat_model, eps)
    result = evaluate(model, chosen, threat=threat, suite=suite, n=n, batch_size=batch_size, seed=seed, out=out, quiet=True)
    for doubt in result.warnings:  # which two numbers cannot say
        warn(str(doubt))
    return result.clean_accuracy, result.robust_accuracy


def _threat(dataset: Any, norm: str, eps: float | str | None) -> ThreatModel:
    """The ball of the leaderboard, or of a radius that is given."""
    name = dataset if isinstance(dataset, str) else "data from Python"
    if eps is None and norm == "Linf" and name in DATASETS:
        eps = DATASETS[name].eps
    eps = _EPS.get((name, norm), "") if eps is None else eps
    if eps == "":
        raise UserError(f"give eps: there is no usual radius of {name} in {norm}")
    return make_threat(norm, eps)
