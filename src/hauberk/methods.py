"""Named methods: combinations of an attack, an objective and hyperparameters, and what runs them in a loop."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.attacks.ascent import ascend
from hauberk.attacks.steps import Ascent, parse_step
from hauberk.checks import check_inputs, checked_passes
from hauberk.errors import UserError, unknown_name
from hauberk.noise import Noise
from hauberk.objectives import OBJECTIVES, PresetName, Terms
from hauberk.threat import ThreatModel


@dataclass(frozen=True)
class Recipe:
    """One row of the table of methods.

    Attributes:
        objective: name of the objective.
        summary: what it is, in one line.
        source: where it comes from.
        attack: the inner maximisation as the paper states it; None where there is none.
        attack_official: the same as the authors' code does it.
        beta: trade-off, where the objective has one.
    """

    objective: str
    summary: str
    source: str
    attack: Ascent | None = None
    attack_official: Ascent | None = None
    beta: float | None = None


# ε/4 is the papers' 2/255 at 8/255. The public code's 0.007 at ε = 0.031 is 7/31 ε.
_OFFICIAL_STEP = "7*eps/31"

RECIPES = {
    "standard": Recipe("standard", "standard training, no attack", "empirical risk minimisation"),
    "at": Recipe(
        "at",
        "adversarial training: cross-entropy at the worst input",
        "Madry et al. 2018; official: cifar10_challenge",
        Ascent(10, "eps/4", "uniform"),
        Ascent(10, "eps/4", "uniform"),
    ),
    "trades": Recipe(
        "trades",
        "clean cross-entropy and KL between clean and adversarial predictions",
        "Zhang et al. 2019; official: trades.py",
        Ascent(10, "eps/4", "normal", loss="kl"),
        Ascent(10, _OFFICIAL_STEP, "normal", loss="kl"),
        beta=6.0,
    ),
    "mart": Recipe(
        "mart",
        "boosted cross-entropy, and KL weighted by 1 - p_y of the clean input",
        "Wang et al. 2020; official: mart.py",
        Ascent(10, "eps/4", "uniform"),
        Ascent(10, _OFFICIAL_STEP, "normal"),
        beta=5.0,
    ),
}


def list_methods() -> dict[str, str]:
    """Return every method's name with one line on what it is and where it comes from."""
    return {name: f"{recipe.summary} ({recipe.source})" for name, recipe in RECIPES.items()}


@dataclass(frozen=True, eq=False)
class Output:
    """What a method returns for one batch.

    Attributes:
        loss: scalar with a graph; call ``.backward()`` on it.
        x_adv: adversarial inputs, (B, ...), or None where the method attacks nothing.
        weights: ω, (B,), detached.
        logits: of the clean inputs, (B, C), detached, or None where the objective does not need them.
        logits_adv: of the adversarial inputs, likewise.
        forwards: forward passes of this step, attack included.
        backwards: backward passes to the input; the one to the weights is the caller's.
    """

    loss: Tensor
    x_adv: Tensor | None
    weights: Tensor
    logits: Tensor | None
    logits_adv: Tensor | None
    forwards: int
    backwards: int


