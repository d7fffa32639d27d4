"""A method bound to a threat model: what runs in the training loop."""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hauberk.attacks.ascent import ascend
from hauberk.attacks.frozen_model import kept_buffers
from hauberk.attacks.result import AttackResult
from hauberk.attacks.steps import Ascent
from hauberk.attacks.training import margin_pgd
from hauberk.checks import check_batch, check_inputs, checked_first_pass
from hauberk.core.distributed import SINGLE_PROCESS, World
from hauberk.core.errors import UserError
from hauberk.core.random import ExampleRng
from hauberk.fastpath.precision import PrecisionPolicy
from hauberk.methods.awp import gradient_surrogate, perturbation, perturbed
from hauberk.methods.choices import Batch, Choices, Horizon, Pass
from hauberk.methods.memory import Memory
from hauberk.methods.output import Output
from hauberk.objectives import OBJECTIVES
from hauberk.objectives.functional import fooled
from hauberk.objectives.kl import at_least_float32
from hauberk.threat import ThreatModel
from hauberk.weighting import summary


class Method:
    """A method bound to a threat model; call it on a batch in any training loop.

    Made by :func:`hauberk.method`. Its state is how many batches it has seen, which keys its random starts, and what it
    remembers between batches (MMA's radii, free training's perturbation); ``state_dict`` and ``load_state_dict`` save it.
    """

    def __init__(
        self,
        name: str,
        threat: ThreatModel,
        choices: Choices,
        settings: dict[str, Any],
        horizon: Horizon | None = None,
        sight: PrecisionPolicy | None = None,
    ):
        self.name = name
        self.threat = threat
        self.choices = choices
        self.settings = settings
        self.horizon = horizon or Horizon()
        self.memory = Memory()
        self.sight = sight or PrecisionPolicy("model")
        self._calls = 0

    @property
    def attack(self) -> Ascent | None:
        """Settings of the inner maximisation, or None."""
        return self.choices.attack

    @property
    def extra_outputs(self) -> int:
        """Outputs the model needs besides the classes of the data."""
        return OBJECTIVES[self.choices.recipe.objective].extra_outputs

    @property
    def replays(self) -> int:
        """Times each batch is to be used in a row."""
        return self.choices.recipe.replays

    def planned(self, epochs: int, first_drop: int | None = None) -> "Method":
        """Return the method with its schedules fitted to a training of so many epochs.

        Args:
            epochs: of the whole training.
            first_drop: 0-based epoch at which the learning rate first drops; by default after three quarters of the training,
                as ``hb.train`` takes it where the rate never drops.

        Raises:
            UserError: if the burn-in, or the warm-up of the weight perturbation, would last as long as the training, so that
                nothing would ever be reweighted or perturbed.
        """
        fitted = copy(self)
        fitted.horizon = Horizon(epochs, int(0.75 * epochs) if first_drop is None else first_drop, known=True)
        fitted.memory = Memory()
        fitted.sight = PrecisionPolicy(self.sight.precision, self.sight.compiled)
        if self._weighs and fitted._burn_in >= epochs:
            raise UserError(
                f"the burn-in of {self.name} ends with epoch {fitted._burn_in}, the training with {epochs}: nothing would "
                "be reweighted; set burn_in, or milestones within the training"
            )
        if self.choices.awp.gamma and self.choices.awp.warmup >= epochs:
            raise UserError(
                f"the warm-up of {self.name} ends with epoch {self.choices.awp.warmup}, the training with {epochs}: no weight "
                "would be perturbed; set awp_warmup"
            )
        return fitted

    @property
    def begins(self) -> int:
        """First epoch, from 0, in which the method is itself: weights and perturbations of the weights are all on."""
        awp = self.choices.awp
        return max(self._burn_in if self._weighs else 0, awp.warmup if awp.gamma else 0)

    @property
    def _weighs(self) -> bool:
        return self.choices.weighting.measure != "none"

    @property
    def _burn_in(self) -> int:
        """Epochs with weights 1."""
        burn_in = self.choices.weighting.burn_in
        return self.horizon.first_drop if burn_in == "first-drop" else int(burn_in)

    def __call__(
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
    ) -> Output:
        """Attack a batch and compute the loss to minimise.

        Args:
            model: classifier to logits (B, C), in the mode the loss should see (``model.train()`` in training).
            x: clean inputs, (B, ...), inside the threat model's box.
            y: labels, (B,), integers.
            epoch: 0-based, for burn-in, τ, λ and warm-up; 0 where none is given.
            index: (B,) int64, which examples these are, for methods that remember something about each (``mma``).
            class_weights: (C,), multiplies the whole term of each example by the weight of its class.
            rng: random numbers keyed by example; by default each call draws new ones from the method's seed.
            eps_scale: attack with ε times this, for ε warm-up.
            world: processes that each have a part of the batch; see :class:`hauberk.Step`.
            sizes: how many examples each has, where that is known; otherwise they tell each other.

        Returns:
            Output, with ``loss = mean(c_y · (ω · ℓ + r))``; with several processes what gives this, averaged over them.

        Raises:
            UserError: if the inputs are not floating or the labels no class numbers; on the first call also if data, model and
                threat model do not fit together, or the model is wrapped for several processes.

        Warns:
            UserWarning: on the first call, if weights are 1 until an epoch that nobody has chosen, or no epoch is given.
        """
        y = check_batch(x, y)
        if rng is None:
            places = torch.arange(len(x), device=x.device) + (world.rank << 32)
            rng = ExampleRng(self.settings["seed"], places, stage=self._calls)
        threat = self.threat if eps_scale == 1.0 else self.threat.scaled(eps_scale)
        batch = Batch(x, y, index, class_weights, world, sizes or [size for (size,) in world.all_gather_ints(len(x))])
        checked: AbstractContextManager[None] = nullcontext()
        if self._calls == 0:
            if isinstance(model, DistributedDataParallel):
                raise UserError(
                    "attacks must not run through DistributedDataParallel: wrap hb.Step(model, method) in it, and call that on "
                    "x, y"
                )
            if any(p.is_inference() for p in model.parameters()):
                raise UserError("a model made under torch.inference_mode cannot be trained; make it, or load it, outside")
            check_inputs(x, y, self.threat)
            self._warn(epoch)
            checked = checked_first_pass(model, x, y, self.extra_outputs)
        with checked:
            out = self._step(model, batch, epoch or 0, threat, rng)
        self._calls += 1  # now, so that a first call that was refused is checked again
        return out

    def _warn(self, epoch: int | None) -> None:
        """Warn of weights that are 1 without anybody having chosen so."""
        if not self._weighs or (epoch or 0) >= self._burn_in:
            return
        until = f"all weights of {self.name} are 1 until epoch {self._burn_in} (counted from 0)"
        if epoch is None:
            warnings.warn(f"{until}, and no epoch= is given, so this is epoch 0: give epoch=, or set burn_in=0", stacklevel=3)
        elif not (self.horizon.known or "burn_in" in self.settings):
            warnings.warn(f"{until}: set burn_in=, or call planned(epochs=...)", stacklevel=3)

    def _step(self, model: nn.Module, batch: Batch, epoch: int, threat: ThreatModel, rng: ExampleRng) -> Output:
        seen, extra = self._attack(model, batch, epoch, threat, rng)
        x_adv = seen.x_adv if seen else None
        if self.replays > 1:
            x_adv = self.memory.carried(batch.x, threat)
        objective = OBJECTIVES[self.choices.recipe.objective]
        passes = objective.clean + objective.adversarial
        awp = self.choices.awp
        backwards: float = seen.backwards if seen else 0
        if awp.gamma and epoch >= awp.warmup:
            with kept_buffers(model):
                proxy = self._loss(model, batch, x_adv, seen, extra, epoch, None)
                change = perturbation(model, proxy.loss, awp.gamma, batch.world)
            with perturbed(model, change):
                at = self._loss(model, batch, x_adv, seen, extra, epoch, proxy.weights)
                loss = gradient_surrogate(model, at.loss)
            weighed, passes = proxy, 2 * passes
        else:
            at = weighed = self._loss(model, batch, x_adv, seen, extra, epoch, None)
            loss = at.loss
        return Output(
            loss=loss,
            x_adv=x_adv,
            weights=batch.world.take_local(weighed.weights, batch.sizes),
            logits=_detached(at.logits),
            logits_adv=_detached(at.logits_adv),
            report=self._report(weighed, batch.y),
            forwards=(seen.forwards if seen else 0) + passes,
            backwards=backwards,
            burning_in=self._weighs and epoch < self._burn_in,
        )

    def _attack(
        self, model: nn.Module, batch: Batch, epoch: int, threat: ThreatModel, rng: ExampleRng
    ) -> tuple[AttackResult | None, dict[str, Tensor]]:
        """Find adversarial inputs; returns what was seen, and what else the objective wants to know."""
        recipe, attack = self.choices.recipe, self.choices.attack
        if attack is None or self.replays > 1:
            return None, {}
        if recipe.search == "margin":
            share = self.memory.shares(batch.index, batch.y)
            with self.sight.on(model, batch.x, "eval") as form:
                found, distance = margin_pgd(
                    form, batch.x, batch.y, threat, share=share, steps=attack.steps, seed=rng, trusted=True
                )
            if batch.index is not None:
                self.memory.remember(
                    torch.cat(batch.world.all_gather_object(batch.index.cpu())),
                    batch.world.all_gather_rows(distance, batch.sizes),
                )
            return found, {"within": found.success}
        if recipe.taus:
            attack = self._friendly(attack, epoch)
        measure = self.choices.weighting.measure
        # PM^dif compares two passes in the same mode; PM^nat uses the loss's own clean pass where there is one.
        see_clean = measure == "pm-dif" or (measure == "pm-nat" and not OBJECTIVES[recipe.objective].clean)
        with self.sight.on(model, batch.x, attack.mode) as form:
            seen = ascend(
                form, batch.x, batch.y, threat, attack, keep="last-unseen", seed=rng, see_clean=see_clean, trusted=True
            )
            return seen, {}

    def _friendly(self, attack: Ascent, epoch: int) -> Ascent:
        """Return the attack with τ of this epoch."""
        done = (epoch + 1) / self.horizon.epochs
        taus = self.choices.recipe.taus
        tau = next((tau for share, tau in taus if done <= share), taus[-1][1])
        return Ascent(**{**vars(attack), "tau": tau})

    def _loss(
        self,
        model: nn.Module,
        batch: Batch,
        x_adv: Tensor | None,
        seen: AttackResult | None,
        extra: dict[str, Tensor],
        epoch: int,
        weights: Tensor | None,
    ) -> Pass:
        """Make the passes of the loss and compute it, with given weights or those of the method."""
        objective = OBJECTIVES[self.choices.recipe.objective]
        with self.sight.lowered(batch.x):
            logits = model(batch.x) if objective.clean else None
            logits_adv = model(x_adv) if objective.adversarial and x_adv is not None else None
        logits, logits_adv = (None if z is None else at_least_float32(z) for z in (logits, logits_adv))
        robust, regular = self.choices.terms(logits, logits_adv, batch.y, **extra)
        measure = None
        if weights is None:
            weights, measure = self._weights(seen, logits, logits_adv, batch, epoch)
        weights = robust.new_ones(sum(batch.sizes)) if weights is None else weights.to(robust.dtype)
        terms = batch.world.take_local(weights, batch.sizes) * robust + regular
        if batch.class_weights is not None:
            terms = terms * batch.class_weights.to(terms)[batch.y]
        return Pass(batch.mean(terms), logits, logits_adv, weights, measure)

    def _weights(
        self, seen: AttackResult | None, logits: Tensor | None, logits_adv: Tensor | None, batch: Batch, epoch: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Weights of the whole batch and what they were made from; None before the end of the burn-in, when all are 1."""
        weighting = self.choices.weighting
        if not self._weighs:
            return None, None
        measure = batch.world.all_gather_rows(weighting.measured(seen, logits, logits_adv, batch.y), batch.sizes)
        if epoch < self._burn_in:
            return None, measure
        steps = self.choices.attack.steps if self.choices.attack else 1
        lam = weighting.lam_at(epoch, self._burn_in, self.horizon.epochs)
        return weighting.assigned(measure, steps, lam, self.choices.preset), measure

    def _report(self, at: Pass, y: Tensor) -> dict[str, Tensor]:
        if not self._weighs:
            return {}
        found = summary(at.weights, at.measure)
        if at.logits_adv is not None:
            found["wrong_adversarial"] = fooled(at.logits_adv, y).float().mean()
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on exactly: plain types and tensors."""
        return {"calls": self._calls, "sight": self.sight.state_dict(), **self.memory.state_dict()}

    def local_state_dict(self) -> dict[str, Any]:
        """Return the entries of the state that differ between processes; without them a state begins them anew."""
        return self.memory.own_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._calls = state["calls"]
        self.sight.load_state_dict(state["sight"])
        self.memory.load_state_dict(state)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for a card; ``method(**card, threat=...)`` makes the same method again."""
        plain = {
            key: list(value)
            if isinstance(value, tuple)
            else value
            if isinstance(value, str | int | float | None)
            else str(value)
            for key, value in self.settings.items()
        }
        return {"name": self.name, **plain}

    def __repr__(self) -> str:
        burn_in = f", burn_in={self._burn_in}" if self._weighs else ""
        return f"method({self.name!r}, {self.threat}{burn_in})"


def _detached(logits: Tensor | None) -> Tensor | None:
    return None if logits is None else logits.detach()
