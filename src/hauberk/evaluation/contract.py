"""What a model promises an attack: probed before an evaluation, on a few clean inputs."""

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.attacks.checks import are_probabilities
from hauberk.attacks.frozen_model import ModelQueries
from hauberk.evaluation.diagnostics import Diagnostic, check

_REPEATS = 5
_SPREAD = 1e-4  # of normalised logits; AutoAttack's own threshold
_BATCH_SPREAD = 1e-2  # rounding stays well below, batch statistics well above


def contract(view: nn.Module, x: Tensor, draws: int) -> list[Diagnostic]:
    """Probe a model in evaluation mode, lent by ``frozen_model``.

    Args:
        view: the model.
        x: some clean inputs, (b, ...).
        draws: passes that the evaluation averages over; more than 1 is for random models.
    """
    once = ModelQueries(view)
    logits = once.logits(x)
    spread = max(_difference(logits, once.logits(x)) for _ in range(_REPEATS - 1))
    found = [
        check(
            "logits",
            "the outputs are probabilities" if are_probabilities(logits) else "the outputs are no probabilities",
            "invalid" if are_probabilities(logits) else "ok",
            "return logits (remove the softmax): gradients vanish where probabilities saturate",
        ),
        _determinism(spread, draws),
        _modes(view),
        _side_effects(view, x),
        _optimisation(view, x),
    ]
    if spread <= _SPREAD:
        found.append(_batch(once, x, logits))
    return found


def _difference(one: Tensor, other: Tensor) -> float:
    """Largest L2 distance of the logits of an example, each divided by its length."""
    one, other = one.double(), other.double()
    scaled = (a / a.norm(dim=1, keepdim=True).clamp_min(1e-30) for a in (one, other))
    return float((next(scaled) - next(scaled)).norm(dim=1).max())


def _determinism(spread: float, draws: int) -> Diagnostic:
    measured = f"{_REPEATS} passes over the same inputs differ by up to {spread:.2g} (normalised logits)"
    if draws > 1:
        advice = "the model is deterministic: suite 'standard' is stronger, at a fraction of the cost"
        return check("deterministic", measured, "warning" if spread <= _SPREAD else "ok", advice)
    advice = "the model is random: this number is too high; evaluate with suite='rand', which averages over passes"
    return check("deterministic", measured, "invalid" if spread > _SPREAD else "ok", advice)


def _modes(view: nn.Module) -> Diagnostic:
    training = [type(module).__name__ for module in view.modules() if module.training]
    return check(
        "evaluation-mode",
        f"{len(training)} modules stay in training mode" + (f" ({training[0]}, ...)" if training else ""),
        "warning" if training else "ok",
        "a module ignores eval(): its batch statistics or dropout make the number depend on chance",
    )


def _side_effects(view: nn.Module, x: Tensor) -> Diagnostic:
    before = [value.clone() for value in (*view.parameters(), *view.buffers())]
    ModelQueries(view).logits(x)
    after = [*view.parameters(), *view.buffers()]
    changed = sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    return check(
        "side-effects",
        f"a forward pass in evaluation mode changes {changed} parameters or buffers",
        "invalid" if changed else "ok",
        "the model changes while it is looked at, so later answers depend on earlier questions",
    )


def _optimisation(view: nn.Module, x: Tensor) -> Diagnostic:
    calls = _autograd_calls(view, x[:2])
    return check(
        "no-optimisation-in-forward",
        f"a forward pass takes gradients {calls} times" if calls else "a forward pass takes no gradients",
        "warning" if calls else "ok",
        "the model optimises while it predicts: gradients through that are unreliable; attack it with one made for it",
    )


def _autograd_calls(view: nn.Module, x: Tensor) -> int:
    """Count calls into torch.autograd during one forward pass."""
    calls = 0
    home = torch.autograd.__file__

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        if event == "call" and frame.f_code.co_filename == home and frame.f_code.co_name in ("grad", "backward"):
            calls += 1

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        with torch.enable_grad():
            ModelQueries(view).forward(x.clone().requires_grad_())
    finally:
        sys.setprofile(before)
    return calls


def _batch(once: ModelQueries, x: Tensor, logits: Tensor) -> Diagnostic:
    alone = torch.cat([once.logits(x[i : i + 1]) for i in range(min(len(x), 4))])
    spread = _difference(alone, logits[: len(alone)])
    return check(
        "independent-of-the-batch",
        f"inputs alone and in a batch differ by up to {spread:.2g} (normalised logits)",
        "invalid" if spread > _BATCH_SPREAD else "ok",
        "predictions depend on what else is in the batch: use running statistics",
    )
