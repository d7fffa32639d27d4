"""SCORE's LSE: squared distances of probabilities in place of cross-entropy and divergence (Pang et al. 2022)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.core.step_context import LossTerms, Objective, PresetName
from hauberk.objectives.functional import log_softmax
from hauberk.threat.batch import checked_batch


@checked_batch
def score(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    beta: float = 4.0,
    clip: float = 0.0,
    preset: PresetName = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """TRADES (LSE) of SCORE (Pang et al. 2022): ``ℓ = β·‖p(x') - p(x)‖²``, ``r = ‖p(x) - y‖²``, clipped.

    The loss is ``relu(ℓ + r - c)`` with ``c = q² + q²/(C - 1)``, the squared distance from the label of a prediction that gives
    it 1 - q: so examples that lose less than c have no gradient. The two terms share that c: where ``ℓ + r < c`` both are 0,
    and elsewhere c is taken from r.

    Arguments as in :func:`hauberk.objectives.at`; ``beta`` is the trade-off, and ``clip`` is q: 4 and 0, no clipping, with
    generated data, 6 and 0.3 in the public code on CIFAR-10 alone. Its form is that of the latter (``without_DDPM``) in every
    preset: the code with generated data takes its own bound, 0 by default, from ‖p(x') - p(x)‖² alone. ``targets`` are
    probabilities (B, C) in place of the labels.

    Raises:
        UserError: for a clip outside [0, 1).
    """
    if not 0 <= clip < 1:
        raise UserError(f"clip must be at least 0 and below 1, got {clip}")
    p, q = log_softmax(logits).exp(), log_softmax(logits_adv).exp()
    classes = logits.shape[1]
    labels = F.one_hot(y, classes) if targets is None else targets
    apart, miss = beta * (q - p).square().sum(1), (p - labels.to(p.dtype)).square().sum(1)
    bound = clip**2 + clip**2 / (classes - 1)
    counts = (apart + miss >= bound).detach().to(p.dtype)
    return LossTerms(counts * apart, counts * (miss - bound))


@dataclass(frozen=True)
class Score(Objective):
    """TRADES (LSE) of SCORE, with ``beta`` and ``clip`` as in :func:`hauberk.objectives.score`."""

    beta: float = 4.0
    clip: float = 0.0
    equation = "h·(ω·β·‖p(x') - p(x)‖² + ‖p(x) - t‖² - b); t is the label, h is 0 where the sum with ω = 1 is below 0, else 1"
    function = staticmethod(score)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip >= 1:
            raise UserError(f"clip must be below 1, got {self.clip}")
