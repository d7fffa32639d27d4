"""hauberk certify."""

import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from hauberk.cli.options import command, parse, say
from hauberk.cli.target import TargetOptions, find_target, load_target
from hauberk.core.errors import UserError
from hauberk.experiments.options import digest

_CHANGES_NO_NUMBER = ("threads", "device", "batch_size", "out", "json", "quiet")


@dataclass(frozen=True)
class Certify(TargetOptions):
    """Prove for as many examples of the test set as possible that no attack within the threat model can succeed.

    Example: hauberk certify runs/mnist-trades --eps 0.05

    What is certified bounds robust accuracy from below, what "hauberk evaluate" finds from above; between the two is undecided.
    Data set, its folder, and threat model are those of the training unless others are given.
    """

    methods: tuple[Literal["ibp", "crown-ibp", "crown", "alpha-crown", "branch-and-bound"], ...] = (
        "ibp",
        "crown-ibp",
        "crown",
        "alpha-crown",
    )
    """Bounds to try, the cheapest first: intervals; linear relaxation between intervals, between bounds of its own, and with
    optimised slopes; branch and bound, for tables and small networks."""
    steps: int = 20
    """Steps of the optimisation of slopes."""
    branches: int = 1000
    """Number of parts that branch and bound may cut each example and class into."""
    n: Annotated[int | None, tyro.conf.arg(aliases=("--limit",))] = None
    """Number of examples to certify, the first ones; by default all. Under torchrun write --limit, as it takes --n itself."""
    smoothing: float = 0.0
    """σ of Gaussian noise: certify the smoothed classifier, the vote over noisy copies, instead of the network; in L2, at every
    radius, each example with probability 1 - α."""
    draws: int = 100_000
    """Noisy copies of each example, for --smoothing."""
    alpha: float = 0.001
    """α, for --smoothing."""
    seed: int = 0
    """Seed of these copies."""
    batch_size: int | None = None
    """Number of examples at a time, or of noisy copies; by default 32, or 1000."""
    threads: int = 0
    """Number of CPU threads; 0 leaves torch's choice."""
    device: str = "auto"
    """Device to run on: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1", ..."""
    out: Path | None = None
    """Folder for verdicts, as they come, and result; by default certificates/ beside the model. Called again with the same
    options, what was interrupted goes on there."""
    json: bool = False
    """Print the result as JSON."""
    quiet: bool = False
    """Print no progress."""


def certify(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Certify, "certify", arguments)
    import torch
    from rich.console import Console

    from hauberk.certification.certify import certify as certify_model
    from hauberk.certification.result import Certificates
    from hauberk.certification.smoothing import SmoothedCertificates, certify_smoothed
    from hauberk.core.distributed import init_distributed
    from hauberk.core.io import as_json
    from hauberk.threat import only_threat
    from hauberk.training import pick_device

    if options.threads:
        torch.set_num_threads(options.threads)
    if options.smoothing and (options.threat.norm or options.threat.eps):
        raise UserError("--smoothing certifies every radius in L2 at once; leave --norm and --eps out")
    target = find_target(options)
    out = options.out or _folder(options)
    given: dict[str, Any] = {"n": options.n, "out": out, "quiet": options.quiet or options.json}
    given |= {} if options.batch_size is None else {"batch_size": options.batch_size}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    with init_distributed(timeout=timedelta(days=1)) as world:  # their parts may take times that differ by hours
        model = load_target(options, target, pick_device(options.device))
        try:
            result: Certificates | SmoothedCertificates
            if options.smoothing:
                how = {name: getattr(options, name) for name in ("draws", "alpha", "seed")}
                result = certify_smoothed(model, target.test, sigma=options.smoothing, **how, **given)
            else:
                how = {name: getattr(options, name) for name in ("methods", "steps", "branches")}
                result = certify_model(
                    model, target.test, threat=only_threat(target.threat, "certificates are"), **how, **given
                )
        except KeyboardInterrupt:
            if world.is_main:
                say("Stopped; the same command goes on from there", file=sys.stderr)
            return 1
    if not world.is_main:
        return 0
    if options.json:
        print(as_json(result.to_dict()))
        return 0
    if isinstance(result, SmoothedCertificates):
        Console().print(result.table())
    say(f"{result}\nWritten to {out}. Next: {command('evaluate', options.target)}")
    return 0


def _folder(options: Certify) -> Path:
    """Where certificates with these options are kept: one folder for each combination that gives other numbers."""
    beside = options.target if options.target.is_dir() else options.target.parent
    told = {key: value for key, value in asdict(options).items() if key not in _CHANGES_NO_NUMBER}
    told |= {"target": options.target.name, "data": options.data.name}
    return beside / "certificates" / digest(told)
