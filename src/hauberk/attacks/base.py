"""An attack as an object: its settings, how it starts and steps; run on one batch, all rows in step."""

from dataclasses import fields, replace
from functools import cached_property
from typing import Any, Generic

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.attacks.model.bpda import StandInLike, with_stand_in
from hauberk.attacks.model.check_model import check_module, check_surrogate, checked_first_pass, has_gradient
from hauberk.attacks.model.frozen_model import Mode, frozen_model
from hauberk.attacks.model.queries import ModelQueries
from hauberk.attacks.state import (
    AttackInputs,
    AttackResult,
    AttackState,
    Outcome,
    State,
    count_targets,
    initial_state,
    select,
)
from hauberk.core.arguments import check_fields, checked, shown
from hauberk.core.device import send
from hauberk.core.errors import UserError
from hauberk.core.random import ExampleRng, batch_rng
from hauberk.objectives.functional import ATTACK_LOSSES, AttackLoss, Criterion, LossLike, find_attack_loss, loss_for, make_goal
from hauberk.threat import Norm, ThreatModel
from hauberk.threat.batch import check_batch, check_inputs

GOAL = ATTACK_LOSSES["cw"]  # of an adversary who wants an input to be misclassified


def check_draws(eot_iter: int, goal: AttackLoss) -> None:
    """Refuse, by a UserError, a number of passes to average over that makes no sense."""
    if eot_iter < 1:
        raise UserError(f"eot_iter must be at least 1, got {eot_iter}")
    if eot_iter > 1 and not goal.of_classes:
        raise UserError("several passes are averaged as probabilities of classes; average other outputs inside the model")


