"""Functions of logits (B, C) and labels (B,): divergences, margins, what counts as a mistake, and what attacks maximise.

Those that take a logarithm widen half precision to float32, whatever the network runs in; the others compute in the dtype they
are given, because models answer attacks and objectives through code that has widened it once.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from hauberk.core.arguments import check_callable, shown
from hauberk.core.errors import UserError, unknown_name

Criterion: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # outputs (B, ...) and labels (B, ...) to (B,) bool: a mistake


def at_least_float32(values: Tensor) -> Tensor:
    """Widen half-precision tensors; leave float32 and float64 as they are."""
    return values.float() if values.element_size() < 4 else values


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities in at least float32. (B, C) -> (B, C)."""
    return F.log_softmax(at_least_float32(logits), dim=1)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each example in at least float32. (B, C), and (B,) or probabilities (B, C) -> (B,)."""
    logits = at_least_float32(logits)
    return F.cross_entropy(logits, y.to(logits.dtype) if y.ndim == 2 else y, reduction="none")


def smoothed(labels: Tensor, smoothing: float, classes: int) -> Tensor:
    """Smooth labels: ``(1 - α)·t + α/C``. (B,), or probabilities (B, C) -> (B, C)."""
    targets = F.one_hot(labels, classes) if labels.ndim == 1 else labels
    return (1 - smoothing) * targets + smoothing / classes


def kl_divergence(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """``KL(p‖q) = Σ_k p_k (log p_k - log q_k)`` of each example, in log space and at least float32. (B, C), (B, C) -> (B,).

    The gradient, to both arguments, is finite even where a probability underflows, which that of ``F.kl_div`` with a
    probability target is not.
    """
    log_p, log_q = log_softmax(logits_p), log_softmax(logits_q)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def gather_class(values: Tensor, y: Tensor) -> Tensor:
    """Pick the value of one class of each example. (B, C), (B,) -> (B,)."""
    return values.gather(1, y[:, None]).squeeze(1)


def mask_class(values: Tensor, y: Tensor, fill: float = -torch.inf) -> Tensor:
    """Replace the value of one class of each example. (B, C), (B,) -> (B, C)."""
    return values.scatter(1, y[:, None], fill)


def fooled(logits: Tensor, y: Tensor) -> Tensor:
    """Say which examples are misclassified: the usual criterion. (B, C), (B,) -> (B,) bool.

    Logits that are NaN or infinite are no answer, so they are a mistake, whatever class the largest stands for.
    """
    return (logits.argmax(1) != y) | ~_finite(logits)


def evades(logits: Tensor, y: Tensor) -> Tensor:
    """Say which are misclassified, and not taken for the last class, that of adversarial inputs. (B, K + 1), (B,) -> (B,) bool.

    Logits that are not finite are a mistake, likewise.
    """
    predicted = logits.argmax(1)
    return ((predicted != y) & (predicted != logits.shape[1] - 1)) | ~_finite(logits)


def checked_criterion(criterion: Criterion) -> Criterion:
    """Return a criterion of the caller's whose answers are checked, and for which outputs that are not finite are a mistake."""
    if criterion in (fooled, evades) or (isinstance(criterion, partial) and criterion.func is _mistakes):
        return criterion
    check_callable("criterion", criterion, "outputs", "y")
    return partial(_mistakes, criterion)


def _mistakes(criterion: Criterion, outputs: Tensor, y: Tensor) -> Tensor:
    wrong = criterion(outputs, y)
    if not isinstance(wrong, Tensor) or wrong.shape != outputs.shape[:1] or wrong.dtype != torch.bool:
        raise UserError(f"criterion must return a bool for each of {len(outputs)} examples, it returned {shown(wrong)}")
    return wrong | ~_finite(outputs)


def _finite(outputs: Tensor) -> Tensor:
    """Which outputs are finite. (B, ...) -> (B,) bool."""
    finite: Tensor = torch.linalg.vector_norm(outputs.reshape(len(outputs), -1), torch.inf, dim=1) < torch.inf
    return finite


def logit_margin(logits: Tensor, y: Tensor) -> Tensor:
    """``z_y - max_{k≠y} z_k``: negative where the example is misclassified. (B, C), (B,) -> (B,)."""
    # The true class is masked with -inf: a mask of zeros picks it again where all other logits are negative.
    return gather_class(logits, y) - mask_class(logits, y).amax(1)


def cw_loss(logits: Tensor, y: Tensor, confidence: float = 0.0) -> Tensor:
    """``-max(z_y - max_{k≠y} z_k, -κ)`` (f_6 of Carlini and Wagner 2017, untargeted); κ is ``confidence``.

    ``logits`` (B, C) and labels ``y`` (B,) give (B,).
    """
    return -logit_margin(logits, y).clamp_min(-confidence)


