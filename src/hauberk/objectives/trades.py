"""TRADES: a clean loss and a weighted divergence between clean and adversarial predictions."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from hauberk.core.step_context import LossTerms, Objective, PresetName
from hauberk.objectives.functional import cross_entropy, kl_divergence
from hauberk.threat.batch import checked_batch

Direction: TypeAlias = Literal["clean-to-adv", "adv-to-clean"]
DIRECTIONS: dict[Direction, str] = {"clean-to-adv": "KL(p(x)‖p(x'))", "adv-to-clean": "KL(p(x')‖p(x))"}


@checked_batch
def trades(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    beta: float = 6.0,
    direction: Direction = "clean-to-adv",
    preset: PresetName = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """TRADES (Zhang et al. 2019): ``ℓ = β·KL(p(x)‖p(x'))``, ``r = CE(f(x), y)``.

    The gradient flows through both predictions, as in the public code, whose divergence takes probabilities as the target, so
    that gradients are NaN where one underflows; ours is in log space and equal to it everywhere else.

    Arguments as in :func:`hauberk.objectives.at`; ``beta`` is the trade-off β (1/λ in the paper, whose CIFAR-10 experiments
    use 6). The ``direction`` of the divergence is ``"clean-to-adv"``, KL(p(x)‖p(x')), in TRADES and every public code, or
    ``"adv-to-clean"``, KL(p(x')‖p(x)), as the MAIL paper writes its Eq. 10.

    Raises:
        UserError: for an unknown direction or preset.
    """
    pair = (logits, logits_adv) if direction == "clean-to-adv" else (logits_adv, logits)
    return LossTerms(beta * kl_divergence(*pair), cross_entropy(logits, y if targets is None else targets))


@dataclass(frozen=True)
class Trades(Objective):
    """TRADES, with ``beta`` and ``direction`` as in :func:`hauberk.objectives.trades`."""

    beta: float = 6.0
    direction: Direction = "clean-to-adv"
    function = staticmethod(trades)

    @property
    def equation(self) -> str:  # type: ignore[override]
        """The loss with this direction."""
        return f"ω·β·{DIRECTIONS[self.direction]} + CE(f(x), y)"
