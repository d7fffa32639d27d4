"""What a method is made of, and what follows from that before it sees a batch."""

from collections.abc import Callable, Collection, Sequence
from copy import copy
from functools import partial
from typing import Any, Self

from torch import Tensor, nn

from hauberk.core.arguments import check_callable, checked, shown
from hauberk.core.errors import UserError
from hauberk.core.imports import without_addresses
from hauberk.core.numerics import Precision
from hauberk.core.step_context import ADVERSARIAL, CLEAN, BurnIn, Schedule, StepContext, check_burn_in
from hauberk.fastpath.precision import PrecisionPolicy, make_policy
from hauberk.methods.inner_attacks.batch_attack import as_inner_attack
from hauberk.methods.networks import MovingAverage, Teacher
from hauberk.objectives.cross_entropy import AT
from hauberk.threat import ThreatModel, as_threat, threats_of

FROM_PYTHON = "python:"  # in front of what stands for an object that has no import path


class MethodParts(nn.Module):
    """An attack, an objective, a weighting, a weight perturbation and targets that fit together; see :class:`Method`."""

    @checked
    def __init__(
        self,
        threat: "ThreatModel | Sequence[ThreatModel]",  # as_threat checks it
        attack: Any = None,
        objective: Callable[[StepContext], Any] | None = None,
        weighting: Callable[[StepContext], Tensor] | None = None,
        weight_perturbation: Any = None,
        *,
        targets: Callable[[StepContext], Tensor] | None = None,
        label_smoothing: float = 0.0,
        teacher: nn.Module | None = None,
        name: str = "custom",
        settings: dict[str, Any] | None = None,
        seed: int = 0,
        precision: Precision = "model",
        compiled: bool = False,
        burn_in: BurnIn | None = None,
        passes: Sequence[str] = ("attack",),
    ):
        super().__init__()
        self.threat, self.name, self.seed = as_threat(threat), name, seed
        parts = {"attack": attack, "objective": objective, "weighting": weighting, "weight_perturbation": weight_perturbation}
        parts |= {"targets": targets, "label_smoothing": label_smoothing or None, "teacher": teacher}
        given = {key: part for key, part in parts.items() if part is not None}
        for key in ("objective", "weighting", "targets"):
            if key in given:
                check_callable(key, given[key], "context")
        ways = (getattr(weight_perturbation, name, None) for name in ("search", "direction"))
        if weight_perturbation is not None and not any(map(callable, ways)):
            raise UserError(
                f"weight_perturbation is hb.AWP or has its direction and warmup; {shown(weight_perturbation)} has not"
            )
        if burn_in is not None:
            check_burn_in(burn_in)
        self.settings: dict[str, Any] = {"seed": seed, **given} if settings is None else settings
        self.inner = as_inner_attack(attack)
        self.objective = AT() if objective is None else objective
        self.weighting = weighting
        self.weight_perturbation = weight_perturbation
        self.targets, self.label_smoothing = targets, label_smoothing
        self.teacher = None if teacher is None else Teacher(teacher)
        decays = sorted({part.ema_decay for part in self.parts if hasattr(part, "ema_decay")})
        if len(decays) > 1:
            raise UserError(f"{name} has parts with moving averages of decays {decays[0]} and {decays[1]}; it can have one")
        self.average = MovingAverage(decays[0]) if decays else None
        if teacher is None and any(getattr(part, "needs_teacher", False) for part in self.parts):
            raise UserError(f"{name} learns from another network: give teacher=, a network or the folder of a run (--teacher)")
        self.precision = make_policy(precision, compiled)  # None: all passes go through the model
        self.schedule = Schedule()
        own = getattr(weighting, "burn_in", 0)
        self.burn_in: BurnIn = own if burn_in is None or weighting is None else burn_in
        self.burn_in_is_chosen = isinstance(self.burn_in, int)
        computed = frozenset(getattr(self.objective, "computes", ()))
        self.needs = frozenset(getattr(self.objective, "needs", CLEAN | ADVERSARIAL)) | (
            getattr(weighting, "needs", frozenset()) - computed
        )
        self.passes_before, self.passes_of_loss, self.passes_after = split_passes(passes, self.needs, self.inner is not None)
        self._calls = 0
        self._last: StepContext | None = None  # the batch that the passes after the optimiser's step will see
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")
        if targets is not None or label_smoothing:
            self.require_soft_labels()
            if not getattr(self.objective, "looks_at_labels", True):
                raise UserError(f"the loss of {name} does not look at labels, so there is nothing to soften")
        if self.inner is None and self.needs >= ADVERSARIAL:
            raise UserError(f"{name} needs logits of adversarial inputs, but has no attack")
        if (
            len(threats_of(self.threat)) > 1
            and self.sees_worst_cases
            and not getattr(self.inner, "takes_several_threats", False)
        ):
            raise UserError(f"{name} trains under one threat model at a time, and there are {self.threat}")
        if weighting is not None and not self.sees_worst_cases:
            raise UserError(f"{name} does not attack, so there is nothing to weigh by")
        if weight_perturbation is not None and self.n_replays > 1:
            raise UserError(f"{name}: free training takes its input gradient from the backward pass that '+awp' makes its own")

    def require_soft_labels(self) -> None:
        """Refuse, by a UserError, probabilities of the classes where the loss is of labels."""
        if not getattr(self.objective, "takes_targets", True):
            raise UserError(f"the loss of {self.name} is of labels, and not defined for probabilities of the classes")

    @property
    def parts(self) -> tuple[Any, ...]:
        """What it is made of."""
        return self.inner, self.objective, self.weighting, self.weight_perturbation, self.targets

    def tell(self, what: str, about: Any) -> None:
        """Call the parts that have a method of this name."""
        for part in (*self.parts, self.average):
            getattr(part, what, nothing)(about)

    @property
    def attack(self) -> Any:
        """The inner maximisation: its attack where there is one behind it, or what was given, or None."""
        return getattr(self.inner, "attack", self.inner)

    @property
    def sees_worst_cases(self) -> bool:
        """Whether it trains on worst cases, which an attack finds or the objective bounds."""
        return self.inner is not None or frozenset(getattr(self.objective, "computes", ())) >= ADVERSARIAL

    @property
    def extra_outputs(self) -> int:
        """Outputs the model needs besides the classes of the data."""
        return int(getattr(self.objective, "extra_outputs", 0))

    @property
    def n_replays(self) -> int:
        """Times each batch is to be used in a row."""
        return int(getattr(self.inner, "n_replays", 1))

    def train(self, mode: bool = True) -> Self:
        """Leave the mode of the parts (a teacher in evaluation mode) as it is."""
        return self

    def with_schedule(self, epochs: int, first_drop: int | None = None) -> Self:
        """Return the method with its schedules fitted to a training of so many epochs, and nothing remembered.

        Args:
            epochs: of the whole training.
            first_drop: 0-based epoch at which the learning rate first drops; by default after three quarters of the training,
                as ``hb.train`` takes it where the rate never drops.

        Raises:
            UserError: if the burn-in, or the warm-up of the weight perturbation, would last as long as the training, so that
                nothing would ever be reweighted or perturbed.
        """
        fitted = copy(self)
        fitted._modules = dict(self._modules)
        for name in ("inner", "objective", "weighting", "targets", "average"):
            part = getattr(self, name)
            setattr(fitted, name, getattr(part, "fresh", partial(same, part))())
        fitted._last = None
        fitted.schedule = Schedule(epochs, int(0.75 * epochs) if first_drop is None else first_drop, known=True)
        fitted.precision = self.precision and PrecisionPolicy(self.precision.precision, self.precision.compiled)
        if fitted.burn_in_epochs >= epochs:
            raise UserError(
                f"the burn-in of {self.name} ends with epoch {fitted.burn_in_epochs}, the training with {epochs}: nothing "
                "would be reweighted; set burn_in, or milestones within the training"
            )
        if self.weight_perturbation is not None and self.weight_perturbation.warmup >= epochs:
            raise UserError(
                f"the warm-up of {self.name} ends with epoch {self.weight_perturbation.warmup}, the training with {epochs}: no "
                "weight would be perturbed; set awp_warmup"
            )
        return fitted

    @property
    def first_full_epoch(self) -> int:
        """First epoch, from 0, in which the method is itself: weights and perturbations of the weights are all on."""
        return max(self.burn_in_epochs, getattr(self.weight_perturbation, "warmup", 0))

    @property
    def burn_in_epochs(self) -> int:
        """Number of epochs with weights 1; 0 without a weighting."""
        return self.schedule.epochs_of(self.burn_in)

    def local_state(self) -> dict[str, Any]:
        """Return what each of several processes has of its own (free training's carried perturbation)."""
        return dict(getattr(self.inner, "local_state", dict)())

    def load_local_state(self, state: dict[str, Any]) -> None:
        """Go on from what this process had of its own; {} to begin anew."""
        getattr(self.inner, "load_local_state", nothing)(state)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for a card; ``method(**card, threat=...)`` makes the same again, if its parts have names."""
        return {"name": self.name, **{key: _plain(value) for key, value in self.settings.items()}}

    def __repr__(self) -> str:
        burn_in = f", burn_in={self.burn_in_epochs}" if self.weighting is not None else ""
        return f"method({self.name!r}, {self.threat}{burn_in})"


def in_order(kinds: Collection[str]) -> tuple[str, ...]:
    """Return kinds of passes, the clean one first."""
    return tuple(name for name in ("clean", "adversarial") if name in kinds)


def split_passes(order: Sequence[str], needs: frozenset[str], attacks: bool) -> tuple[tuple[str, ...], ...]:
    """Return the passes before the attack, those after it, with what is needed besides, and those after the step."""
    events = tuple(order) if "attack" in order else ("attack", *order)
    attack, step = events.index("attack"), events.index("step") if "step" in events else len(events)
    before, loss, after = events[:attack], events[attack + 1 : step], events[step + 1 :]
    kinds = CLEAN | ADVERSARIAL if attacks else CLEAN
    if not (CLEAN.issuperset(before) and kinds.issuperset(loss + after)):
        raise UserError(
            f"passes are 'clean' and, after 'attack', 'adversarial', with one 'step' at most, not {', '.join(order)}"
        )
    return before, (*in_order(needs - {*before, *loss}), *loss), after


def same(part: Any) -> Any:
    """Stand in for the function that makes a part anew, where nothing is remembered."""
    return part


def nothing(argument: Any) -> None:
    """Stand in for a function that a part need not have."""


def _plain(value: Any) -> Any:
    """Return what stands for a setting in a card: itself, an import path, or the description of what only Python can make."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, str | int | float | None):
        return value
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}:{value.__qualname__}"
    if isinstance(value, nn.Module) or "__repr__" not in vars(type(value)):
        return f"{FROM_PYTHON}{type(value).__module__}:{type(value).__qualname__}"
    return f"{FROM_PYTHON}{without_addresses(str(value))}"
