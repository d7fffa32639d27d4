"""SOVR: one-vs-the-rest in place of cross-entropy for the examples with the smallest logit margins (Kanai et al. 2023)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hauberk.core.arguments import shown, unchecked
from hauberk.core.errors import UserError
from hauberk.core.step_context import ADVERSARIAL, LossTerms, Objective, PresetName, StepContext
from hauberk.objectives.functional import at_least_float32, cross_entropy, gather_class, kl_divergence, logit_margin
from hauberk.threat.batch import checked_batch


def one_vs_rest(logits: Tensor, labels: Tensor) -> Tensor:
    """``OVR(z, y) = -log σ(z_y) - Σ_{k≠y} log σ(-z_k)``: a binary cross-entropy for each class.

    ``logits`` (B, C), and labels (B,) or probabilities (B, C), give (B,).
    """
    logits = at_least_float32(logits)
    own = gather_class(logits, labels) if labels.ndim == 1 else (labels.to(logits.dtype) * logits).sum(1)
    return F.softplus(logits).sum(1) - own  # softplus(-z_y) is softplus(z_y) - z_y


@torch.no_grad()
def smallest_margins(margin: Tensor, share: float) -> Tensor:
    """Say which examples are among the part of the batch with the smallest margins, rounded down. (B,) -> (B,) bool."""
    chosen = torch.zeros(len(margin), dtype=torch.bool, device=margin.device)
    chosen.index_fill_(0, margin.argsort(stable=True)[: int(share * len(margin) + 1e-9)], True)
    return chosen


@checked_batch
def sovr(
    logits: Tensor | None,
    logits_adv: Tensor,
    y: Tensor,
    *,
    beta: float = 0.0,
    ovr_weight: float = 0.4,
    share: float = 0.4,
    chosen: Tensor | None = None,
    preset: PresetName = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """SOVR (Kanai et al. 2023): ``ℓ = λ·OVR(f(x'), y)`` in a part S of the batch, ``CE(f(x'), y)`` elsewhere; ``r = 0``.

    S has the smallest logit margins ``z_y - max_{k≠y} z_k`` at x'; ``OVR(z, y) = -log σ(z_y) - Σ_{k≠y} log σ(-z_k)``.

    Arguments as in :func:`hauberk.objectives.at`; ``ovr_weight`` is λ, ``share`` the size of S, the paper's M %, ``chosen``,
    (B,) bool, says which are in S where that is known. With ``targets``, probabilities (B, C), both losses are with them;
    margins stay those of the labels.

    Raises:
        UserError: if ``chosen`` is of another shape.
    """
    return LossTerms(_switched(logits_adv, y, ovr_weight, share, chosen, targets), torch.zeros_like(logits_adv[:, 0]))


@checked_batch
def tsovr(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    beta: float = 6.0,
    ovr_weight: float = 0.4,
    share: float = 0.4,
    chosen: Tensor | None = None,
    preset: PresetName = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """TSOVR (Kanai et al. 2023), TRADES with SOVR in place of its cross-entropy: ``ℓ = β·KL(p(x)‖p(x'))``, ``r = SOVR(x)``.

    Margins and one-vs-the-rest are those of the logits that TRADES' cross-entropy looks at, the clean ones.

    Arguments as in :func:`hauberk.objectives.sovr`; ``beta`` is the trade-off of TRADES.

    Raises:
        UserError: if ``chosen`` is of another shape.
    """
    return LossTerms(beta * kl_divergence(logits, logits_adv), _switched(logits, y, ovr_weight, share, chosen, targets))


def _switched(logits: Tensor, y: Tensor, weight: float, share: float, chosen: Tensor | None, targets: Tensor | None) -> Tensor:
    if chosen is None:
        chosen = smallest_margins(logit_margin(logits, y), share)
    elif chosen.shape != y.shape or chosen.dtype != torch.bool:
        raise UserError(f"chosen must be bool, ({len(y)},), got {shown(chosen)}")
    labels = y if targets is None else targets
    return torch.where(chosen, weight * one_vs_rest(logits, labels), cross_entropy(logits, labels))


class _Switching(Objective):
    """What both have: S is of the whole batch of all processes."""

    ovr_weight: float
    share: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share > 1:
            raise UserError(f"share must be at most 1, got {self.share}")

    def __call__(self, context: StepContext) -> LossTerms:
        """Return the terms of a batch whose logits have been computed."""
        logits = context.logits if type(self).needs > ADVERSARIAL else context.logits_adv
        assert logits is not None  # needed
        with torch.no_grad():
            margin = context.all_gather(logit_margin(logits.detach(), context.y))
            chosen = context.take_local(smallest_margins(margin, self.share))
        more = {"chosen": chosen, "targets": context.loss_targets}
        return unchecked(type(self).function)(context.logits, context.logits_adv, context.y, **vars(self), **more)


@dataclass(frozen=True)
class SOVR(_Switching):
    """SOVR, with ``ovr_weight`` and ``share`` as in :func:`hauberk.objectives.sovr`."""

    ovr_weight: float = 0.4
    share: float = 0.4
    needs = ADVERSARIAL
    equation = "ω·(s·λ·OVR(f(x'), y) + (1 - s)·CE(f(x'), y)); s is 1 in the share of the batch with the smallest margins"
    function = staticmethod(sovr)


@dataclass(frozen=True)
class TSOVR(_Switching):
    """TRADES with SOVR, with ``beta``, ``ovr_weight`` and ``share`` as in :func:`hauberk.objectives.tsovr`."""

    beta: float = 6.0
    ovr_weight: float = 0.4
    share: float = 0.4
    equation = "ω·β·KL(p(x)‖p(x')) + s·λ·OVR(f(x), y) + (1 - s)·CE(f(x), y); s is 1 for a share with the smallest margins"
    function = staticmethod(tsovr)