class Attack(Generic[State]):
    """An iterative attack. Attacks are frozen dataclasses of their settings; to add one, write ``step``.

    A run is one search from a start, towards a target; where ``stops_at_success``, an example takes its runs one after the
    other until one succeeds. Called as a function, an attack runs on one batch: ``PGD(steps=10)(model, x, y, threat)``.

    Attributes:
        steps: iterations of a run.
        restarts: independent runs of each example (for each target).
        check_every: how many steps to take between looks at which examples have finished.
        passes_per_step: passes of one example in a step, a backward counted as one.
        stops_at_success: whether an example that is misclassified takes no further part (and one that is so without an
            attack none at all).
        needs_clean_logits: whether ``init`` wants the logits of the clean inputs.
        uses_gradients: whether it is blind where gradients are masked.
        sees_original: whether it is handed the caller's own module, where others see a faster copy of it, or the backward pass
            of a stand-in.
        mode: of the model meanwhile, see :func:`hauberk.attacks.frozen_model`.
        return_last: whether it returns its last point, not the best it has seen.
        evaluate_last: whether it looks at the point that it returns.
        loss: what it maximises, or goes by to tell a better point from a worse; see
            :func:`hauberk.objectives.functional.find_attack_loss`.
    """

    steps: int
    restarts: int = 1
    check_every: int = 4
    passes_per_step: int = 2
    stops_at_success: bool = True
    needs_clean_logits: bool = True
    uses_gradients: bool = True
    sees_original: bool = False
    mode: Mode = "eval"
    return_last: bool = False
    evaluate_last: bool = True
    loss: LossLike = "cw"

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("steps", "restarts", "targets"):
            if getattr(self, name, 1) < 1:
                raise UserError(f"{type(self).__name__} needs at least 1 {name[:-1]}, got {getattr(self, name)}")

    @cached_property
    def attack_loss(self) -> AttackLoss:
        """The loss as an object."""
        return find_attack_loss(self.loss, getattr(self, "confidence", 0.0))

    @property
    def max_steps(self) -> int:
        """How many looks a run takes at most; as many as steps, unless an attack says otherwise."""
        return self.steps

    def n_runs(self, n_classes: int) -> int:
        """How many runs an example takes against a model of so many outputs."""
        return self.restarts

    def init(self, inputs: AttackInputs) -> State:
        """Set up the state, without looking at the model; by default nothing but what every attack keeps."""
        return AttackState(**initial_state(inputs))  # type: ignore[return-value]

    def step(self, state: State, queries: ModelQueries, host_steps: np.ndarray) -> None:
        """Take one step: at least one look at the model, noted by ``state.observe`` or ``state.offer``.

        Args:
            state: modified in place.
            queries: the model.
            host_steps: at which step each row is, as the host knows it, (B,) int64; larger than any for a row that is free.
        """
        raise NotImplementedError

    def finished(self, state: State) -> Tensor | None:
        """Which examples take no further part in this run, (B,) bool; None if all go on to the end."""
        return state.found | (state.step >= self.max_steps) if self.stops_at_success else None

    def aimed(self) -> "Attack[Any]":
        """The form of the attack that aims at a given class of each example.

        Raises:
            UserError: if there is none.
        """
        raise UserError(f"{self} takes no target")

    def defined_in(self, norm: Norm) -> bool:
        """Whether there is such an attack in a norm; by default in all that are norms, which L0 is not."""
        return norm.p >= 1

    def for_threat(self, threat: ThreatModel) -> "Attack[Any]":
        """The form of the attack for a threat model.

        Raises:
            UserError: if it is not defined in its norm.
        """
        if not self.defined_in(threat.norm):
            others = "PGD and FMN are" + (", and SigmaZero" if threat.norm.p == 0 else "")
            raise UserError(f"{type(self).__name__} is not defined in {threat.norm}; {others}")
        return self

    def adapted(
        self, threat: ThreatModel, n_classes: int, goal: AttackLoss = GOAL, surrogate: nn.Module | None = None
    ) -> tuple["Attack[Any]", str]:
        """Return the attack for a threat model and a task, and what was put in place of what is not defined there.

        Args:
            threat: ball and box.
            n_classes: number of the model's outputs.
            goal: what the adversary is after, see :func:`hauberk.objectives.functional.make_goal`.
            surrogate: the model that transfer attacks are crafted on.

        Raises:
            UserError: where it goes by classes and the task has none.
        """
        if "loss" not in getattr(self, "__dataclass_fields__", ()):  # an attack of the caller's, which sees to it
            return self.for_threat(threat), ""
        loss, note = loss_for(self.loss, goal, n_classes)
        return replace(self, loss=loss).for_threat(threat), note  # type: ignore[type-var]

    def cost(self, n_classes: int = 10) -> int:
        """Passes of an example that stands."""
        return self.n_runs(n_classes) * self.max_steps * self.passes_per_step

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int | ExampleRng = 0, **more: Any
    ) -> AttackResult:
        """Attack a batch; arguments as in :func:`hauberk.attacks.run_attack`."""
        return run_attack(self, model, x, y, threat, seed=seed, **more)

    def __str__(self) -> str:
        values = {f: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        changed = [f"{f.name}={_shown(v)}" for f, v in values.items() if isinstance(v, Tensor) or str(v) != str(f.default)]
        return f"{type(self).__name__}({', '.join(changed)})"


def _shown(value: Any) -> str:
    """A setting in words that are the same in every process."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{value.__module__}:{value.__qualname__}" if hasattr(value, "__qualname__") else str(value)


class MaximizingAttack(Attack[State]):
    """An attack that maximises a loss, from several starts and towards several targets.

    Attributes:
        loss: what to maximise, see :func:`hauberk.objectives.functional.find_attack_loss`.
        targets: for a loss with a target, how many of the most likely wrong classes are targets in turn.
        confidence: κ of the "cw" loss.
    """

    loss: LossLike
    targets: int
    confidence: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        find_attack_loss(self.loss)

    def n_runs(self, n_classes: int) -> int:
        """Restarts, times targets."""
        return self.restarts * count_targets(self.attack_loss, self.targets, n_classes)


@checked
def run_attack(
    attack: Attack[Any],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    seed: int | ExampleRng = 0,
    target: Tensor | None = None,
    criterion: Criterion | None = None,
    eot_iter: int = 1,
    return_clean_logits: bool = False,
    radius_fraction: Tensor | None = None,
    reference: Tensor | None = None,
    bpda: StandInLike | None = None,
) -> AttackResult:
    """Attack a batch, after a look at everything that is handed over.

    The model, its mode, gradients, buffers and the global random state are the same afterwards (buffers excepted in mode
    ``"train"``). Where the attack stops at a success, an input that is misclassified as it is counts as its own adversarial
    example, and examples that are broken take no part in later passes.

    Args:
        attack: what to run.
        model: classifier from inputs (B, ...) in the box to logits (B, C).
        x: clean inputs, (B, ...), inside the box.
        y: labels, (B,), integers.
        threat: ball and box.
        seed: of the random draws: an integer, or an ``ExampleRng`` keyed by example.
        target: (B,) int64, classes to aim at; ``success`` still says whether the label is lost, ``logits`` whether the target
            was reached.
        criterion: a function of outputs (B, ...) and labels (B, ...) that says which outputs are mistakes, (B,) bool; None for
            misclassification. With a loss of your own besides, outputs and labels may be anything that these two understand,
            such as floats (B, L).
        eot_iter: passes to average over, for random models; AutoAttack's ``rand`` has 20.
        return_clean_logits: look at the clean inputs too, in the attack's mode, at one forward.
        radius_fraction: (B,), attack each example with ε, and steps that are a part of it, times its fraction in [0, 1].
        reference: (B, C), what the loss compares with: logits in place of those of the clean inputs, such as a teacher's, for
            "kl"; probabilities for "soft-ce".
        bpda: a differentiable stand-in for the model in the backward pass, see :class:`hauberk.attacks.BPDA`; a module or a
            function of inputs (B, ...) that returns what the model returns. Attacks without gradients do not ask it.

    Returns:
        AttackResult with ``x_adv`` (B, ...) inside the threat model.

    Raises:
        UserError: if settings, threat model, inputs, labels and model do not fit together.
    """
    check_module(model)
    if not attack.sees_original:
        model = with_stand_in(model, bpda)
    if attack.uses_gradients and not attack.sees_original and not has_gradient(model):
        raise UserError(f"{attack} goes by gradients, and the model has none; take Square or RandomSearch, or give bpda=")
    goal = make_goal(criterion, attack.attack_loss if attack.attack_loss.is_own else None)
    y = check_inputs(x, y, threat, of_classes=goal.of_classes)
    if isinstance(surrogate := getattr(attack, "surrogate", None), nn.Module):
        check_surrogate(surrogate, x, y, goal.of_classes)
    check_draws(eot_iter, goal)
    if target is not None:
        target = check_batch(x, target, "targets")
    if radius_fraction is not None:
        inside = radius_fraction.shape == y.shape[:1] and bool(((radius_fraction >= 0) & (radius_fraction <= 1)).all())
        if not inside:
            raise UserError(f"radius_fraction must be {len(y)} numbers from 0 to 1, one for each example")
    if reference is not None and (reference.ndim != 2 or len(reference) != len(x) or not reference.is_floating_point()):
        raise UserError(f"reference must be floating, ({len(x)}, C), got {shown(reference)}")
    if isinstance(seed, ExampleRng) and len(seed.keys) != len(x):
        raise UserError(f"seed has draws for {len(seed.keys)} examples, the batch has {len(x)}")
    extra = max(goal.extra_outputs, attack.attack_loss.extra_outputs)
    with checked_first_pass(model, x, y, extra, clean=False, target=target, of_classes=goal.of_classes):
        return attack_batch(
            attack, model, x, y, threat, seed=seed, target=target,
            criterion=None if criterion is None else goal.criterion, eot_iter=eot_iter,
            return_clean_logits=return_clean_logits, radius_fraction=radius_fraction, reference=reference,
        )  # fmt: skip


def attack_batch(
    attack: Attack[Any],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    seed: int | ExampleRng,
    target: Tensor | None = None,
    criterion: Criterion | None = None,
    eot_iter: int = 1,
    return_clean_logits: bool = False,
    radius_fraction: Tensor | None = None,
    reference: Tensor | None = None,
) -> AttackResult:
    """Attack a batch that is known to fit the model, with labels (B,) int64; arguments as in :func:`run_attack`.

    Without a criterion, that of the loss says what is a mistake.
    """
    attack = attack.for_threat(threat)
    attack = attack if target is None else attack.aimed()
    if reference is None and attack.attack_loss.reference == "given":
        raise UserError(f"{attack} compares with probabilities that it has to be given: reference=")
    criterion = attack.attack_loss.criterion if criterion is None else criterion
    with frozen_model(model, attack.mode) as frozen:
        rng = batch_rng(seed, x)
        queries, dtype = ModelQueries(frozen, eot_iter), x.dtype
        # What a model in half precision is given is rounded to it at each look; to move in it would lose the smaller steps.
        wide = dtype if queries.precision is None else torch.promote_types(dtype, torch.float32)
        # Autograd refuses what was made under inference_mode; and nothing that is returned is the caller's own tensor.
        x, y = x.detach().to(wide, copy=True), y.clone() if y.is_inference() else y
        feasible = threat.around(x)
        if radius_fraction is not None:
            feasible = feasible.with_radius_scaled(radius_fraction)
        known = target is not None or (reference is not None and attack.attack_loss.reference in ("clean", "given"))
        wants_clean = return_clean_logits or attack.stops_at_success or (attack.needs_clean_logits and not known)
        clean = queries.logits(x) if wants_clean else None
        run_of = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        inputs = AttackInputs(feasible, y, clean, run_of, rng, target, reference, in_step=True, criterion=criterion)
        wrong = None
        if attack.stops_at_success:
            if clean is None:
                raise UserError(f"{attack} stops at a success, so it needs to look at the clean inputs")
            wrong = criterion(clean, y)
        outcome = Outcome(inputs, wrong, keeps_best=not attack.return_last)
        for run in range(attack.n_runs(2 if clean is None else clean[0].numel())):
            if not _run_once(attack, queries, outcome, run):
                break
    steps = getattr(attack, "steps", attack.max_steps)
    result = outcome.result(queries.forwards, queries.backwards, attack.evaluate_last, steps)
    return result if wide == dtype else replace(result, x_adv=result.x_adv.to(dtype))


def _run_once(attack: Attack[Any], queries: ModelQueries, outcome: Outcome, run: int) -> bool:
    """Take those that still stand through one run; returns whether there were any."""
    index = outcome.standing()
    if index is not None and not len(index):
        return False
    state = attack.init(outcome.inputs_of(index, run))
    host_steps = np.zeros(len(state.y), dtype=np.int64)
    while len(host_steps) and host_steps.max() < attack.max_steps:
        for _ in range(min(attack.check_every, attack.max_steps - int(host_steps.max()))):
            attack.step(state, queries, host_steps)
            host_steps = host_steps + 1
        finished = attack.finished(state)
        if finished is None:
            continue
        gone, host_steps = torch.stack([finished.long(), state.step]).cpu().numpy()
        if gone.any():
            outcome.take(state, index, run)  # of those that stay, too, because that is less to launch
            staying = send(torch.from_numpy(np.flatnonzero(gone == 0)), state.y.device)
            state, index = select(state, staying), staying if index is None else index[staying]
            host_steps = host_steps[gone == 0]
    if len(host_steps):
        outcome.take(state, index, run)
    return True
