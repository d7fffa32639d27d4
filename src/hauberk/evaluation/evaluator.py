"""The evaluator: attacks every example, checks every claimed success again, and counts."""

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.attacks.ascent import ascend
from hauberk.attacks.losses import fooled
from hauberk.attacks.presets import get_preset
from hauberk.attacks.steps import Ascent
from hauberk.attacks.view import attack_view
from hauberk.checks import check_inputs, check_logits, check_model
from hauberk.console import Display
from hauberk.data import Source, as_source, fetch_for
from hauberk.errors import UserError
from hauberk.evaluation.diagnostics import diagnose
from hauberk.evaluation.result import Evaluation
from hauberk.evaluation.suites import suite_attacks
from hauberk.noise import Noise
from hauberk.provenance import machine, versions
from hauberk.threat import ThreatModel


def evaluate(
    model: nn.Module,
    test_set: Any,
    *,
    threat: ThreatModel,
    suite: str = "quick",
    attacks: Sequence[str] = (),
    n: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    detects: bool = False,
    quiet: bool = False,
) -> Evaluation:
    """Measure clean and robust accuracy.

    Every attack runs on every example that is classified right, each from the clean input. A success counts only if the
    point is inside ball and box and the model, in float32 and evaluation mode, misclassifies it again.

    Args:
        model: classifier from inputs (B, ...) in the box to logits (B, C), on the device to use; unchanged afterwards.
        test_set: a pair (x, y) of arrays, a map-style ``Dataset``, or what ``hauberk.data.load_data`` returns.
        threat: what the adversary may do.
        suite: "quick": FGSM, PGD-20, CW-30 and PGD-100, a cheap upper bound.
        attacks: names of attacks (``hauberk.attacks.PRESETS``) instead of a suite.
        n: evaluate the first n examples only.
        batch_size: examples at a time; the random draws of each example do not depend on it.
        seed: of the random starts.
        detects: the model's last output is a class of adversarial inputs. Attacks then try to be misclassified without
            being recognised, robust accuracy is with rejection (an adversarial input does no harm if it gets its label or is
            recognised), and ``detection`` says how many adversarial inputs that do not try to hide are recognised, and how
            many clean inputs are taken for adversarial.
        quiet: print no progress.

    Raises:
        UserError: for data, model and threat model that do not fit together, unknown names, probabilities for logits.
    """
    names = suite_attacks(suite, attacks)
    source = as_source(test_set)
    count = len(source) if n is None else n
    if not 1 <= count <= len(source):
        raise UserError(f"n must be 1 to {len(source)}, got {n}")
    if batch_size < 1:
        raise UserError(f"batch_size must be positive, got {batch_size}")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    first_x, first_y = fetch_for(model, source, torch.arange(min(count, 16)))
    check_inputs(first_x, first_y, threat, source.classes)
    needed = None if source.classes is None else source.classes + detects
    check_model(model, first_x, first_y, needed)
    begun = time.perf_counter()
    tally = _Tally(names, needed, detects)
    with Display("evaluate", count, quiet=quiet) as display:
        for start in range(0, count, batch_size):
            index = torch.arange(start, min(start + batch_size, count))
            tally.add(model, source, index, threat, seed)
            display.advance(len(index), steps=len(index))
    return tally.result(
        threat=str(threat),
        suite="custom" if attacks else suite,
        provenance={
            "seed": seed,
            "batch_size": batch_size,
            "data": source.name,
            "subset": "all" if count == len(source) else f"first {count} of {len(source)}",
            "attacks": {name: get_preset(name).source for name in names},
            "passes": tally.passes,
            "seconds": round(time.perf_counter() - begun, 3),
            "dtype": str(first_x.dtype),
            "versions": versions(),
            "machine": machine(device),
        },
    )


