"""The one engine behind every iterative attack: projected gradient ascent on a loss of the logits."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from hauberk.attacks.losses import AttackLoss, make_loss
from hauberk.attacks.result import AttackResult, Best
from hauberk.attacks.steps import Ascent, parse_step
from hauberk.attacks.view import attack_view
from hauberk.noise import Noise, batch_noise
from hauberk.threat import ThreatModel
from hauberk.threat.region import Region

Keep: TypeAlias = Literal["best", "last", "last-unseen"]

NORMAL_START = 0.001  # of TRADES' public code
_TAGS_PER_RESTART = 8  # random draws of different restarts never share a tag


def ascend(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    settings: Ascent,
    *,
    keep: Keep = "best",
    seed: int | Noise = 0,
) -> AttackResult:
    """Maximise a loss over the threat model by K projected steps of steepest ascent.

    ``x^{t+1} = Π_{S(x)}( x^t + α · steepest(∇_x ℓ(f(x^t), y)) )``

    Each step is one forward and one backward to the input. The model, its mode, gradients, buffers and the global random
    state are the same afterwards (buffers excepted in mode ``"train"``).

    Args:
        model: classifier of inputs in the box to logits (B, C).
        x: clean inputs, (B, ...), inside the box.
        y: labels, (B,) int64.
        threat: where the adversarial example must stay.
        settings: steps, step size, start, loss, restarts, momentum, mode.
        keep: ``"best"``: the best point ever visited, at K + 1 forwards per start; ``"last"``: the last iterate, at as
            many; ``"last-unseen"``: the last iterate without looking at it, at K forwards, for training, whose loss looks
            at it anyway. (The loss ``"kl"`` costs one more forward, of the clean inputs.)
        seed: an integer, or noise keyed by example.

    Raises:
        UserError: if settings, threat model and inputs do not fit together.
    """
    noise = batch_noise(seed, x)
    size = parse_step(settings.step_size, threat)
    with attack_view(model, settings.mode) as view:
        x, y = x.detach().clone(), y.clone()  # clones, in case they were made under inference_mode
        region = threat.around(x)
        if isinstance(size, Tensor):
            size = size.to(device=x.device, dtype=x.dtype)
        extra = 0
        clean_logits = None
        if settings.loss == "kl":
            with torch.no_grad():
                clean_logits = view(x)
            extra = 1
        loss = make_loss(settings.loss, y, clean_logits, settings.confidence)
        run = _Run(view, region, y, loss, settings, size, keep)
        for restart in range(settings.restarts):
            run.climb(_start(settings, region, noise, restart * _TAGS_PER_RESTART), first=restart == 0)
    return run.result(extra)


class _Run:
    """One attack under way: the loop, and what it has seen."""

    def __init__(
        self,
        view: nn.Module,
        region: Region,
        y: Tensor,
        loss: AttackLoss,
        settings: Ascent,
        size: float | Tensor,
        keep: Keep,
    ):
        self.view, self.region, self.y, self.loss = view, region, y, loss
        self.settings, self.size, self.keep = settings, size, keep
        self.best = Best(region.x)
        self.last: Tensor = region.x
        self.last_logits: Tensor | None = None
        self.wrong = torch.zeros_like(y, dtype=torch.bool)
        self.kappa = torch.zeros_like(y)
        self.first_success = torch.full_like(y, -1)
        self.forwards = self.backwards = 0

    def climb(self, point: Tensor, first: bool) -> None:
        """Run K steps from one start."""
        # A start as given may lie outside; it then serves the first gradient and nothing else.
        allowed = None if isinstance(self.settings.start, str) else self.region.contains(point)
        velocity: Tensor | None = None
        for step in range(self.settings.steps):
            point = point.detach().requires_grad_()
            logits = self.view(point)
            loss = self.loss(logits)
            (grad,) = torch.autograd.grad(loss.sum(), point)
            self.forwards += 1
            self.backwards += 1
            self._see(point.detach(), logits.detach(), loss.detach(), step, allowed, first)
            allowed = None
            grad = grad.nan_to_num(0.0, 0.0, 0.0)
            if self.settings.momentum:
                velocity = _accumulate(velocity, grad, self.settings.momentum)
                grad = velocity
            point = self.region.step(point.detach(), grad, self.size)
        if self.keep != "last-unseen":
            with torch.no_grad():
                logits = self.view(point)
                loss = self.loss(logits)
            self.forwards += 1
            self._see(point, logits, loss, self.settings.steps, None, first)
        self.last = point

    def _see(self, point: Tensor, logits: Tensor, loss: Tensor, step: int, allowed: Tensor | None, first: bool) -> None:
        wrong = logits.argmax(1) != self.y
        if first:
            if step < self.settings.steps:
                self.kappa += ~wrong
            self.first_success = torch.where(wrong & (self.first_success < 0), step, self.first_success)
        if self.keep == "best":
            self.best.offer(point, logits, loss, wrong, allowed)
        self.last_logits, self.wrong = logits, wrong

    def result(self, extra_forwards: int) -> AttackResult:
        best = self.keep == "best"
        return AttackResult(
            x_adv=(self.best.x_adv if best else self.last).detach(),
            success=self.best.wrong if best else self.wrong,
            kappa=self.kappa,
            first_success=self.first_success,
            logits=self.best.logits if best else self.last_logits if self.keep == "last" else None,
            forwards=self.forwards + extra_forwards,
            backwards=self.backwards,
        )


def _start(settings: Ascent, region: Region, noise: Noise, tag: int) -> Tensor:
    if isinstance(settings.start, Tensor):
        return settings.start.detach().clone().to(region.x)
    if settings.start == "uniform":
        return region.random(noise, tag)
    if settings.start == "normal":
        return region.project(region.x + NORMAL_START * noise.normal(region.x, tag))
    return region.x


def _accumulate(velocity: Tensor | None, grad: Tensor, momentum: float) -> Tensor:
    """``g ← μ·g + ∇ / ‖∇‖₁`` (Dong et al. 2018), with the mean in place of the sum, which changes no direction."""
    scale = grad.abs().flatten(1).mean(1).clamp_min(torch.finfo(grad.dtype).tiny).view(-1, *[1] * (grad.ndim - 1))
    return grad / scale if velocity is None else momentum * velocity + grad / scale