class Method:
    """A method bound to a threat model; call it on a batch in any training loop.

    Made by :func:`method`. The only state is how many batches it has seen, which keys its random starts.
    """

    def __init__(
        self,
        name: str,
        threat: ThreatModel,
        attack: Ascent | None,
        terms: Callable[[Tensor | None, Tensor | None, Tensor], Terms],
        settings: dict[str, Any],
    ):
        self.name = name
        self.threat = threat
        self.attack = attack
        self.settings = settings
        self.objective = OBJECTIVES[RECIPES[name].objective]
        self._terms = terms
        self._calls = 0

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        epoch: int = 0,
        *,
        class_weights: Tensor | None = None,
        noise: Noise | None = None,
        eps_scale: float = 1.0,
    ) -> Output:
        """Attack a batch and compute the loss to minimise.

        Args:
            model: classifier to logits (B, C), in the mode the loss should see (``model.train()`` in training).
            x: clean inputs, (B, ...), inside the threat model's box.
            y: labels, (B,) int64.
            epoch: 0-based, for methods with a schedule.
            class_weights: (C,), multiplies the whole term of each example by the weight of its class.
            noise: random numbers keyed by example; by default each call draws new ones from the method's seed.
            eps_scale: attack with ε times this, for ε warm-up.

        Returns:
            Output, with ``loss = mean(c_y · (ω · ℓ + r))``.

        Raises:
            UserError: on the first call, if data, model and threat model do not fit together.
        """
        if self._calls == 0:
            check_inputs(x, y, self.threat)
            with checked_passes(model, y):
                return self._step(model, x, y, epoch, class_weights, noise, eps_scale)
        return self._step(model, x, y, epoch, class_weights, noise, eps_scale)

    def _step(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        epoch: int,
        class_weights: Tensor | None,
        noise: Noise | None,
        eps_scale: float,
    ) -> Output:
        noise = noise or Noise(self.settings["seed"], torch.arange(len(x), device=x.device), stage=self._calls)
        self._calls += 1
        x_adv, forwards, backwards = None, 0, 0
        if self.attack is not None:
            threat = self.threat if eps_scale == 1.0 else self.threat.scaled(eps_scale)
            found = ascend(model, x, y, threat, self.attack, keep="last-unseen", seed=noise)
            x_adv, forwards, backwards = found.x_adv, found.forwards, found.backwards
        logits = model(x) if self.objective.clean else None
        logits_adv = model(x_adv) if self.objective.adversarial and x_adv is not None else None
        forwards += self.objective.clean + self.objective.adversarial
        robust, regular = self._terms(logits, logits_adv, y)
        weights = torch.ones_like(robust)
        terms = weights * robust + regular
        if class_weights is not None:
            terms = terms * class_weights.to(terms)[y]
        return Output(terms.mean(), x_adv, weights, _detached(logits), _detached(logits_adv), forwards, backwards)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for a card; ``method(**card, threat=...)`` makes the same method again."""
        plain = {key: value if isinstance(value, str | int | float) else str(value) for key, value in self.settings.items()}
        return {"name": self.name, **plain}

    def __repr__(self) -> str:
        return f"method({self.name!r}, {self.threat})"


def method(name: str, threat: ThreatModel, *, preset: PresetName = "paper", seed: int = 0, **overrides: Any) -> Method:
    """Make a method by name.

    Args:
        name: see :func:`list_methods`.
        threat: what the adversary may do.
        preset: ``"paper"``, or ``"official"`` for the authors' public code where it differs.
        seed: of the random starts.
        **overrides: any setting of the attack (``steps``, ``step_size``, ``start``, ``loss``, ``mode``, ...) or of the
            objective (``beta``).

    Raises:
        UserError: for an unknown name or setting, with the nearest right one, and for a setting that makes no sense.

    Example:
        >>> from hauberk import Linf
        >>> method("mart", Linf("8/255"), beta=6.0)
        method('mart', Linf(8/255))
    """
    if name not in RECIPES:
        raise unknown_name("method", name, RECIPES)
    recipe = RECIPES[name]
    if preset not in ("paper", "official"):
        raise UserError(f"preset is 'paper' or 'official', not {preset!r}")
    attack = recipe.attack if preset == "paper" else recipe.attack_official
    known = [field.name for field in fields(Ascent)] if attack else []
    hyper = {} if recipe.beta is None else {"beta": recipe.beta}
    for key in overrides:
        if key not in known and key not in hyper:
            raise unknown_name(f"setting of {name}", key, [*known, *hyper])
    if attack is not None:
        attack = replace(attack, **{key: value for key, value in overrides.items() if key in known})
        parse_step(attack.step_size, threat)
    hyper |= {key: _number(key, value) for key, value in overrides.items() if key in hyper}
    terms = OBJECTIVES[recipe.objective].terms
    return Method(
        name,
        threat,
        attack,
        lambda logits, logits_adv, y: terms(logits, logits_adv, y, preset=preset, **hyper),
        {"preset": preset, "seed": seed, **hyper, **overrides},
    )


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise UserError(f"{name} must be a number that is not negative, got {value!r}")
    return float(value)


def _detached(logits: Tensor | None) -> Tensor | None:
    return None if logits is None else logits.detach()
