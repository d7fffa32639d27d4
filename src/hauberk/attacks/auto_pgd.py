"""APGD: projected gradient ascent that chooses its step sizes by itself (Croce and Hein 2020)."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from hauberk.attacks.losses import AttackLoss, fooled, make_loss, targeted_dlr_loss
from hauberk.attacks.result import AttackResult, Best, batches
from hauberk.attacks.view import attack_view
from hauberk.errors import UserError
from hauberk.noise import Noise, batch_noise
from hauberk.threat import Region, ThreatModel

RHO = 0.75  # share of rising steps below which a step size is halved
MOMENTUM = 0.75
FIRST_STEP = 2.0  # times ε
_TAGS_PER_START = 16


@dataclass(frozen=True)
class AutoPgd:
    """Settings of :func:`apgd`, with AutoAttack's numbers."""

    steps: int = 100
    loss: str = "ce"
    targets: int = 9
    restarts: int = 1


def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 100,
    loss: str = "ce",
    targets: int = 9,
    restarts: int = 1,
    seed: int | Noise = 0,
) -> AttackResult:
    """Auto-PGD (Croce and Hein 2020), as in AutoAttack, in L∞ and L2.

    ``z = Π(x^t + η·steepest ∇ℓ)``, ``x^{t+1} = Π(x^t + 0.75 (z - x^t) + 0.25 (x^t - x^{t-1}))``. The step η starts at 2ε; at
    checkpoints an example whose loss has risen too seldom, or not reached a new best, halves it and returns to its best point.
    An example that is misclassified takes no part after the next checkpoint.

    Two things differ from the official code: the L2 projection is onto the ball cut with the box exactly, and the first
    checkpoint compares with the loss of the start, where the code compares with 0.

    Args:
        model: classifier from inputs (B, ...) in the box to logits (B, C); unchanged afterwards.
        x: clean inputs, (B, ...), inside the box.
        y: labels, (B,) int64.
        threat: ball and box, L∞ or L2.
        steps: iterations of each start; AutoAttack has 100.
        loss: "ce"; "dlr"; or "dlr-targeted", which tries each of the ``targets`` most likely wrong classes in turn.
        targets: how many; AutoAttack has 9. Fewer where there are fewer classes.
        restarts: independent starts (for each target); the examples that still stand go on.
        seed: of the random starts; an integer, or noise keyed by example.

    Returns:
        AttackResult; ``kappa``, ``first_success`` and ``steps_taken`` are of the first start.

    Raises:
        UserError: in L1, for settings that make no sense, and where the loss needs more classes (DLR 3, targeted DLR 4).
    """
    if threat.norm == "L1":
        raise UserError("apgd is for Linf and L2; its L1 version is not in this version of Hauberk")
    if steps < 1 or restarts < 1 or targets < 1:
        raise UserError(f"apgd needs at least 1 step, restart and target, got {steps}, {restarts} and {targets}")
    noise = batch_noise(seed, x)
    with attack_view(model) as view:
        x, y = x.detach().clone(), y.clone()
        run = _Apgd(view, threat.around(x), y, steps, evading=loss == "evade")
        if loss == "dlr-targeted":
            order = run.look(x).topk(min(targets + 1, run.outputs), dim=1).indices
            for k in range(1, order.shape[1]):
                target = order[:, k]
                for restart in range(restarts):
                    tag = ((k - 1) * restarts + restart) * _TAGS_PER_START
                    run.start(targeted_dlr_loss, noise, tag, target)
        else:
            chosen = make_loss(loss)
            for restart in range(restarts):
                run.start(chosen, noise, restart * _TAGS_PER_START, y)
    return run.result()


@dataclass
class _State:
    """Examples under way, one row each."""

    index: Tensor  # which of the batch
    y: Tensor
    target: Tensor
    point: Tensor
    previous: Tensor
    grad: Tensor
    loss: Tensor
    step: Tensor
    best_point: Tensor
    best_grad: Tensor
    best_loss: Tensor
    rises: Tensor  # since the last checkpoint
    reduced: Tensor  # whether the last checkpoint halved the step
    best_before: Tensor  # best loss at the last checkpoint

    def select(self, keep: Tensor) -> "_State":
        """Keep some rows."""
        return replace(self, **{f.name: getattr(self, f.name)[keep] for f in fields(self)})


