"""What the parts of a method are handed, and what an objective is and returns."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hauberk.core.arguments import check_fields, unchecked
from hauberk.core.device import constant
from hauberk.core.distributed import SINGLE_PROCESS, World
from hauberk.core.errors import UserError
from hauberk.core.random import ExampleRng


@dataclass(frozen=True)
class Schedule:
    """How long the training is, for what changes with the epoch. The defaults are the MAIL paper's.

    Attributes:
        epochs: of the whole training.
        first_drop: 0-based epoch at which the learning rate first drops.
        known: whether the caller has said so.
    """

    epochs: int = 100
    first_drop: int = 74
    known: bool = False

    def epochs_of(self, burn_in: "BurnIn") -> int:
        """Return the number of epochs of a burn-in, which may be a part of the training, or end where the rate first drops."""
        if burn_in == "first-drop":
            return self.first_drop
        return math.ceil(burn_in * self.epochs - 1e-9) if burn_in < 1 else int(burn_in)


@dataclass(eq=False)
class StepContext:
    """One batch, or this process's part of one, on its way through a method; filled as the step goes on.

    Attributes:
        model: being trained, in the mode the loss should see.
        x: clean inputs, (b, ...).
        y: labels, (b,) int64.
        threat: the threat model of this step, or the :class:`~hauberk.threat.ThreatUnion` of several.
        rng: random draws keyed by example.
        epoch: 0-based.
        index: which examples these are, (b,) int64, or None.
        schedule: of the training.
        burn_in: number of epochs with weights 1.
        radii: radius of the attack around each example as a part of ε, (b,), where a part has set one in its ``before_step``;
            None for ε. Attacks of :mod:`hauberk.attacks` keep to it; one of your own has to.
        largest_radius: a bound of ``radii``; where it is above 1, x' may leave the threat model.
        attack: the :class:`~hauberk.attacks.AttackResult` of the attack; None before it, and where it is a function that
            returns inputs only.
        x_adv: adversarial inputs, (b, ...); None before the attack, and for methods without one.
        x_adv_by_threat: those under each of several threat models, (b, ...) each, where the attack looked under several.
        x_inverse: inverse adversarial inputs, (b, ...), of the least loss nearby, where the attack looked for such.
        logits: of the clean inputs, (b, C), with a graph; None unless the objective or the weighting needs them.
        logits_adv: of the adversarial inputs, likewise.
        robust: ℓ of the objective, (b,), without a graph, for weightings by the loss; None before the objective is called.
        measure: what the weights are made from, of the whole batch of all processes, (B,); None without.
        all_weights: weights of the whole batch, (B,); None without.
        world: the processes that share the batch.
        sizes: b of each.
        precision: the :class:`~hauberk.fastpath.precision.PrecisionPolicy` of the passes, None where all go through the model.
        return_clean_logits: whether the attack should look at the clean inputs too, for the weighting.
        eps_scale: how far ε has grown in its warm-up; ``threat`` has ε times this already.
        targets: probabilities of the classes in place of labels, (b, C), for the attack's cross-entropy and the loss; or None.
        label_smoothing: α of the targets of the loss.
        more_forwards: passes of the batch that parts have made by :meth:`forward` and :meth:`ask`.
        more_backwards: backward passes to the input, likewise.
        weights_perturbed: whether the loss is being taken at perturbed weights, the step's second time or later, so that what
            counts steps does not count twice.
        done: part of the training that is done before this step, in [0, 1), for what changes with each step.
        teacher: another network to learn from, which is not trained; None without.
        average: moving average of the network that is trained, for methods with a part that has an ``ema_decay``; or None.
        answers: what :meth:`ask` has found.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Any
    rng: ExampleRng
    epoch: int = 0
    index: Tensor | None = None
    schedule: Schedule = Schedule()
    burn_in: int = 0
    radii: Tensor | None = None
    largest_radius: float = 1.0
    attack: Any = None
    x_adv: Tensor | None = None
    x_adv_by_threat: tuple[Tensor, ...] = ()
    x_inverse: Tensor | None = None
    logits: Tensor | None = None
    logits_adv: Tensor | None = None
    robust: Tensor | None = None
    measure: Tensor | None = None
    all_weights: Tensor | None = None
    world: World = SINGLE_PROCESS
    sizes: Sequence[int] = ()
    precision: Any = None
    return_clean_logits: bool = False
    eps_scale: float = 1.0
    targets: Tensor | None = None
    label_smoothing: float = 0.0
    more_forwards: float = 0
    more_backwards: float = 0
    weights_perturbed: bool = False
    done: float = 0.0
    teacher: nn.Module | None = None
    average: nn.Module | None = None
    answers: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    @property
    def progress(self) -> float:
        """Part of the training that is done at the end of this epoch, in (0, 1]."""
        return (self.epoch + 1) / self.schedule.epochs

    def attack_model(self, mode: str) -> AbstractContextManager[nn.Module]:
        """Lend what an attack in a mode should look at: the model, or a faster copy of it."""
        return nullcontext(self.model) if self.precision is None else self.precision.attack_model(self.model, self.x, mode)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (b', C), at least float32 and with a graph, of other inputs (b', ...) than x and x', in a pass more."""
        with self.autocast():
            logits: Tensor = self.model(x)
        whole, rest = divmod(len(x), len(self.x))
        self.more_forwards += whole if not rest else len(x) / len(self.x)
        return logits.float() if logits.element_size() < 4 else logits

    def ask(self, whom: Literal["teacher", "average"], at: Literal["clean", "adversarial"]) -> Tensor:
        """Return logits (b, C) of the teacher or of the moving average at x or x', without a graph.

        The network is asked once in a step, in evaluation mode; the pass is counted.

        Raises:
            UserError: if the method has no such network, or one with other classes than the network that is trained.
        """
        network: nn.Module | None = getattr(self, whom)
        x = self.x if at == "clean" else self.x_adv
        if network is None or x is None:
            raise UserError(f"this method has no {whom if network is None else 'adversarial inputs'} to ask")
        if (whom, at) not in self.answers:
            self.answers[whom, at] = self.ask_at(network, x)
        found = self.answers[whom, at]
        own = self.logits if self.logits is not None else self.logits_adv
        if own is not None and own.shape != found.shape:
            raise UserError(f"the {whom} has {found.shape[1]} outputs, the network {own.shape[1]}")
        return found.to(own.dtype) if own is not None else found

    def ask_at(self, network: nn.Module, x: Tensor) -> Tensor:
        """Return logits (b, C) of another network at inputs (b, ...), at least float32, without a graph, in a pass more."""
        with torch.no_grad(), self.autocast():
            logits: Tensor = network(x)
        self.more_forwards += 1
        return logits.float() if logits.element_size() < 4 else logits

    @property
    def loss_targets(self) -> Tensor | None:
        """Probabilities of the classes that the loss compares with, (b, C): ``(1 - α)·t + α/C``; None for labels as they are.

        t are ``targets``, or 1 for the label and 0 for the other classes. Logits have been computed.
        """
        if self.targets is None and not self.label_smoothing:
            return None
        logits = self.logits if self.logits is not None else self.logits_adv
        assert logits is not None
        targets = F.one_hot(self.y, logits.shape[1]) if self.targets is None else self.targets
        return (1 - self.label_smoothing) * targets.to(logits.dtype) + self.label_smoothing / logits.shape[1]

    def autocast(self) -> AbstractContextManager[object]:
        """Run the passes inside the block in lower precision, where that is wanted."""
        return nullcontext() if self.precision is None else self.precision.autocast(self.x)

    def all_gather(self, values: Tensor) -> Tensor:
        """Put the rows of all processes, (b, ...) each, one behind the other: (B, ...)."""
        return values if self.world.size == 1 else self.world.all_gather_rows(values, self.sizes)

    def take_local(self, values: Tensor) -> Tensor:
        """Take this process's rows, (b, ...), out of those of all, (B, ...)."""
        return values if self.world.size == 1 else self.world.take_local(values, self.sizes)

    def mean_one(self, weights: Tensor) -> Tensor:
        """Scale weights (b,) so that their mean over the whole batch of all processes is 1; ones where all are 0."""
        return self.take_local(mean_one(self.all_gather(weights)))

    def mean(self, terms: Tensor) -> Tensor:
        """Return what averaged over the processes, as DDP does with gradients, is the mean over the whole batch."""
        return terms.mean() if self.world.size == 1 else terms.sum() * (self.world.size / sum(self.sizes))


