"""A method bound to a threat model: what runs in the training loop."""

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hauberk.attacks import AttackResult
from hauberk.attacks.frozen_model import check_module, checked_first_pass, kept_buffers
from hauberk.core.arguments import check_callable, checked, shown
from hauberk.core.device import constant
from hauberk.core.distributed import SINGLE_PROCESS, World, get_world, running_statistics
from hauberk.core.errors import UserError, in_one_line
from hauberk.core.numerics import Precision, float32_mode
from hauberk.core.random import ExampleRng
from hauberk.core.step_context import ADVERSARIAL, CLEAN, BurnIn, Schedule, StepContext, check_burn_in
from hauberk.fastpath.precision import PrecisionPolicy, make_policy
from hauberk.methods.awp import applied, gradient_surrogate
from hauberk.methods.inner import InnerAttack, as_inner_attack
from hauberk.methods.networks import MovingAverage, Teacher
from hauberk.methods.output import Output
from hauberk.objectives.cross_entropy import AT
from hauberk.objectives.functional import at_least_float32
from hauberk.threat import ThreatModel, as_threat, threats_of
from hauberk.threat.model import check_batch, check_inputs

FROM_PYTHON = "python:"  # in front of what stands for an object that has no import path


class Method(nn.Module):
    """An attack, an objective, a weighting and a weight perturbation; call it on a batch in any training loop.

    ``loss = mean(c_y · (ω · ℓ + r))``, ℓ and r from the objective, ω from the weighting, at adversarial inputs from the attack.
    Made by :func:`hauberk.method` from a name, or of its parts. Parts that are modules (a teacher, a moving average) are
    submodules: moved by ``to``, kept in ``state_dict``; the mode of each is left to its maker. Its own state is how many
    batches it has seen, which keys its random starts, and what its attack remembers (MMA's radii).

    Args:
        threat: what the adversary may do; several threat models, their union, where the attack has ``takes_several_threats``,
            or there is none.
        attack: an attack of :mod:`hauberk.attacks`; or a callable of the :class:`~hauberk.core.step_context.StepContext` that
            returns adversarial inputs (B, ...) inside the threat model, or inside ``attack.reach(threat)`` where it has such a
            method, or an ``AttackResult``; None for standard training.
        objective: a callable of the context that returns (ℓ, r), (B,) each; its ``needs`` say which logits are computed
            ("clean", "adversarial"; both where it says nothing), its ``computes`` which it puts into the context itself. By
            default cross-entropy at the adversarial inputs.
        weighting: a callable of the context that returns weights (B,), which are used as they are (``context.mean_one``
            scales them); None for weights 1.
        weight_perturbation: :class:`hauberk.AWP`, :class:`hauberk.SAM`, :class:`hauberk.RWP`, or anything with their ``warmup``
            and their ``direction(model, loss, world)``, which takes the loss of the step, or ``search(model, losses,
            context)``, which calls ``losses()`` for the loss of each example, (b,), as often as it wants; None for none.
        name: of the method.
        settings: what it was made from, as plain types; by default the parts that are given.
        seed: of the random starts.
        precision: what the passes run on, see :func:`hauberk.method`.
        compiled: likewise.
        targets: a callable of the context that returns probabilities of the classes, (B, C), for the attack's cross-entropy and
            the loss to compare with in place of the labels; None for the labels.
        label_smoothing: α, in [0, 1), of the loss, as in ``torch.nn.CrossEntropyLoss``; the attack keeps the labels.
        teacher: a trained network to learn from, for parts that ask it (``context.ask("teacher", "clean")``). A frozen copy of
            it in evaluation mode moves with the method, and takes the device of the inputs; it is not in ``state_dict``.
        burn_in: number of epochs with weights 1, below 1 a part of the training, or "first-drop"; by default the weighting's
            own, 0 for a function.
        passes: order of a step: "attack"; "clean" and "adversarial", the passes in training mode; and "step", where the
            optimiser moves the weights. What is needed and not named comes right after the attack. A pass that is repeated,
            not needed, or behind "step" (then made by :meth:`after_step`) has no gradient: it moves BatchNorm's statistics, as
            some public code does. By default the attack, then one pass of each kind that is needed.

    Raises:
        UserError: if the parts do not fit together.
    """

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
        decays = sorted({part.ema_decay for part in self._parts if hasattr(part, "ema_decay")})
        if len(decays) > 1:
            raise UserError(f"{name} has parts with moving averages of decays {decays[0]} and {decays[1]}; it can have one")
        self.average = MovingAverage(decays[0]) if decays else None
        if teacher is None and any(getattr(part, "needs_teacher", False) for part in self._parts):
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
        self.passes_before, self.passes_of_loss, self.passes_after = _split_passes(passes, self.needs, self.inner is not None)
        self._calls = 0
        self._last: StepContext | None = None  # the batch that the passes after the optimiser's step will see
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")
        if targets is not None or label_smoothing:
            self._require_soft_labels()
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

    def _require_soft_labels(self) -> None:
        if not getattr(self.objective, "takes_targets", True):
            raise UserError(f"the loss of {self.name} is of labels, and not defined for probabilities of the classes")

    @property
    def _parts(self) -> tuple[Any, ...]:
        """What it is made of."""
        return self.inner, self.objective, self.weighting, self.weight_perturbation, self.targets

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

    def train(self, mode: bool = True) -> "Method":
        """Leave the mode of the parts (a teacher in evaluation mode) as it is."""
        return self

    def with_schedule(self, epochs: int, first_drop: int | None = None) -> "Method":
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
            setattr(fitted, name, getattr(part, "fresh", partial(_same, part))())
        fitted._last = None
        fitted.schedule = Schedule(epochs, int(0.75 * epochs) if first_drop is None else first_drop, known=True)
        fitted.precision = self.precision and PrecisionPolicy(self.precision.precision, self.precision.compiled)
        if fitted._burn_in >= epochs:
            raise UserError(
                f"the burn-in of {self.name} ends with epoch {fitted._burn_in}, the training with {epochs}: nothing would "
                "be reweighted; set burn_in, or milestones within the training"
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
        return max(self._burn_in, getattr(self.weight_perturbation, "warmup", 0))

    @property
    def _burn_in(self) -> int:
        """Number of epochs with weights 1; 0 without a weighting."""
        return self.schedule.epochs_of(self.burn_in)

    def forward(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        epoch: int | None = None,
        *,
        index: Tensor | None = None,
        class_weights: Tensor | None = None,
        rng: ExampleRng | None = None,
        eps_scale: float = 1.0,
        world: World = SINGLE_PROCESS,
        sizes: Sequence[int] | None = None,
        targets: Tensor | None = None,
        done: float | None = None,
    ) -> Output:
        """Attack a batch and compute the loss to minimise.

        Args:
            model: classifier to logits (B, C), in the mode the loss should see (``model.train()`` in training).
            x: clean inputs, (B, ...), inside the threat model's box.
            y: labels, (B,), integers of any width.
            epoch: 0-based, for burn-in, τ, λ and warm-up; 0 where none is given.
            index: (B,) int64, which examples these are, for methods that remember something about each (``mma``).
            class_weights: (C,), multiplies the whole term of each example by the weight of its class.
            rng: random draws keyed by example; by default each call draws new ones from the method's seed.
            eps_scale: attack with ε times this, for ε warm-up.
            world: processes that each have a part of the batch; see :class:`hauberk.Step`.
            sizes: how many examples each has, where that is known; otherwise they tell each other.
            targets: (B, C), probabilities of the classes in place of the labels (of mixed images, say), for the attack's
                cross-entropy and the loss; ``y`` are then the labels to count successes by.
            done: part of the training that is done before this step, for what changes with each step (ADR); by default that of
                the epochs before this one.

        Returns:
            Output, with ``loss = mean(c_y · (ω · ℓ + r))``; with several processes what gives this, averaged over them.

        Raises:
            UserError: if the inputs are not floating or the labels no class numbers; on the first call also if data, model and
                threat model do not fit together, or the model is wrapped for several processes.

        Warns:
            UserWarning: on the first call, if weights are 1 until an epoch that nobody has chosen, if something follows the
                length of a training that nobody has told, or waits for an epoch and none is given.
        """
        y = check_batch(x, y)
        self._check_more(x, epoch, index, class_weights, rng, eps_scale, targets, done)
        if targets is not None:
            self._require_soft_labels()
        if rng is None:
            places = torch.arange(len(x), device=x.device) + (world.rank << 32)
            rng = ExampleRng(self.seed, places, stage=self._calls)
        if world.size == 1:
            sizes = [len(x)]
        elif sizes is None:
            sizes = [size for (size,) in world.all_gather_ints(len(x))]
        threat = self.threat if eps_scale == 1.0 else self.threat.scaled(eps_scale)
        context = StepContext(
            model, x, y, threat, rng, epoch or 0, index, self.schedule, self._burn_in, world=world, sizes=sizes,
            precision=self.precision,
            return_clean_logits=bool(getattr(self.weighting, "needs_clean_logits", _nothing)(self.needs)),
            eps_scale=eps_scale,
            targets=targets,
            label_smoothing=self.label_smoothing,
            done=min((epoch or 0) / self.schedule.epochs, 1.0) if done is None else done,
            teacher=self.teacher,
            average=self.average,
        )  # fmt: skip
        first: AbstractContextManager[None] = nullcontext()
        if self._calls == 0:
            self._check_first_call(model, x, y, epoch)
            first = checked_first_pass(model, x, y, self.extra_outputs)
        if self.average is not None:
            self.average.bind(model)
        with first, self._float32_mode():
            out = self._step(context, class_weights)
        if self._calls == 0 and torch.is_grad_enabled() and not out.loss.requires_grad:
            raise UserError("no gradient reaches the model: it detaches its output, or has no parameters that take one")
        self._calls += 1  # now, so that a first call that was refused is checked again
        return out

    def after_step(self, model: nn.Module) -> None:
        """Make the passes that come after the optimiser's step, and tell the parts that have an ``after_step(model)`` of it.

        By all processes together: the statistics of such passes are averaged over them.
        """
        if self._last is not None:
            with self._float32_mode():
                self._look(self._last, self.passes_after, frozenset())
            self._last.world.average(running_statistics(model))
            self._last = None
        self._tell_parts("after_step", model)

    def _tell_parts(self, what: str, about: Any) -> None:
        """Call the parts that have a method of this name."""
        for part in (*self._parts, self.average):
            getattr(part, what, _nothing)(about)

    def restart(self, model: nn.Module) -> None:
        """Tell the parts that have a ``restart(model)`` that the training goes on from other weights than those it had."""
        self._tell_parts("restart", model)

    def _float32_mode(self) -> AbstractContextManager[None]:
        return float32_mode("model" if self.precision is None else self.precision.precision)

    @staticmethod
    @checked
    def _check_more(
        x: Tensor,
        epoch: int | None,
        index: Tensor | None,
        class_weights: Tensor | None,
        rng: ExampleRng | None,
        eps_scale: float,
        targets: Tensor | None,
        done: float | None,
    ) -> None:
        """Check what comes with a batch, without waiting for a device."""
        if epoch is not None and epoch < 0:
            raise UserError(f"epoch counts from 0, got {epoch}")
        if index is not None and (index.shape != x.shape[:1] or index.is_floating_point() or index.dtype == torch.bool):
            raise UserError(f"index must be integers of shape ({len(x)},), got {shown(index)}")
        if rng is not None and len(rng.keys) != len(x):
            raise UserError(f"rng has draws for {len(rng.keys)} examples, the batch has {len(x)}")
        if eps_scale < 0:
            raise UserError(f"eps_scale must not be negative, got {eps_scale}")
        if done is not None and not 0 <= done <= 1:
            raise UserError(f"done must be from 0 to 1, got {done}")
        if targets is not None and (targets.ndim != 2 or len(targets) != len(x) or not targets.is_floating_point()):
            raise UserError(f"targets must be probabilities of shape ({len(x)}, C), got {shown(targets)}")

    def _check_first_call(self, model: nn.Module, x: Tensor, y: Tensor, epoch: int | None) -> None:
        check_module(model)
        if isinstance(model, DistributedDataParallel):
            raise UserError(
                "attacks must not run through DistributedDataParallel: wrap hb.Step(model, method) in it, and call that on x, y"
            )
        if any(p.is_inference() for p in model.parameters()):
            raise UserError("a model made under torch.inference_mode cannot be trained; make it, or load it, outside")
        for threat in threats_of(self.threat):
            check_inputs(x, y, threat)
        own = next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)
        if own != x.dtype:
            raise UserError(f"the model is of {own}, the inputs of {x.dtype}; convert them with x.to({own})")
        for problem in self._unsaid(epoch):
            warnings.warn(problem, stacklevel=5)

    def _unsaid(self, epoch: int | None) -> Iterator[str]:
        """Say what is not as it may seem, because the caller did not tell the epoch, or how long the training is."""
        missing = "and no epoch= is given, so this is epoch 0: give epoch="
        if (epoch or 0) < self._burn_in:
            until = f"all weights of {self.name} are 1 until epoch {self._burn_in} (counted from 0)"
            if epoch is None:
                yield f"{until}, {missing}, or set burn_in=0"
            elif not (self.schedule.known or self.burn_in_is_chosen):
                yield f"{until}: set burn_in=, or call with_schedule(epochs=...)"
        warmup = getattr(self.weight_perturbation, "warmup", 0)
        if epoch is None and warmup:
            yield f"{self.name} perturbs no weights until epoch {warmup} (counted from 0), {missing}, or set awp_warmup=0"
        if epoch is None and any(getattr(part, "looks_back", False) for part in self._parts):
            yield f"{self.name} looks back at what it saw in the last epoch, {missing}"
        if not any(getattr(part, "follows_progress", False) for part in self._parts):
            return
        if epoch is None:
            yield f"{self.name} changes in the course of the training, {missing}"
        elif not self.schedule.known:
            length = self.schedule.epochs
            yield f"{self.name} changes in the course of {length} epochs: call with_schedule(epochs=...) if yours has others"

    def _step(self, context: StepContext, class_weights: Tensor | None) -> Output:
        model, awp, passes = context.model, self.weight_perturbation, self.passes_of_loss
        self._tell_parts("before_step", context)
        if self.targets is not None:
            context.targets = _called("targets", self.targets, context).detach()
        self._look(context, self.passes_before, self.needs)
        if self.inner is not None:
            self._attack(self.inner, context)
        if awp is not None and context.epoch >= awp.warmup:
            proxy = _LossesOfExamples(self, context, class_weights)
            with kept_buffers(model):
                if (search := getattr(awp, "search", None)) is not None:
                    change = search(model, proxy, context)
                else:
                    change = awp.direction(model, context.mean(proxy()), context.world)
            weights = proxy.weights
            whole, measure = self._whole(context, weights), context.measure
            with applied(model, change):
                context.logits = context.logits_adv = None
                self._look(context, (*self.passes_before, *passes), self.needs)
                loss = gradient_surrogate(model, context.mean(self._terms(context, class_weights, weights)[0]))
            made = proxy.calls * len(self.needs) + 2 * len(self.passes_before) + len(passes)
        else:
            self._look(context, passes, self.needs)
            terms, weights = self._terms(context, class_weights)
            loss = context.mean(terms)
            whole, measure = self._whole(context, weights), context.measure
            made = len(self.passes_before) + len(passes)
        attack = context.attack
        if self.passes_after:
            self._last = replace(context, attack=None, logits=None, logits_adv=None)
        return Output(
            loss=loss,
            x_adv=context.x_adv,
            weights=weights,
            logits=None if context.logits is None else context.logits.detach(),
            logits_adv=None if context.logits_adv is None else context.logits_adv.detach(),
            y=context.y,
            all_weights=whole,
            measure=measure,
            forwards=(0 if attack is None else attack.forwards) + made + context.more_forwards,
            backwards=(0 if attack is None else attack.backwards) + context.more_backwards,
            burning_in=context.epoch < context.burn_in,
        )

    def _attack(self, inner: InnerAttack, context: StepContext) -> None:
        """Put adversarial inputs into the context; on the first call, which waits for the device, check where they are."""
        found = _called("attack", inner, context)
        context.attack = found if isinstance(found, AttackResult) else None
        x, x_adv = context.x, found.x_adv if isinstance(found, AttackResult) else found
        if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
            got = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
            raise UserError(f"the attack must return inputs of shape {tuple(x.shape)}, it returned {got}")
        allowed = context.threat.scaled(context.largest_radius) if context.largest_radius > 1 else context.threat
        allowed = getattr(inner, "reach", _same)(allowed)
        if self._calls == 0 and not bool(allowed.contains(x_adv, x).all()):
            raise UserError("the attack left the threat model; context.threat.project(x_adv, context.x) brings its points back")
        context.x_adv = x_adv

    def _look(self, context: StepContext, passes: Sequence[str], needs: frozenset[str]) -> None:
        """Make passes in training mode; the first of each kind that is needed gives the loss its logits, with a graph."""
        with context.autocast():
            for name in passes:
                field, x = ("logits", context.x) if name == "clean" else ("logits_adv", context.x_adv)
                if name in needs and getattr(context, field) is None:
                    setattr(context, field, at_least_float32(context.model(x)))
                    continue
                with torch.no_grad():
                    context.model(x)
                torch.clear_autocast_cache()  # of weights that were cast without a graph

    def _terms(
        self, context: StepContext, class_weights: Tensor | None, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss of each example (b,) from the logits, and the weights (b,) that are given or those of the method."""
        robust, regularizer = _as_terms(_called("objective", self.objective, context), context.y)
        if weights is None:
            weights = self._weights(context, robust)
        terms = weights * robust + regularizer
        if class_weights is not None:
            seen = context.logits if context.logits is not None else context.logits_adv
            classes = None if seen is None else seen.shape[1] - self.extra_outputs
            if class_weights.ndim != 1 or (classes is not None and len(class_weights) != classes):
                raise UserError(f"class_weights must be one number for each class, ({classes},), got {shown(class_weights)}")
            terms = terms * constant(class_weights, terms.dtype, terms.device)[context.y]
        return terms, weights

    @torch.no_grad()
    def _weights(self, context: StepContext, robust: Tensor) -> Tensor:
        """Weights of this process's part of the batch, (b,); 1 before the end of the burn-in."""
        if self.weighting is None:
            return torch.ones_like(robust)
        context.robust = robust.detach()
        weights = _called("weighting", self.weighting, context)  # in the burn-in, too, for what it measures
        if context.epoch < context.burn_in:
            context.all_weights = None
            return torch.ones_like(robust)
        if not isinstance(weights, Tensor) or weights.shape != robust.shape:
            got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise UserError(f"the weighting must return weights of shape {tuple(robust.shape)}, it returned {got}")
        if context.all_weights is None:
            context.all_weights = context.all_gather(weights)
        return weights.detach().to(robust.dtype)

    def _whole(self, context: StepContext, weights: Tensor) -> Tensor | None:
        """Weights of the whole batch of all processes, (B,); None without a weighting."""
        if self.weighting is None:
            return None
        return weights.new_ones(sum(context.sizes)) if context.all_weights is None else context.all_weights.to(weights.dtype)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what goes into ``state_dict`` besides the submodules."""
        return {"calls": self._calls, "precision": self.precision and self.precision.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._calls = state["calls"]
        if self.precision is not None and state["precision"] is not None:
            self.precision.load_state_dict(state["precision"])

    def local_state(self) -> dict[str, Any]:
        """Return what each of several processes has of its own (free training's carried perturbation)."""
        return dict(getattr(self.inner, "local_state", dict)())

    def load_local_state(self, state: dict[str, Any]) -> None:
        """Go on from what this process had of its own; {} to begin anew."""
        getattr(self.inner, "load_local_state", _nothing)(state)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for a card; ``method(**card, threat=...)`` makes the same again, if its parts have names."""
        return {"name": self.name, **{key: _plain(value) for key, value in self.settings.items()}}

    def __repr__(self) -> str:
        burn_in = f", burn_in={self._burn_in}" if self.weighting is not None else ""
        return f"method({self.name!r}, {self.threat}{burn_in})"


class _LossesOfExamples:
    """The loss of each example of a step, (b,), computed at whatever the weights of the model are when it is called.

    The first call is at the weights as they are; it makes the instance weights ω, which the later ones keep.
    """

    def __init__(self, method: Method, context: StepContext, class_weights: Tensor | None):
        self._method, self._context, self._class_weights = method, context, class_weights
        self._weights: Tensor | None = None
        self.calls = 0

    @property
    def weights(self) -> Tensor:
        """ω, (b,)."""
        if self._weights is None:
            raise UserError(
                "the weight perturbation never asked for the losses; its search(model, losses, context) calls losses()"
            )
        return self._weights

    def __call__(self) -> Tensor:
        """Make the passes that the loss needs, and compute it."""
        method, context = self._method, self._context
        context.logits = context.logits_adv = None
        method._look(context, _in_order(method.needs), method.needs)
        terms, self._weights = method._terms(context, self._class_weights, self._weights)
        context.weights_perturbed = True  # whoever asks again has moved them
        self.calls += 1
        return terms


def _called(name: str, part: Callable[[StepContext], Any], context: StepContext) -> Any:
    """Call a part; one that is not made for a context is named."""
    try:
        return part(context)
    except (TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(part, torch.jit.ScriptModule):  # which says so of wrong types
            raise
        raise UserError(f"the {name}, {shown(part)}, fails on its context: {in_one_line(error)}") from error


def _in_order(kinds: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in ("clean", "adversarial") if name in kinds)


def _split_passes(order: Sequence[str], needs: frozenset[str], attacks: bool) -> tuple[tuple[str, ...], ...]:
    """Return the passes before the attack, those after it, with what is needed besides, and those after the step."""
    events = tuple(order) if "attack" in order else ("attack", *order)
    attack, step = events.index("attack"), events.index("step") if "step" in events else len(events)
    before, loss, after = events[:attack], events[attack + 1 : step], events[step + 1 :]
    kinds = CLEAN | ADVERSARIAL if attacks else CLEAN
    if not (CLEAN.issuperset(before) and kinds.issuperset(loss + after)):
        raise UserError(
            f"passes are 'clean' and, after 'attack', 'adversarial', with one 'step' at most, not {', '.join(order)}"
        )
    return before, (*_in_order(needs - {*before, *loss}), *loss), after


def _as_terms(found: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return what an objective returned as ℓ, (B,), and r, (B,) or one number; raise UserError if it is something else."""
    if isinstance(found, tuple | list) and len(found) == 2:
        robust, regularizer = found
        fits = isinstance(regularizer, int | float) or (isinstance(regularizer, Tensor) and regularizer.shape in (y.shape, ()))
        if isinstance(robust, Tensor) and robust.shape == y.shape and fits:
            return robust, regularizer
    got = ", ".join(map(shown, found)) if isinstance(found, tuple | list) else shown(found)
    raise UserError(f"the objective must return two tensors of shape ({len(y)},), l and r, it returned {got}")


def _same(part: Any) -> Any:
    """Stand in for the function that makes a part anew, where nothing is remembered."""
    return part


def _nothing(argument: Any) -> None:
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
    return f"{FROM_PYTHON}{value}"


class Step(nn.Module):
    """One training step up to the loss, as a module to wrap in ``DistributedDataParallel`` or whatever else synchronises.

    Its forward attacks the model itself, so nothing is sent during an attack, however many steps it takes in each process;
    the passes of the loss and the objective are inside the one forward that the wrapper sees. Within a
    ``torch.distributed`` process group each process hands over its part of the batch: weights are then normalised, and losses
    averaged, over the whole batch, also where the parts differ in size.

    Args:
        model: classifier to logits.
        method: to train it by.

    Example:
        >>> import torch, hauberk as hb
        >>> step = hb.Step(torch.nn.Linear(4, 3), hb.method("mart", hb.Linf(0.1)))  # now DistributedDataParallel(step)
        >>> step(torch.rand(8, 4), torch.arange(8) % 3).loss.backward()
    """

    @checked
    def __init__(self, model: nn.Module, method: Method):
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, x: Tensor, y: Tensor, epoch: int | None = None, **more: Any) -> Output:
        """Return what the method returns for this process's part of a batch; arguments as in :meth:`hauberk.Method.forward`."""
        out: Output = self.method(self.model, x, y, epoch, world=get_world(), **more)
        return out