class _Apgd:
    """The attack under way, over starts and targets."""

    def __init__(self, view: nn.Module, region: Region, y: Tensor, steps: int, evading: bool):
        self.evading = evading
        self.view, self.region, self.y, self.steps = view, region, y, steps
        self.best = Best(region.x)
        self.outputs = 0
        self.kappa = torch.zeros_like(y)
        self.first_success = torch.full_like(y, -1)
        self.taken = torch.zeros_like(y)
        self.lps_logits: Tensor | None = None
        self.starts = 0
        self.seen = {"forwards": 0, "backwards": 0}

    def look(self, points: Tensor) -> Tensor:
        """Look at points without a gradient."""
        with torch.no_grad():
            logits: Tensor = self.view(points)
        self.seen["forwards"] += len(points)
        self.outputs = logits.shape[1]
        return logits

    def start(self, loss: AttackLoss, noise: Noise, tag: int, target: Tensor) -> None:
        """Run all steps from one random start, on the examples that still stand."""
        rows = (~self.best.wrong).nonzero().squeeze(1)
        if len(rows) == 0:
            return
        begin = _far_start(self.region, noise, tag)[rows]
        state = self._begin(begin, rows, loss, target[rows])
        interval = max(int(0.22 * self.steps), 1)
        since = 0
        for i in range(self.steps):
            self._advance(state, loss, i)
            since += 1
            if since == interval and i + 1 < self.steps:
                _checkpoint(state, interval)
                since, interval = 0, max(interval - max(int(0.03 * self.steps), 1), max(int(0.06 * self.steps), 1))
                standing = (~self.best.wrong[state.index]).nonzero().squeeze(1)
                if len(standing) == 0:
                    break
                if len(standing) < len(state.index):
                    state = state.select(standing)
        self.starts += 1

    def _begin(self, point: Tensor, rows: Tensor, loss: AttackLoss, target: Tensor) -> _State:
        y = self.y[rows]
        value, grad = self._see(point, rows, y, target, loss, 0, want_grad=True)
        shape = (-1, *[1] * (point.ndim - 1))
        radius = self.region.rows(rows).radius
        step = FIRST_STEP * torch.ones(len(rows), dtype=point.dtype, device=point.device).view(shape) * radius
        flags = torch.ones_like(y, dtype=torch.bool)
        none = torch.zeros_like(y)
        return _State(rows, y, target, point, point, grad, value, step, point, grad, value, none, flags, value)

    def _advance(self, state: _State, loss: AttackLoss, i: int) -> None:
        region = self.region.rows(state.index)
        share = MOMENTUM if i > 0 else 1.0
        ahead = region.step(state.point, state.grad, state.step)
        moved = region.project(state.point + share * (ahead - state.point) + (1 - share) * (state.point - state.previous))
        last = i + 1 == self.steps
        value, grad = self._see(moved, state.index, state.y, state.target, loss, i + 1, want_grad=not last)
        state.rises = state.rises + (value > state.loss)
        state.previous, state.point, state.grad, state.loss = state.point, moved, grad, value
        better = value > state.best_loss
        state.best_point = _where(better, moved, state.best_point)
        state.best_grad = _where(better, grad, state.best_grad)
        state.best_loss = torch.where(better, value, state.best_loss)

    def _see(
        self, point: Tensor, rows: Tensor, y: Tensor, target: Tensor, loss: AttackLoss, step: int, want_grad: bool
    ) -> tuple[Tensor, Tensor]:
        """Look at points, note what they show, and return loss and gradient."""
        point = point.detach().requires_grad_(want_grad)
        with torch.set_grad_enabled(want_grad):
            logits = self.view(point)
            value = loss(logits, y, target)
        grad = torch.zeros_like(point)
        if want_grad:
            (grad,) = torch.autograd.grad(value.sum(), point)
            self.seen["backwards"] += len(point)
        self.seen["forwards"] += len(point)
        logits, value = logits.detach(), value.detach()
        wrong = fooled(logits, y, self.evading)
        if self.starts == 0:
            if self.lps_logits is None:
                self.lps_logits = logits.new_zeros(len(self.y), logits.shape[1])
            found = self.first_success[rows]
            if step < self.steps:
                self.kappa[rows] += ~wrong
            self.taken[rows] = step
            self.lps_logits[rows] = torch.where((found < 0)[:, None], logits, self.lps_logits[rows])
            self.first_success[rows] = torch.where(wrong & (found < 0), step, found)
        self.best.offer_rows(rows, point.detach(), logits, value, wrong)
        return value, grad.nan_to_num(0.0, 0.0, 0.0)

    def result(self) -> AttackResult:
        assert self.lps_logits is not None  # there was at least one start
        return AttackResult(
            x_adv=self.best.x_adv,
            success=self.best.wrong,
            kappa=self.kappa,
            first_success=self.first_success,
            steps_taken=self.taken,
            logits=self.best.logits,
            logits_lps=self.lps_logits,
            clean_logits=None,
            forwards=batches(self.seen["forwards"], len(self.y)),
            backwards=batches(self.seen["backwards"], len(self.y)),
        )


def _checkpoint(state: _State, interval: int) -> None:
    """Halve the step, and go back to the best point, where progress has stalled."""
    seldom = state.rises <= RHO * interval
    no_better = ~state.reduced & (state.best_before >= state.best_loss)
    stalled = seldom | no_better
    state.step = _where(stalled, state.step / 2, state.step)
    state.point = _where(stalled, state.best_point, state.point)
    state.grad = _where(stalled, state.best_grad, state.grad)
    state.reduced, state.best_before = stalled, state.best_loss
    state.rises = torch.zeros_like(state.rises)


def _far_start(region: Region, noise: Noise, tag: int) -> Tensor:
    """A random point with one coordinate at ε (L∞), or on the sphere (L2), as AutoAttack starts."""
    if region.norm == "Linf":
        draws = (2 * noise.uniform(region.x, tag) - 1).flatten(1)
        length = draws.abs().amax(1, keepdim=True)
    else:
        draws = noise.normal(region.x, tag).flatten(1) * (region.radius > 0).expand_as(region.x).flatten(1)
        length = draws.norm(dim=1, keepdim=True)
    direction = (draws / length.clamp_min(1e-12)).view_as(region.x)
    return region.project(region.x + region.radius * direction)


def _where(rows: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (one.ndim - 1)), one, other)