@dataclass
class _Tally:
    """Verdicts so far."""

    names: tuple[str, ...]
    outputs: int | None
    detects: bool
    y: list[Tensor] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)
    broken: dict[str, list[Tensor]] = field(default_factory=dict)
    passes: dict[str, float] = field(default_factory=lambda: {"forwards": 0, "backwards": 0})
    fragile: int = 0
    spread: float = 0.0
    classes: int = 0
    alarms: int = 0
    attacked: int = 0
    recognised: int = 0

    def add(self, model: nn.Module, source: Source, index: Tensor, threat: ThreatModel, seed: int) -> None:
        """Attack one batch with every attack."""
        x, y = fetch_for(model, source, index)
        check_inputs(x, y, threat, source.classes)
        with attack_view(model) as view, torch.no_grad():
            logits = view(x)
            check_logits(logits, y, self.outputs)
            if not self.y:  # two passes in one view, where a random model draws new numbers
                self.spread = float((logits - view(x)).abs().max())
                self.classes = logits.shape[1]
        self.passes["forwards"] += len(x)
        right = logits.argmax(1) == y
        if self.detects:
            self.alarms += int((logits.argmax(1) == logits.shape[1] - 1).sum())
            self._detect(model, x[right], y[right], threat, Noise(seed, index.to(x.device)[right], _stage("detection")))
        self.y.append(y.cpu())
        self.right.append(right.cpu())
        alive = right.nonzero().squeeze(1)
        for name in self.names:
            hits = torch.zeros(len(x), dtype=torch.bool)
            if len(alive):
                ids = index.to(x.device)[alive]
                hits[alive.cpu()] = self._attack(name, model, x[alive], y[alive], threat, Noise(seed, ids, _stage(name))).cpu()
            self.broken.setdefault(name, []).append(hits)

    def _attack(self, name: str, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Tensor:
        """Return (B,) bool: broken, checked again on the untouched model."""
        preset = get_preset(name)
        found = (preset.evading() if self.detects else preset).run(model, x, y, threat, noise)
        self.passes["forwards"] += found.forwards * len(x)
        self.passes["backwards"] += found.backwards * len(x)
        claimed = found.success.nonzero().squeeze(1)
        broken = torch.zeros_like(found.success)
        if len(claimed):
            points = found.x_adv[claimed]
            with attack_view(model) as view, torch.no_grad():
                logits = view(points)
            wrong = fooled(logits, y[claimed], evading=self.detects)
            self.passes["forwards"] += len(claimed)
            broken[claimed] = wrong & threat.contains(points, x[claimed])
            self.fragile += int((~broken[claimed]).sum())
        return broken

    def _detect(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> None:
        """Count how many adversarial inputs are recognised when they only try to be misclassified."""
        if len(x) == 0:
            return
        found = ascend(model, x, y, threat, Ascent(20, "eps/4", loss="cw"), keep="best", seed=noise)
        assert found.logits is not None  # the best point was looked at
        self.attacked += len(x)
        self.recognised += int((found.logits.argmax(1) == found.logits.shape[1] - 1).sum())

    def result(self, threat: str, suite: str, provenance: dict[str, Any]) -> Evaluation:
        """Count."""
        y, right = torch.cat(self.y), torch.cat(self.right)
        broken = {name: torch.cat(hits) for name, hits in self.broken.items()}
        standing = right & ~torch.stack(list(broken.values())).any(0)
        broken_by: list[str | None] = [None if ok else "clean" for ok in right.tolist()]
        for name in reversed(self.names):  # the cheapest is written last
            for i in broken[name].nonzero().squeeze(1).tolist():
                broken_by[i] = name
        n = len(y)
        return Evaluation(
            threat=threat,
            suite=suite,
            n=n,
            clean_accuracy=int(right.sum()) / n,
            robust_accuracy=int(standing.sum()) / n,
            by_attack={name: int((right & ~hits).sum()) / n for name, hits in broken.items()},
            by_class={int(c): int(standing[y == c].sum()) / int((y == c).sum()) for c in y.unique()},
            broken_by=broken_by,
            detection={
                "detection_rate": self.recognised / max(self.attacked, 1),
                "false_alarms": self.alarms / n,
            }
            if self.detects
            else None,
            diagnostics=diagnose(right, broken, self.fragile, self.spread, self.classes),
            provenance=provenance,
        )


def _stage(name: str) -> int:
    """Give each attack its own random draws, whatever the others are."""
    return zlib.crc32(name.encode())
