"""The one engine behind every iterative attack: projected gradient ascent on a loss of the logits."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from hauberk.attacks.frozen_model import frozen_model
from hauberk.attacks.result import AttackResult, Best, batches
from hauberk.attacks.steps import Ascent, accumulate, best_step, first_point, parse_step
from hauberk.checks import checked_call
from hauberk.core.errors import UserError
from hauberk.core.random import ExampleRng, batch_rng
from hauberk.objectives.functional import AIMED, fooled, make_loss
from hauberk.threat import ThreatModel
from hauberk.threat.feasible_set import FeasibleSet

Keep: TypeAlias = Literal["best", "last", "last-unseen"]

_TAGS_PER_RESTART = 10_000  # random draws of different restarts never share a tag
_JITTER_TAG = 100


def ascend(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    settings: Ascent,
    *,
    keep: Keep = "best",
    seed: int | ExampleRng = 0,
    see_clean: bool = False,
    share: Tensor | None = None,
    target: Tensor | None = None,
    trusted: bool = False,
) -> AttackResult:
    """Maximise a loss over the threat model by K projected steps of steepest ascent (PGD: Madry et al. 2018).

    ``x^{t+1} = Π_{S(x)}( x^t + α · steepest(∇_x ℓ(f(x^t), y)) )``

    Each step is one forward and one backward to the input. The model, its mode, gradients, buffers and the global random
    state are the same afterwards (buffers excepted in mode ``"train"``).

    Args:
        model: classifier of inputs in the box to logits (B, C).
        x: clean inputs, (B, ...), inside the box.
        y: labels, (B,), integers.
        threat: where the adversarial example must stay.
        settings: steps, step size, start, loss, restarts, momentum, mode, ...
        keep: ``"best"``: the best point ever visited, at K + 1 forwards per start; ``"last"``: the last iterate, at as
            many; ``"last-unseen"``: the last iterate without looking at it, at K forwards, for training, whose loss looks
            at it anyway. (The loss ``"kl"`` costs one more forward, of the clean inputs.)
        seed: an integer, or noise keyed by example.
        see_clean: look at the clean inputs too, in the attack's mode, at one forward.
        share: (B,), attack each example with ε, and steps, times its share in [0, 1].
        target: (B,) int64, the class to aim at, for a loss with a target.
        trusted: the inputs, the labels (int64) and the model are known to fit together, so nothing of them is checked.

    Returns:
        AttackResult with ``x_adv`` (B, ...) inside the threat model.

    Raises:
        UserError: if settings, threat model, inputs, labels and model do not fit together.
    """
    if settings.tau is not None and keep != "last-unseen":
        raise UserError("a friendly attack hands back where each example stopped; use keep='last-unseen'")
    if (settings.loss in AIMED) != (target is not None):
        raise UserError(f"the loss {settings.loss!r} {'needs a' if target is None else 'takes no'} target")
    size = parse_step(settings.step_size, threat)
    checked = nullcontext(y) if trusted else checked_call(model, x, y, threat, settings.loss == "evade")
    with checked as y, frozen_model(model, settings.mode) as view:
        rng = batch_rng(seed, x)
        x, y = x.detach().clone(), y.clone()  # clones, in case they were made under inference_mode
        if isinstance(size, Tensor):
            size = size.to(device=x.device, dtype=x.dtype)
        region = threat.around(x)
        if share is not None:
            region, size = region.shrunk(share), size * share.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        clean = None
        if settings.loss == "kl" or see_clean:
            with torch.no_grad():
                clean = view(x)
        run = _Run(view, _Rows(region.x, region, y, clean, target), settings, size, keep, rng)
        for restart in range(settings.restarts):
            run.climb(restart * _TAGS_PER_RESTART, first=restart == 0)
    return run.result()


@dataclass
class _Rows:
    """Examples under way: all of the batch, or those that have not finished."""

    point: Tensor
    region: FeasibleSet
    y: Tensor
    clean: Tensor | None
    target: Tensor | None
    index: Tensor | None = None  # which of the batch; None for all

    @property
    def aim(self) -> Tensor | None:
        """What the loss compares with, besides the labels."""
        return self.clean if self.target is None else self.target

    def select(self, keep: Tensor) -> "_Rows":
        """Keep some of these rows. keep: (b,) int64, places among these rows."""
        clean, target = (None if value is None else value[keep] for value in (self.clean, self.target))
        index = keep if self.index is None else self.index[keep]
        return _Rows(self.point[keep], self.region.rows(keep), self.y[keep], clean, target, index)


class _Run:
    """One attack under way: the loop, and what it has seen."""

    def __init__(self, view: nn.Module, rows: _Rows, settings: Ascent, size: float | Tensor, keep: Keep, rng: ExampleRng):
        self.view, self.rows, self.settings, self.size, self.keep, self.rng = view, rows, settings, size, keep, rng
        self.loss = make_loss(settings.loss, settings.confidence)
        y = rows.y
        self.best = Best(rows.region.x)
        self.last: Tensor = rows.region.x
        self.last_logits: Tensor | None = None
        self.lps_logits: Tensor | None = None
        self.wrong = torch.zeros_like(y, dtype=torch.bool)
        self.kappa = torch.zeros_like(y)
        self.taken = torch.zeros_like(y)
        self.first_success = torch.full_like(y, -1)
        self.seen = {"forwards": 0 if rows.clean is None else len(y), "backwards": 0}  # counted in examples

    def climb(self, tag: int, first: bool) -> None:
        """Run K steps from one start."""
        settings = self.settings
        start = first_point(settings, self.rows.region, self.rng, tag)
        # A start as given may lie outside; it then serves the first gradient and nothing else.
        allowed = None if isinstance(settings.start, str) else self.rows.region.contains(start)
        rows = replace(self.rows, point=start)
        before, velocity = start, None
        chances = None if settings.tau is None else torch.full_like(rows.y, settings.tau)
        self.last = start
        for step in range(settings.steps):
            if settings.nesterov:
                ahead = rows.region.project(rows.point + settings.nesterov * (rows.point - before))
                before, rows.point = rows.point, ahead
            logits, loss, grad = self._gradient(rows)
            wrong = self._see(rows, logits, loss, step, allowed, first)
            allowed = None
            if chances is not None:
                self.last = _put(self.last, rows, rows.point)
                stays = ~(wrong & (chances == 0))
                chances = chances - wrong.long()
                left = stays.nonzero().squeeze(1)
                if len(left) < len(stays):
                    rows, chances, grad = rows.select(left), chances[left], grad[left]
                if len(left) == 0:
                    return
            if settings.momentum:
                velocity = grad = accumulate(velocity, grad, settings.momentum)
            if first:
                self.taken = _put(self.taken, rows, _get(self.taken, rows) + 1)
            rows.point = self._move(rows, grad, tag + _JITTER_TAG + step)
        self.last = _put(self.last, rows, rows.point)
        if self.keep != "last-unseen":
            logits, loss = self._look(rows, rows.point)
            self._see(rows, logits, loss, settings.steps, None, first)

    def _gradient(self, rows: _Rows) -> tuple[Tensor, Tensor, Tensor]:
        point = rows.point.detach().requires_grad_()
        logits = self.view(point)
        loss = self.loss(logits, rows.y, rows.aim)
        (grad,) = torch.autograd.grad(loss.sum(), point)
        self.seen["forwards"] += len(point)
        self.seen["backwards"] += len(point)
        return logits.detach(), loss.detach(), grad.nan_to_num(0.0, 0.0, 0.0)

    def _look(self, rows: _Rows, point: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = self.view(point)
            self.seen["forwards"] += len(point)
            return logits, self.loss(logits, rows.y, rows.aim)

    def _move(self, rows: _Rows, grad: Tensor, tag: int) -> Tensor:
        """Take a step, or the best of several."""
        size = self.size
        if isinstance(size, Tensor) and rows.index is not None and size.ndim == rows.point.ndim:
            size = size[rows.index]
        if self.settings.jitter:
            rows.point = rows.point + self.settings.jitter * _get(self.rng.normal(self.rows.point, tag), rows)
        return best_step(
            rows.region, rows.point, grad, size, self.settings.line_search, lambda point: self._look(rows, point)[1]
        )

    def _see(self, rows: _Rows, logits: Tensor, loss: Tensor, step: int, allowed: Tensor | None, first: bool) -> Tensor:
        """Note what a pass showed; returns which rows are misclassified."""
        wrong = fooled(logits, rows.y, evading=self.settings.loss == "evade")
        if first:
            if step < self.settings.steps:
                self.kappa = _put(self.kappa, rows, _get(self.kappa, rows) + ~wrong)
            found = _get(self.first_success, rows)
            if self.lps_logits is None:
                self.lps_logits = logits
            seen = torch.where((found < 0)[:, None], logits, _get(self.lps_logits, rows))
            self.lps_logits = _put(self.lps_logits, rows, seen)
            self.first_success = _put(self.first_success, rows, torch.where(wrong & (found < 0), step, found))
        if self.keep == "best" and rows.index is None:
            self.best.offer(rows.point, logits, loss, wrong, allowed)
        self.last_logits = logits if self.last_logits is None else _put(self.last_logits, rows, logits)
        self.wrong = _put(self.wrong, rows, wrong)
        return wrong

    def result(self) -> AttackResult:
        best = self.keep == "best"
        assert self.lps_logits is not None  # there was at least one step
        return AttackResult(
            x_adv=(self.best.x_adv if best else self.last).detach(),
            success=self.best.wrong if best else self.wrong,
            kappa=self.kappa,
            first_success=self.first_success,
            steps_taken=self.taken,
            logits=self.best.logits if best else self.last_logits if self.keep == "last" else None,
            logits_lps=self.lps_logits,
            clean_logits=self.rows.clean,
            forwards=batches(self.seen["forwards"], len(self.rows.y)),
            backwards=batches(self.seen["backwards"], len(self.rows.y)),
        )


def _get(values: Tensor, rows: _Rows) -> Tensor:
    return values if rows.index is None else values[rows.index]


def _put(values: Tensor, rows: _Rows, new: Tensor) -> Tensor:
    """Return ``values`` of the whole batch with those of some rows replaced."""
    return new if rows.index is None else values.index_copy(0, rows.index, new)
