"""What an attack hands back."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack found and saw; everything here came from passes the attack made anyway.

    Attributes:
        x_adv: (B, ...), inside the threat model, detached.
        success: (B,) bool, whether the model misclassifies ``x_adv`` (and so, as the best point ever visited is kept
            unless the last was asked for, any point visited). If the last was not looked at: the one before it.
        kappa: (B,) int64, how many of the K iterates ``x⁰ … x^{K-1}`` were classified right; GAIRAT's κ. Of the first start.
        first_success: (B,) int64, index of the first misclassified iterate of the first start (0 is the start), -1 if none.
        steps_taken: (B,) int64, by the first start: K, or fewer where the attack is friendly.
        logits: (B, C) at ``x_adv``, detached; None where the attack was told not to look at its last point.
        logits_lps: (B, C) at the first misclassified iterate (least PGD steps), or at the last one seen where there is none.
        clean_logits: (B, C) of the clean inputs in the attack's mode, where the attack looked at them; otherwise None.
        forwards: forward passes of the whole batch; a fraction where finished examples were left out.
        backwards: backward passes of the whole batch, to the input only, likewise.
    """

    x_adv: Tensor
    success: Tensor
    kappa: Tensor
    first_success: Tensor
    steps_taken: Tensor
    logits: Tensor | None
    logits_lps: Tensor
    clean_logits: Tensor | None
    forwards: float
    backwards: float

    @property
    def lps(self) -> Tensor:
        """Least PGD steps, (B,) int64: index of the first misclassified iterate, or the steps taken where there is none."""
        return torch.where(self.first_success < 0, self.steps_taken, self.first_success)


def batches(examples: int, size: int) -> float:
    """ModelQueries of the whole batch, from a count in examples; a whole number where it is one."""
    return examples // size if examples % size == 0 else examples / size


class Best:
    """The best point of each example so far: misclassified before not, then the larger loss, a loss that is NaN last."""

    def __init__(self, x: Tensor):
        self.x_adv = x
        self.logits: Tensor | None = None
        self.wrong = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.loss = torch.full((len(x),), -torch.inf, device=x.device)

    def offer(self, point: Tensor, logits: Tensor, loss: Tensor, wrong: Tensor, allowed: Tensor | None) -> None:
        """Keep ``point`` (B, ...) where it is better than what is kept and ``allowed`` (B,)."""
        if self.logits is None:
            self.logits = logits
            self.loss = self.loss.to(loss.dtype)
        loss = torch.where(loss.isnan(), -torch.inf, loss)
        better = (wrong & ~self.wrong) | ((wrong == self.wrong) & (loss > self.loss))
        if allowed is not None:
            better &= allowed
        self.x_adv = torch.where(better.view(-1, *[1] * (point.ndim - 1)), point, self.x_adv)
        self.logits = torch.where(better[:, None], logits, self.logits)
        self.loss = torch.where(better, loss, self.loss)
        self.wrong = torch.where(better, wrong, self.wrong)

    def offer_rows(self, rows: Tensor, point: Tensor, logits: Tensor, loss: Tensor, wrong: Tensor) -> None:
        """Keep ``point`` (b, ...) of some examples, whose places in the batch are ``rows`` (b,), where it is better."""
        part = Best(self.x_adv[rows])
        part.wrong, part.loss = self.wrong[rows], self.loss[rows].to(loss.dtype)
        part.logits = logits if self.logits is None else self.logits[rows]
        part.offer(point, logits, loss, wrong, None)
        if self.logits is None or part.logits is None:
            self.logits = logits.new_zeros(len(self.wrong), logits.shape[1])
        self.x_adv = self.x_adv.index_copy(0, rows, part.x_adv)
        self.logits = self.logits.index_copy(0, rows, part.logits if part.logits is not None else logits)
        self.loss = self.loss.to(loss.dtype).index_copy(0, rows, part.loss)
        self.wrong = self.wrong.index_copy(0, rows, part.wrong)
