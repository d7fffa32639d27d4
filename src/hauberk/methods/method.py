"""A method bound to a threat model: what runs in the training loop."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hauberk.attacks.model.check_model import check_module, checked_first_pass
from hauberk.core.arguments import checked, shown
from hauberk.core.distributed import SINGLE_PROCESS, World, get_world, running_statistics
from hauberk.core.errors import UserError
from hauberk.core.numerics import float32_mode
from hauberk.core.random import ExampleRng
from hauberk.core.step_context import StepContext
from hauberk.methods.batch_loss import BatchLoss, look
from hauberk.methods.output import Output
from hauberk.methods.parts import MethodParts, nothing
from hauberk.threat import threats_of
from hauberk.threat.batch import check_batch, check_inputs


class Method(MethodParts):
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
            self.require_soft_labels()
        if rng is None:
            places = torch.arange(len(x), device=x.device) + (world.rank << 32)
            rng = ExampleRng(self.seed, places, stage=self._calls)
        if world.size == 1:
            sizes = [len(x)]
        elif sizes is None:
            sizes = [size for (size,) in world.all_gather_ints(len(x))]
        threat = self.threat if eps_scale == 1.0 else self.threat.scaled(eps_scale)
        context = StepContext(
            model, x, y, threat, rng, epoch or 0, index, self.schedule, self.burn_in_epochs, world=world, sizes=sizes,
            precision=self.precision,
            return_clean_logits=bool(getattr(self.weighting, "needs_clean_logits", nothing)(self.needs)),
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
            out = BatchLoss(self, context, class_weights, check=self._calls == 0).compute()
        if self.passes_after:
            self._last = replace(context, attack=None, logits=None, logits_adv=None)
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
                look(self._last, self.passes_after, frozenset())
            self._last.world.average(running_statistics(model))
            self._last = None
        self.tell("after_step", model)

    def restart(self, model: nn.Module) -> None:
        """Tell the parts that have a ``restart(model)`` that the training goes on from other weights than those it had."""
        self.tell("restart", model)

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
        if (epoch or 0) < self.burn_in_epochs:
            until = f"all weights of {self.name} are 1 until epoch {self.burn_in_epochs} (counted from 0)"
            if epoch is None:
                yield f"{until}, {missing}, or set burn_in=0"
            elif not (self.schedule.known or self.burn_in_is_chosen):
                yield f"{until}: set burn_in=, or call with_schedule(epochs=...)"
        warmup = getattr(self.weight_perturbation, "warmup", 0)
        if epoch is None and warmup:
            yield f"{self.name} perturbs no weights until epoch {warmup} (counted from 0), {missing}, or set awp_warmup=0"
        if epoch is None and any(getattr(part, "looks_back", False) for part in self.parts):
            yield f"{self.name} looks back at what it saw in the last epoch, {missing}"
        if not any(getattr(part, "follows_progress", False) for part in self.parts):
            return
        if epoch is None:
            yield f"{self.name} changes in the course of the training, {missing}"
        elif not self.schedule.known:
            length = self.schedule.epochs
            yield f"{self.name} changes in the course of {length} epochs: call with_schedule(epochs=...) if yours has others"

    def get_extra_state(self) -> dict[str, Any]:
        """Return what goes into ``state_dict`` besides the submodules."""
        return {"calls": self._calls, "precision": self.precision and self.precision.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._calls = state["calls"]
        if self.precision is not None and state["precision"] is not None:
            self.precision.load_state_dict(state["precision"])


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

    def __repr__(self) -> str:
        return f"Step({type(self.model).__name__}, {self.method})"

    def forward(self, x: Tensor, y: Tensor, epoch: int | None = None, **more: Any) -> Output:
        """Return what the method returns for this process's part of a batch; arguments as in :meth:`hauberk.Method.forward`."""
        out: Output = self.method(self.model, x, y, epoch, world=get_world(), **more)
        return out