_TENTHS = torch.tensor([0.1, 0.5, 0.9])

PresetName: TypeAlias = Literal["paper", "official"]
BurnIn: TypeAlias = int | float | Literal["first-drop"]

CLEAN, ADVERSARIAL = frozenset({"clean"}), frozenset({"adversarial"})


class LossTerms(NamedTuple):
    """Per-example terms of an objective; the loss is ``mean(weights * robust + regularizer)``.

    Attributes:
        robust: ℓ, (B,), what instance reweighting multiplies.
        regularizer: r, (B,), what it leaves alone.
    """

    robust: Tensor
    regularizer: Tensor


class Objective:
    """A loss of logits and labels; its hyperparameters are the fields of its dataclass.

    Anything callable with a :class:`~hauberk.core.step_context.StepContext` that returns the two terms is as good, a module
    too.

    Attributes:
        needs: which logits are to be computed: "clean", "adversarial" or both.
        computes: which logits it computes itself and puts into the context, for weightings and metrics.
        equation: what it computes of an example, in one line; behind a semicolon, what its names mean.
        extra_outputs: outputs the model needs besides the classes of the data.
        function: of logits, logits_adv, labels and the hyperparameters; and of ``targets``, where it takes probabilities of the
            classes, (B, C), in place of labels.
    """

    needs: ClassVar[frozenset[str]] = CLEAN | ADVERSARIAL
    computes: ClassVar[frozenset[str]] = frozenset()
    equation: str
    extra_outputs: ClassVar[int] = 0
    function: ClassVar[Callable[..., LossTerms]]

    def __call__(self, context: StepContext) -> LossTerms:
        """Return the terms of a batch whose logits have been computed."""
        targets = context.loss_targets
        soft = {} if targets is None else {"targets": targets}
        return unchecked(type(self).function)(context.logits, context.logits_adv, context.y, **vars(self), **soft)

    @property
    def takes_targets(self) -> bool:
        """Whether the loss is defined for probabilities of the classes in place of labels."""
        function = getattr(type(self), "function", None)
        return function is not None and "targets" in (unchecked(function).__kwdefaults__ or {})

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value in vars(self).items():
            if isinstance(value, int | float) and value < 0:
                raise UserError(f"{name} must not be negative, got {value!r}")