def dlr_loss(logits: Tensor, y: Tensor) -> Tensor:
    """``-(z_y - max_{k≠y} z_k) / (z_π1 - z_π3 + 1e-12)`` (Croce and Hein 2020). (B, C), (B,) -> (B,).

    Raises:
        UserError: with fewer than 3 classes, where it is undefined.
    """
    if logits.shape[1] < 3:
        raise UserError(f"the DLR loss needs at least 3 classes, this model has {logits.shape[1]}; use loss='cw' instead")
    top = logits.topk(3, dim=1).values
    return -logit_margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr_loss(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """``-(z_y - z_t) / (z_π1 - (z_π3 + z_π4)/2 + 1e-12)`` (Croce and Hein 2020). (B, C), (B,), (B,) -> (B,).

    Raises:
        UserError: with fewer than 4 classes, where it is undefined.
    """
    if logits.shape[1] < 4:
        raise UserError(f"the targeted DLR loss needs at least 4 classes, this model has {logits.shape[1]}; use 'ce' or 'cw'")
    top = logits.topk(4, dim=1).values
    spread = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12
    return (gather_class(logits, target) - gather_class(logits, y)) / spread


def soft_logit_margin(logits: Tensor, y: Tensor) -> Tensor:
    """``log Σ_{k≠y} exp z_k - z_y`` (Ding et al. 2020, MMA). (B, C), (B,) -> (B,)."""
    return mask_class(logits, y).logsumexp(1) - gather_class(logits, y)


def evade_loss(logits: Tensor, y: Tensor) -> Tensor:
    """``max_{k≠y, k<K} z_k - max(z_y, z_K)``: positive where the input is misclassified and not recognised as adversarial.

    Our construction, for models whose last output K is the class of adversarial inputs. (B, K + 1), (B,) -> (B,).

    Raises:
        UserError: with fewer than 2 classes besides the last.
    """
    if logits.shape[1] < 3:
        raise UserError(f"a model with a class of adversarial inputs needs at least 3 outputs, this one has {logits.shape[1]}")
    return mask_class(logits[:, :-1], y).amax(1) - torch.maximum(gather_class(logits, y), logits[:, -1])


@dataclass(frozen=True)
class AttackLoss:
    """What an attack maximises: larger is more adversarial. Called with logits (B, C), labels (B,) and the reference: (B,).

    It knows what it is to succeed, too: so a whole task, such as regression, is one loss with its criterion, see
    :func:`make_goal`. Outputs and labels may then have other shapes, (B, ...).

    Attributes:
        function: of logits, labels and, if there is one, the reference.
        reference: what it compares with besides the labels: nothing, the logits of the clean inputs (B, C), a target class
            for each example (B,), or what the attack is given to compare with, (B, C).
        prepare: what is made of the logits of the clean inputs, once, before the function is given them; None to leave them.
        criterion: which outputs are mistakes.
        extra_outputs: how many of the last outputs are no class of a label: 1 for a class of adversarial inputs.
        of_classes: whether labels are numbers of classes, and outputs logits of them.
        min_classes: with fewer classes it is not defined.
    """

    function: Callable[..., Tensor]
    reference: Literal["none", "clean", "target", "given"] = "none"
    criterion: Criterion = fooled
    extra_outputs: int = 0
    of_classes: bool = True
    min_classes: int = 2
    prepare: Callable[[Tensor], Tensor] | None = None

    def __str__(self) -> str:
        """The function, in words that are the same in every process."""
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        return f"{getattr(self.function, '__module__', '')}:{name}"

    @property
    def is_own(self) -> bool:
        """Whether it is the caller's, and none of ``ATTACK_LOSSES``."""
        return all(self.function is not loss.function for loss in ATTACK_LOSSES.values())

    def __call__(self, logits: Tensor, y: Tensor, reference: Tensor | None = None) -> Tensor:
        """Return the loss of each example, (B,)."""
        value: Tensor = self.function(logits, y) if self.reference == "none" else self.function(logits, y, reference)
        if not isinstance(value, Tensor) or value.shape != logits.shape[:1]:
            raise UserError(f"the loss of an attack must return a tensor of shape ({len(logits)},), it returned {shown(value)}")
        return value


LossLike: TypeAlias = str | AttackLoss | Callable[[Tensor, Tensor], Tensor]


def _kl(logits: Tensor, y: Tensor, log_p: Tensor) -> Tensor:
    if logits.shape != log_p.shape:
        raise UserError(f"the reference has {log_p.shape[1]} classes, the model {logits.shape[1]}")
    return F.kl_div(log_softmax(logits), log_p, reduction="none", log_target=True).sum(1)


def _soft_cross_entropy(logits: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits, targets)


def _squared_distance(logits: Tensor, y: Tensor, p: Tensor) -> Tensor:
    return (_probabilities(logits) - p).square().sum(1)


def _probabilities(logits: Tensor) -> Tensor:
    return at_least_float32(logits).softmax(1)


def _targeted_ce(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return -cross_entropy(logits, target)


def _targeted_cw(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return gather_class(logits, target) - gather_class(logits, y)


def _targeted_evade(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return gather_class(logits, target) - torch.maximum(gather_class(logits, y), logits[:, -1])


ATTACK_LOSSES: dict[str, AttackLoss] = {
    "ce": AttackLoss(cross_entropy),
    "kl": AttackLoss(_kl, "clean", prepare=log_softmax),
    "soft-ce": AttackLoss(_soft_cross_entropy, "given"),
    "lse": AttackLoss(_squared_distance, "clean", prepare=_probabilities),
    "cw": AttackLoss(cw_loss),
    "dlr": AttackLoss(dlr_loss, min_classes=3),
    "slm": AttackLoss(soft_logit_margin),
    "evade": AttackLoss(evade_loss, criterion=evades, extra_outputs=1),
    "ce-targeted": AttackLoss(_targeted_ce, "target"),
    "cw-targeted": AttackLoss(_targeted_cw, "target"),
    "dlr-targeted": AttackLoss(targeted_dlr_loss, "target", min_classes=4),
    "evade-targeted": AttackLoss(_targeted_evade, "target", evades, extra_outputs=1),
}


def find_attack_loss(loss: LossLike, confidence: float = 0.0) -> AttackLoss:
    """Return a loss by its name, or a callable as a loss.

    Args:
        loss: ``"ce"`` cross-entropy; ``"kl"`` KL from the clean prediction (TRADES); ``"soft-ce"`` cross-entropy with
            probabilities (B, C) that are given as ``reference``; ``"lse"`` squared distance of probabilities from the clean
            ones (SCORE); ``"cw"`` Carlini-Wagner margin; ``"dlr"`` difference of logits ratio (AutoAttack); ``"slm"`` soft
            logit margin (MMA); ``"evade"`` margin against the label and the class of adversarial inputs together; with a
            target class ``"ce-targeted"``, ``"cw-targeted"`` (``z_t - z_y``), ``"dlr-targeted"`` (AutoAttack),
            ``"evade-targeted"``. Or a function of logits (B, C) and labels (B,) that returns (B,), or an :class:`AttackLoss`.
        confidence: κ of the margin, for ``"cw"`` only.

    Raises:
        UserError: if the name is unknown.
    """
    if isinstance(loss, AttackLoss):
        return loss
    if not isinstance(loss, str):
        check_callable("loss", loss, "logits", "y")
        return AttackLoss(loss)
    if loss == "cw" and confidence:
        return AttackLoss(partial(cw_loss, confidence=confidence))
    if loss not in ATTACK_LOSSES:
        raise unknown_name("attack loss", loss, ATTACK_LOSSES)
    return ATTACK_LOSSES[loss]


def make_goal(criterion: Criterion | None = None, loss: LossLike | None = None) -> AttackLoss:
    """Return what attacks on a task are after.

    Args:
        criterion: which outputs are mistakes; None for misclassification. With a loss besides, labels and outputs may be
            anything; without, or with :func:`fooled` or :func:`evades`, they are of classes.
        loss: what to maximise; None leaves each attack its own.

    Raises:
        UserError: for a criterion that is no function, and a loss that needs a target or the clean outputs.
    """
    goal = ATTACK_LOSSES["evade" if criterion is evades else "cw"] if loss is None else find_attack_loss(loss)
    if goal.reference != "none":
        raise UserError("the loss of a task is a function of outputs and labels alone")
    if criterion is None:
        return goal
    known = criterion in (fooled, evades)
    checked = checked_criterion(criterion)
    return replace(goal, criterion=checked, extra_outputs=int(criterion is evades), of_classes=known or not goal.is_own)


def loss_for(loss: LossLike, goal: AttackLoss, n_classes: int) -> tuple[LossLike, str]:
    """Return what an attack with this loss maximises on a task, and what was put in place of what is not defined there.

    Args:
        loss: of the attack; a loss of the caller's, and not one by name, stays as it is.
        goal: of the task, see :func:`make_goal`.
        n_classes: number of the model's outputs.

    Raises:
        UserError: for a loss by name that is of classes, such as one with targets, where the task has none.
    """
    if not isinstance(loss, str):
        return loss, ""
    known = find_attack_loss(loss)
    if goal.is_own and known.reference == "none":
        return goal, f"the loss of the caller in place of {loss!r}"
    if not goal.of_classes:
        what = f"the loss {loss!r} goes by classes, which a task with its own criterion and loss does not have"
        raise UserError(f"{what}; leave out apgd-t, fab-t and the like: attacks=['apgd-ce', 'square'], or suite='quick'")
    if goal.extra_outputs and loss in ("ce", "cw", "dlr"):
        return "evade", ""
    if goal.extra_outputs and loss in ("ce-targeted", "cw-targeted", "dlr-targeted"):
        return "evade-targeted", ""
    if not goal.extra_outputs and n_classes < known.min_classes:
        replaced = loss.replace("dlr", "cw")
        return replaced, f"the loss {replaced!r} in place of {loss!r}, which needs {known.min_classes} classes"
    return loss, ""
