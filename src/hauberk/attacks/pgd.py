"""PGD and its kin: projected gradient ascent on a loss of the logits (Madry et al. 2018)."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.attacks.as_function import as_function
from hauberk.attacks.base import GOAL, Attack, MaximizingAttack
from hauberk.attacks.model.frozen_model import Mode
from hauberk.attacks.model.queries import ModelQueries
from hauberk.attacks.pgd_state import Looks, PGDState
from hauberk.attacks.state import AttackInputs, initial_state, where_rows
from hauberk.attacks.step_size import RelativeStep, StepSize, parse_step_size
from hauberk.core.errors import UserError
from hauberk.objectives.functional import AttackLoss, LossLike
from hauberk.threat import Norm, ThreatModel, expand_to
from hauberk.threat.model import check_fits

NORMAL_START = 0.001  # of TRADES' public code
LINE_SEARCH = (0.25, 0.5, 1.0, 2.0, 4.0)
NESTEROV = 0.75

_NOISE_TAG = 100

Start: TypeAlias = Literal["uniform", "normal", "normal-unprojected", "clean"] | Tensor


@dataclass(frozen=True, eq=False)
class PGD(MaximizingAttack[PGDState]):
    """Projected gradient ascent, ``x^{t+1} = Π_{S(x)}( x^t + α · steepest(∇_x ℓ(f(x^t), y)) )``; in L∞ the sign.

    Each step is one forward and one backward to the input; one more forward looks at the last point.

    Attributes:
        steps: K, number of gradient steps.
        step_size: α in the units of the input: a number, a fraction string ("2/255"), a part of ε ("eps/4", "2*eps",
            ``RelativeStep(1, 4)``), or one value per feature.
        start: where to begin: "uniform" in the ball, "normal" (x + 0.001·N(0, 1), projected), "normal-unprojected" (the same,
            which may leave the box: TRADES', MART's and MAIL's public code), "clean" (x itself), or a tensor (B, ...), used
            exactly as given. A start outside serves for the first gradient and nothing else.
        loss: what to maximise: "ce", "kl" (from the clean prediction), "lse" (squared distance from it), "cw" (margin), "dlr",
            "slm" (soft logit margin), "evade" (label and class of adversarial inputs together), "...-targeted" of the most
            likely wrong classes in turn, or a function of logits (B, C) and labels (B,) that returns (B,).
        confidence: κ of the "cw" loss.
        restarts: how many independent starts; the best point of all is kept.
        momentum: μ of the accumulated gradient (Dong et al. 2018); 0 for plain PGD.
        mode: how the model behaves meanwhile: "eval", "train-frozen" or "train", see ``frozen_model``.
        return_last: return the last iterate instead of the best point visited.
        evaluate_last: look at the last iterate, at one forward; training, whose loss looks at it anyway, does without.
        tau: τ of friendly adversarial training (Zhang et al. 2020): before each step, an example that is misclassified and has
            been so τ times before stops where it is; None to take all K steps.
        step_noise: ω, standard deviation of Gaussian noise added to each step (FAT's public code: 0.001).
        nesterov: μ of Nesterov's look-ahead: the gradient is taken at ``Π(x^t + μ (x^t - x^{t-1}))``; 0 for none.
        step_size_factors: of a line search: those times α are tried at each step, the best by loss is taken; empty for none.
        targets: for a loss with a target, how many of the most likely wrong classes are targets in turn.
    """

    steps: int = 10
    step_size: StepSize = "eps/4"
    start: Start = "uniform"
    loss: LossLike = "ce"
    confidence: float = 0.0
    restarts: int = 1
    momentum: float = 0.0
    mode: Mode = "eval"
    return_last: bool = False
    evaluate_last: bool = True
    tau: int | None = None
    step_noise: float = 0.0
    nesterov: float = 0.0
    step_size_factors: tuple[float, ...] = ()
    targets: int = 9

    stops_at_success = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("momentum", "nesterov", "step_noise", "confidence"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        if any(factor <= 0 for factor in self.step_size_factors):
            raise UserError(f"step_size_factors must be positive, got {self.step_size_factors}")
        if self.restarts > 1 and not isinstance(self.start, str):
            raise UserError("restarts from a given start would all be the same; use a random start")
        if self.tau is not None and (self.tau < 0 or self.restarts > 1):
            raise UserError(f"tau must be 0 or more, with one start, got {self.tau} and {self.restarts}")
        if self.tau is not None and (self.momentum or self.nesterov or self.step_size_factors):
            raise UserError("tau goes with plain steps only, not with momentum, nesterov or a line search")
        if self.tau is not None and self.start == "normal-unprojected":
            raise UserError("a friendly attack may stop at its start, which must be inside: use the start 'normal'")
        if (self.tau is not None or not self.evaluate_last) and not self.return_last:
            raise UserError("a friendly attack, and one that does not look at its last point, needs return_last=True")
        _ = self._step_size

    @cached_property
    def _step_size(self) -> float | Tensor | RelativeStep:
        return parse_step_size(self.step_size)

    def with_steps_of(self, eps: float | Tensor) -> "PGD":
        """Return the attack with the step of an ε in place of one that is a part of it."""
        size = self._step_size
        return replace(self, step_size=size.of(eps)) if isinstance(size, RelativeStep) else self

    @property
    def needs_clean_logits(self) -> bool:  # type: ignore[override]
        """Whether the loss compares with the clean prediction, or aims at the most likely wrong classes."""
        return self.attack_loss.reference != "none"

    @property
    def check_every(self) -> int:  # type: ignore[override]
        """Friendly examples stop at any step."""
        return 4 if self.tau is None else 1

    @property
    def passes_per_step(self) -> int:  # type: ignore[override]
        """A forward and a backward, and what the line search looks at."""
        return 2 + len(self.step_size_factors)

    @property
    def max_steps(self) -> int:
        """Looks in a run."""
        return self.steps + self.evaluate_last

    def defined_in(self, norm: Norm) -> bool:
        """In all, L0 among them (Croce and Hein 2019)."""
        return True

    def aimed(self) -> "PGD":
        """Return the attack with a target, which is ``-CE(f(x), t)`` for cross-entropy; "cw" and "dlr" take none."""
        if self.loss != "ce" and self.attack_loss.reference != "target":
            raise UserError(f"the loss {self.loss!r} takes no target")
        return replace(self, loss="ce-targeted" if self.loss == "ce" else self.loss, targets=1)

    def adapted(
        self, threat: ThreatModel, n_classes: int, goal: AttackLoss = GOAL, surrogate: nn.Module | None = None
    ) -> tuple[Attack[Any], str]:
        """Return the attack with a loss that is defined for such a model, unless its settings are for training only."""
        if self.mode != "eval" or self.tau is not None or self.step_noise or isinstance(self.start, Tensor):
            raise UserError("these settings are for training; evaluation attacks in mode 'eval', from a start by name")
        return super().adapted(threat, n_classes, goal, surrogate)

    def init(self, inputs: AttackInputs) -> PGDState:
        """Draw the starts."""
        feasible, none = inputs.feasible, torch.zeros_like(inputs.run)
        if isinstance(self._step_size, Tensor):
            check_fits(self._step_size, feasible.x.shape[1:], "step_size")
        if isinstance(self.start, Tensor) and self.start.shape != feasible.x.shape:
            raise UserError(f"start must be of shape {tuple(feasible.x.shape)}, as the inputs, got {tuple(self.start.shape)}")
        if isinstance(self.start, Tensor):
            start = self.start.detach().clone().to(feasible.x)
        elif self.start == "uniform":
            start = feasible.random(inputs.rng, inputs.tag)
        elif self.start == "clean":
            start = feasible.x
        else:
            start = feasible.x + NORMAL_START * inputs.rng.normal(feasible.x, inputs.tag)
            start = feasible.project(start) if self.start == "normal" else start
        fields = initial_state(inputs, replaces_best=not self.return_last)
        looks = Looks(inputs.criterion) if inputs.in_step and self._sees_nothing else None
        return PGDState(
            **fields,
            reference=inputs.reference(self.attack_loss, self.targets),
            point=start,
            previous=start if self.nesterov else None,
            velocity=torch.zeros_like(start) if self.momentum else None,
            chances=None if self.tau is None else torch.full_like(none, self.tau),
            stopped=None if self.tau is None else torch.zeros_like(none, dtype=torch.bool),
            right=none if looks is None else fields["step"],  # nobody asks for it then
            moves=none if looks is None else fields["step"],
            lps=inputs.clean_logits,
            looks=looks,
        )

    @property
    def _sees_nothing(self) -> bool:
        """Whether no step depends on what others have seen, as training attacks."""
        once = self.restarts == 1 and self.attack_loss.reference != "target"
        return once and self.return_last and not self.evaluate_last and self.tau is None

    def finished(self, state: PGDState) -> Tensor | None:
        """Friendly examples that have stopped."""
        return state.stopped

    def step(self, state: PGDState, queries: ModelQueries, host_steps: np.ndarray) -> None:
        """Look, with the gradient unless this is the last look, and step."""
        feasible, loss, point = state.feasible, self.attack_loss, state.point
        if self.evaluate_last and bool((host_steps >= self.steps).all()):
            logits = queries.logits(point)
            self._observe(state, point, logits, loss(logits, state.y, state.reference))
            return
        if state.previous is not None:
            point = feasible.project(point + self.nesterov * (point - state.previous))
            state.previous = state.point
        logits, value, grad = queries.value_and_grad(point, loss, state.y, state.reference)
        wrong = None
        if state.looks is not None:
            state.looks.logits.append(logits)
        else:
            wrong = self._observe(state, point, logits, value)
        if state.velocity is not None:
            state.velocity = grad = self.momentum * state.velocity + _scaled(grad)
        size = self._step_size
        size = size.of(feasible.eps) if isinstance(size, RelativeStep) else size
        size = size.to(point) if isinstance(size, Tensor) else size
        start = point
        if self.step_noise:
            step = state.step - 1 if state.looks is None else len(state.looks.logits) - 1
            start = point + self.step_noise * state.rng.normal(point, state.tag + _NOISE_TAG + step)
        if self.step_size_factors:
            moved = self._line_search(state, queries, start, grad, size)
        else:
            moved = feasible.step(start, grad, size)
        if state.looks is None:
            state.moves = state.moves + 1
        if state.chances is not None and wrong is not None:
            state.stopped = wrong & (state.chances == 0)
            state.chances = state.chances - wrong.long()
            moved = where_rows(state.stopped, point, moved)
            state.moves = state.moves - state.stopped.long()
        state.point = moved
        if self.return_last and not self.evaluate_last:
            state.best = moved

    def _observe(self, state: PGDState, point: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
        """Note a look; returns which are misclassified."""
        wrong = state.criterion(logits, state.y)
        state.lps = logits if state.lps is None else where_rows(state.found_at < 0, logits, state.lps)
        state.right = state.right + (~wrong & (state.step < self.steps))
        first = torch.where(wrong & (state.found_at < 0), state.step, state.found_at)
        if self.return_last:
            # Only the point where it ends is judged; whoever looks in between must not take an earlier one for a success.
            ended = wrong if self.tau is not None else wrong & (state.step + 1 >= self.max_steps)
            state.best, state.best_logits, state.best_loss, state.found = point, logits, loss, ended
            state.step = state.step + 1
        else:
            may_be_outside = isinstance(self.start, Tensor) or self.start == "normal-unprojected"
            allowed = state.feasible.contains(point) if may_be_outside else None
            state.offer(point, logits, loss, wrong, allowed)
        state.found_at = first
        return wrong

    def _line_search(self, state: PGDState, queries: ModelQueries, point: Tensor, grad: Tensor, size: float | Tensor) -> Tensor:
        """Take the best of the steps of the factors times the step size."""
        best, highest = point, point.new_full((len(point),), -torch.inf)
        for factor in self.step_size_factors:
            candidate = state.feasible.step(point, grad, size * factor)
            logits = queries.logits(candidate)
            value = self.attack_loss(logits, state.y, state.reference).to(highest.dtype)
            better = value > highest
            best = where_rows(better, candidate, best)
            highest = torch.where(better, value, highest)
        return best


def _scaled(grad: Tensor) -> Tensor:
    """``∇ / ‖∇‖₁`` of each example (Dong et al. 2018), with the mean in place of the sum, which changes no direction."""
    return grad / expand_to(grad.abs().flatten(1).mean(1).clamp_min(torch.finfo(grad.dtype).tiny), grad)


pgd = as_function(PGD, "pgd", "Projected gradient descent (Madry et al. 2018).")
fgsm = as_function(
    PGD,
    "fgsm",
    """Fast gradient sign method (Goodfellow et al. 2015): ``Π_{S(x)}( x + ε · sign ∇_x CE(f(x), y) )``.

    One step of length ε, from x itself unless another start is asked for, and the point it reaches.""",
    steps=1,
    step_size="eps",
    start="clean",
    return_last=True,
)
cw = as_function(
    PGD,
    "cw",
    """What adversarial-training papers call CW: PGD on the margin loss of Carlini and Wagner (2017).

    ``ℓ = -max(z_y - max_{k≠y} z_k, -κ)``, maximised inside the threat model. Not the minimum-norm optimiser of the original
    paper. The defaults are FAT's (30 steps of ε/4, κ = 50).""",
    steps=30,
    loss="cw",
    confidence=50.0,
)
friendly_pgd = as_function(
    PGD,
    "friendly_pgd",
    """Early-stopped PGD of friendly adversarial training (Zhang et al. 2020, PGD-K-τ).

    Examples keep their places in the batch; those that have stopped, perhaps at their start, take no part in later passes.
    The last point is not looked at. The loss is "ce" for FAT and FAT-MART, "kl" for FAT-TRADES.""",
    tau=0,
    return_last=True,
    evaluate_last=False,
)
lm_pgd = as_function(
    PGD,
    "lm_pgd",
    """LM-PGD: PGD with a line search and Nesterov's momentum. The construction is ours.

    The MAIL paper uses an attack of this name, defined in an appendix that is not public and not in its code. Here

    ``z = Π(x^t + μ (x^t - x^{t-1}))``, ``x^{t+1} = argmax_{c} CE(f(Π(z + c·α·steepest ∇CE(z))), y)`` over the factors c,

    at one forward, one backward and one more forward for each factor a step. Counts of steps refer to the points z.""",
    steps=50,
    nesterov=NESTEROV,
    step_size_factors=LINE_SEARCH,
)
