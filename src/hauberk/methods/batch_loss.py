"""The loss of one batch: targets, attack, passes, objective and weights, at perturbed weights where there are such."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hauberk.attacks import AttackResult
from hauberk.attacks.model.frozen_model import kept_buffers
from hauberk.core.arguments import shown
from hauberk.core.device import constant
from hauberk.core.errors import UserError, in_one_line
from hauberk.core.step_context import StepContext
from hauberk.methods.output import Output
from hauberk.methods.parts import MethodParts, in_order, same
from hauberk.methods.weight_perturbation.awp import applied, gradient_surrogate
from hauberk.objectives.functional import at_least_float32


class BatchLoss:
    """One batch on its way through the parts of a method.

    Args:
        parts: of the method.
        context: of the batch; filled as the step goes on.
        class_weights: (C,), or None.
        check: look whether the attack stays where it may, which waits for the device.
    """

    def __init__(self, parts: MethodParts, context: StepContext, class_weights: Tensor | None, check: bool):
        self.parts, self.context, self.class_weights, self.check = parts, context, class_weights, check
        self.weights: Tensor | None = None  # ω, (b,), made with the first loss
        self.made = 0  # passes in training mode

    def compute(self) -> Output:
        """Attack, and return the loss with its graph."""
        parts, context = self.parts, self.context
        parts.tell("before_step", context)
        if parts.targets is not None:
            context.targets = _called("targets", parts.targets, context).detach()
        self._look(parts.passes_before, parts.needs)
        if parts.inner is not None:
            self._attack(parts.inner)
        perturbation = parts.weight_perturbation
        if perturbation is not None and context.epoch >= perturbation.warmup:
            loss = self._at_perturbed_weights(perturbation)
        else:
            self._look(parts.passes_of_loss, parts.needs)
            loss = context.mean(self._terms())
        return self._output(loss)

    def _at_perturbed_weights(self, perturbation: Any) -> Tensor:
        """Let the weight perturbation look at the loss as it is, and take the gradient where it has moved the weights to."""
        parts, context, model = self.parts, self.context, self.context.model
        with kept_buffers(model):
            if (search := getattr(perturbation, "search", None)) is not None:
                change = search(model, self.losses, context)
            else:
                change = perturbation.direction(model, context.mean(self.losses()), context.world)
        if self.weights is None:
            raise UserError(
                "the weight perturbation never asked for the losses; its search(model, losses, context) calls losses()"
            )
        with applied(model, change):
            context.logits = context.logits_adv = None
            self._look((*parts.passes_before, *parts.passes_of_loss), parts.needs)
            return gradient_surrogate(model, context.mean(self._terms()))

    def losses(self) -> Tensor:
        """Return the loss of each example, (b,), at whatever the weights of the model are.

        The first call is at the weights as they are; it makes the instance weights ω, which the later ones keep.
        """
        context, needs = self.context, self.parts.needs
        context.logits = context.logits_adv = None
        self._look(in_order(needs), needs)
        terms = self._terms()
        context.weights_perturbed = True  # whoever asks again has moved them
        return terms

    def _attack(self, inner: Callable[[StepContext], Any]) -> None:
        """Put adversarial inputs into the context."""
        context = self.context
        found = _called("attack", inner, context)
        context.attack = found if isinstance(found, AttackResult) else None
        x, x_adv = context.x, found.x_adv if isinstance(found, AttackResult) else found
        if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
            got = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
            raise UserError(f"the attack must return inputs of shape {tuple(x.shape)}, it returned {got}")
        allowed = context.threat.scaled(context.largest_radius) if context.largest_radius > 1 else context.threat
        allowed = getattr(inner, "reach", same)(allowed)
        if self.check and not bool(allowed.contains(x_adv, x).all()):
            raise UserError("the attack left the threat model; context.threat.project(x_adv, context.x) brings its points back")
        context.x_adv = x_adv

    def _look(self, passes: Sequence[str], needs: frozenset[str]) -> None:
        """Make passes in training mode; the first of each kind that is needed gives the loss its logits, with a graph."""
        look(self.context, passes, needs)
        self.made += len(passes)

    def _terms(self) -> Tensor:
        """Compute the loss of each example, (b,), from the logits; the first time, the weights, too."""
        parts, context, class_weights = self.parts, self.context, self.class_weights
        robust, regularizer = _as_terms(_called("objective", parts.objective, context), context.y)
        if self.weights is None:
            self.weights = self._weights(robust)
        terms = self.weights * robust + regularizer
        if class_weights is not None:
            seen = context.logits if context.logits is not None else context.logits_adv
            classes = None if seen is None else seen.shape[1] - parts.extra_outputs
            if class_weights.ndim != 1 or (classes is not None and len(class_weights) != classes):
                raise UserError(f"class_weights must be one number for each class, ({classes},), got {shown(class_weights)}")
            terms = terms * constant(class_weights, terms.dtype, terms.device)[context.y]
        return terms

    @torch.no_grad()
    def _weights(self, robust: Tensor) -> Tensor:
        """Weights of this process's part of the batch, (b,); 1 before the end of the burn-in."""
        context, weighting = self.context, self.parts.weighting
        if weighting is None:
            return torch.ones_like(robust)
        context.robust = robust.detach()
        weights = _called("weighting", weighting, context)  # in the burn-in, too, for what it measures
        if context.epoch < context.burn_in:
            context.all_weights = None
            return torch.ones_like(robust)
        if not isinstance(weights, Tensor) or weights.shape != robust.shape:
            got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise UserError(f"the weighting must return weights of shape {tuple(robust.shape)}, it returned {got}")
        if context.all_weights is None:
            context.all_weights = context.all_gather(weights)
        return weights.detach().to(robust.dtype)

    def _output(self, loss: Tensor) -> Output:
        """What the caller is given."""
        context, weights, attack = self.context, self.weights, self.context.attack
        assert weights is not None  # made with the loss
        whole = None
        if self.parts.weighting is not None:
            every = context.all_weights
            whole = weights.new_ones(sum(context.sizes)) if every is None else every.to(weights.dtype)
        return Output(
            loss=loss,
            x_adv=context.x_adv,
            weights=weights,
            logits=None if context.logits is None else context.logits.detach(),
            logits_adv=None if context.logits_adv is None else context.logits_adv.detach(),
            y=context.y,
            all_weights=whole,
            measure=context.measure,
            forwards=(0 if attack is None else attack.forwards) + self.made + context.more_forwards,
            backwards=(0 if attack is None else attack.backwards) + context.more_backwards,
            burning_in=context.epoch < context.burn_in,
        )


def look(context: StepContext, passes: Sequence[str], needs: frozenset[str]) -> None:
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


def _called(name: str, part: Callable[[StepContext], Any], context: StepContext) -> Any:
    """Call a part; one that is not made for a context is named."""
    try:
        return part(context)
    except (TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(part, torch.jit.ScriptModule):  # which says so of wrong types
            raise
        raise UserError(f"the {name}, {shown(part)}, fails on its context: {in_one_line(error)}") from error


def _as_terms(found: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return what an objective returned as ℓ, (B,), and r, (B,) or one number; raise UserError if it is something else."""
    if isinstance(found, tuple | list) and len(found) == 2:
        robust, regularizer = found
        fits = isinstance(regularizer, int | float) or (isinstance(regularizer, Tensor) and regularizer.shape in (y.shape, ()))
        if isinstance(robust, Tensor) and robust.shape == y.shape and fits:
            return robust, regularizer
    got = ", ".join(map(shown, found)) if isinstance(found, tuple | list) else shown(found)
    raise UserError(f"the objective must return two tensors of shape ({len(y)},), l and r, it returned {got}")
