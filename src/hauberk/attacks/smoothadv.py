"""SmoothADV: PGD on the soft smoothed classifier (Salman et al. 2019)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from hauberk.attacks.model.queries import ModelQueries
from hauberk.attacks.pgd import PGD, Start
from hauberk.attacks.pgd_state import PGDState
from hauberk.attacks.state import AttackInputs
from hauberk.attacks.step_size import StepSize
from hauberk.core.errors import UserError
from hauberk.objectives.smoothing import gaussian_noise, log_mean_softmax


@dataclass(frozen=True, eq=False)
class SmoothAdv(PGD):
    """PGD that attacks a randomly smoothed classifier (Salman et al. 2019, SmoothADV-PGD).

    With the loss "ce" it maximises ``-log mean_j softmax(f(x' + σn_j))_y``, where m draws n_j ~ N(0, I) of each example stay
    the same in all steps. Each pass is over the m noisy copies of all examples, as one batch; the logarithms of their mean
    probabilities stand where another attack has logits. By default ten steps of ``2ε/K`` from the clean input, as in the
    authors' code. It is for training: an evaluation judges what it finds by the network without noise.

    The other settings are those of :class:`hauberk.attacks.PGD`: ``steps``, ``step_size``, ``start``, ``loss``, ``confidence``,
    ``restarts``, ``momentum``, ``mode``, ``return_last``, ``evaluate_last``, ``tau``, ``step_noise``, ``nesterov``,
    ``step_size_factors`` and ``targets``.

    Attributes:
        sigma: σ, in the units of the input.
        draws: m.
    """

    step_size: StepSize = "eps/5"
    start: Start = "clean"
    sigma: float = 0.25
    draws: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1 or self.sigma < 0:
            raise UserError(f"SmoothAdv needs at least 1 draw and no negative sigma, got {self.draws} and {self.sigma}")

    @property
    def passes_per_step(self) -> int:  # type: ignore[override]
        """A forward and a backward of each draw, and what the line search looks at."""
        return self.draws * super().passes_per_step

    def init(self, inputs: AttackInputs) -> PGDState:
        """Draw the start, and the noise."""
        noise = gaussian_noise(inputs.feasible.x, self.sigma, self.draws, inputs.rng)
        return SmoothAdvState(**vars(super().init(inputs)), noise=noise)

    def step(self, state: PGDState, queries: ModelQueries, host_steps: np.ndarray) -> None:
        """Look at the smoothed classifier, and step."""
        assert isinstance(state, SmoothAdvState)
        smoothed = ModelQueries(_Smoothed(queries.model, state.noise), queries.eot_iter)
        super().step(state, smoothed, host_steps)
        queries.forwards += self.draws * smoothed.forwards
        queries.backwards += self.draws * smoothed.backwards


@dataclass
class SmoothAdvState(PGDState):
    """SmoothADV under way."""

    noise: Any = None  # (B, m, ...); always there


class _Smoothed(nn.Module):
    """The logarithms of a classifier's mean probabilities over noisy copies, (B, ...) -> (B, C)."""

    def __init__(self, model: nn.Module, noise: Tensor):
        super().__init__()
        self.model, self.noise = model, noise

    def forward(self, x: Tensor) -> Tensor:
        """Return what stands for logits."""
        logits: Tensor = self.model((x[:, None] + self.noise.to(x.dtype)).flatten(0, 1))
        if self.noise.shape[1] == 1:
            return logits  # of one copy: all losses are the same
        return log_mean_softmax(logits.unflatten(0, self.noise.shape[:2]))