def check_burn_in(burn_in: BurnIn) -> None:
    """Refuse, by a UserError, a negative burn-in, and a part of the training that is no part of it."""
    if burn_in != "first-drop" and (burn_in < 0 or (burn_in > 1 and burn_in != int(burn_in))):
        raise UserError(f"burn_in must be a number of epochs, or a part of the training from 0 to 1, got {burn_in}")


def is_official(preset: PresetName) -> bool:
    """Whether a preset is ``"official"``; raises UserError if it is not ``"paper"`` either."""
    if preset not in ("paper", "official"):
        raise UserError(f"preset is 'paper' or 'official', not {preset!r}")
    return preset == "official"


class MeasuredWeighting:
    """A weighting that measures each example and makes the weights from the measures of the whole batch.

    Attributes:
        burn_in: number of epochs with weights 1, so the 0-based first reweighted epoch; a number below 1, such as 0.5: that
            part of the training; or "first-drop": until the learning rate first drops.
    """

    burn_in: BurnIn

    def __post_init__(self) -> None:
        check_fields(self)
        check_burn_in(self.burn_in)

    def measured(self, context: StepContext) -> Tensor:
        """Measure this process's part of the batch, (b,)."""
        raise NotImplementedError

    def weights(self, measure: Tensor, context: StepContext) -> Tensor:
        """Turn the measures of the whole batch (B,) into weights (B,)."""
        raise NotImplementedError

    def __call__(self, context: StepContext) -> Tensor:
        """Return weights (b,); their mean over the whole batch of all processes is 1, unless the preset says otherwise."""
        context.measure = context.all_gather(self.measured(context))
        context.all_weights = self.weights(context.measure, context)
        return context.take_local(context.all_weights)


def mean_one(weights: Tensor) -> Tensor:
    """Scale weights to mean 1: ``ω_i = M · w_i / Σ_j w_j`` (MAIL paper, Algorithm 1, line 11).

    ``weights`` (B,), not negative, give (B,): ones where all are 0.
    """
    mean = weights.mean()
    return torch.where(mean > 0, weights / mean.clamp_min(torch.finfo(weights.dtype).tiny), torch.ones_like(weights))


@torch.no_grad()
def effective_size(weights: Tensor) -> Tensor:
    """Kish's effective sample size as a fraction of the batch: ``(Σω)² / (B·Σω²)``; 1 for equal weights.

    Weights (B,) give a scalar; those of several batches, (M, B), give (M,).
    """
    size = weights.shape[-1] * weights.square().sum(-1)
    return weights.sum(-1).square() / size.clamp_min(torch.finfo(weights.dtype).tiny)


@torch.no_grad()
def summary(weights: Tensor, measure: Tensor | None) -> dict[str, Tensor]:
    """Summarise the weights of a batch, and the measure they were made from, without host synchronisation.

    Args:
        weights: ω, (B,); or (M, B), of several batches.
        measure: margins or step counts, likewise, or None for equal weights.

    Returns:
        Scalars, or (M,) each: effective size, 10 %, 50 % and 90 % quantiles of weights and measure.
    """
    named = {name: values.float() for name, values in (("weight", weights), ("measure", measure)) if values is not None}
    tenths = constant(_TENTHS, torch.float32, weights.device)
    found = {"effective_size": effective_size(weights)}
    for name, quantiles in zip(named, torch.quantile(torch.stack(list(named.values())), tenths, dim=-1).unbind(1), strict=True):
        found |= {f"{name}_q{tenth}": value for tenth, value in zip((10, 50, 90), quantiles, strict=True)}
    return found
