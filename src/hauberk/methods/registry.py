"""The table of methods: what each is made of, and where that comes from. Data only; adding a method is adding a row."""

from dataclasses import dataclass, field
from typing import Any, Literal

from hauberk.attacks.steps import Ascent
from hauberk.core.errors import UserError, unknown_name
from hauberk.methods.awp import WeightPerturbation
from hauberk.methods.weights import Weighting
from hauberk.objectives import OBJECTIVES


@dataclass(frozen=True)
class MethodSpec:
    """One row of the table.

    Attributes:
        objective: name of the objective.
        summary: what it is, in one line.
        source: where it comes from.
        attack: the inner maximisation as the paper states it; None where there is none.
        settings: hyperparameters of the objective that differ from its defaults.
        weighting: instance weights.
        awp: weight perturbation.
        official: what the authors' public code does otherwise, by the name of the setting.
        taus: friendly training's τ: (share of the training up to which, τ).
        search: "ascent", or "margin" for MMA's search with a radius remembered for each example.
        replays: times each batch is used in a row, its perturbation carried over (free adversarial training); 1 for once.
    """

    objective: str
    summary: str
    source: str
    attack: Ascent | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    weighting: Weighting = field(default_factory=Weighting)
    awp: WeightPerturbation = field(default_factory=WeightPerturbation)
    official: dict[str, Any] = field(default_factory=dict)
    taus: tuple[tuple[float, int], ...] = ()
    search: Literal["ascent", "margin"] = "ascent"
    replays: int = 1


# ε/4 is the papers' 2/255 at 8/255. The public codes' 0.007 at ε = 0.031 is 7/31 ε.
_OFFICIAL = {"step_size": "7*eps/31"}
# cifar10_challenge, robust_overfitting, AT-AWP and fast_adversarial attack in training mode, the others in evaluation mode.
_TRAIN_MODE = {"mode": "train"}
_UNIFORM = Ascent(10, "eps/4", "uniform")
_KL = Ascent(10, "eps/4", "normal", loss="kl")

# MAIL paper, Section 4.1; its public code reweights from 0-based epoch 76 on and starts every attack at x + 0.001·N(0, 1).
_MAIL_AT = Weighting("pm-adv", "sigmoid-of-margin", slope=10.0, bias=-0.5)
_MAIL_OTHERS = Weighting("pm-adv", "sigmoid-of-margin", slope=2.0, bias=0.0)
_MAIL_CODE = {**_OFFICIAL, "start": "normal", "burn_in": 76}
# GAIRAT paper; its public code gates reweighting by --begin_epoch 60, counted from 1.
_GAIRAT = Weighting("kappa", "tanh", lam=-1.0)
_GAIRAT_CODE = {**_OFFICIAL, "burn_in": 59}

METHODS = {
    "standard": MethodSpec("standard", "standard training, no attack", "empirical risk minimisation"),
    "fgsm-at": MethodSpec(
        "at",
        "single-step adversarial training from a random start; watch for catastrophic overfitting",
        "Wong et al. 2020, fast_adversarial: α = 1.25 ε (10/255 at 8/255)",
        Ascent(1, "1.25*eps", "uniform"),
        official=_TRAIN_MODE,
    ),
    "free-at": MethodSpec(
        "at",
        "free adversarial training: each batch 8 times, input and weight gradients from the same pass",
        "Shafahi et al. 2019",
        Ascent(1, "eps", "uniform"),
        replays=8,
    ),
    "at": MethodSpec(
        "at",
        "adversarial training: cross-entropy at the worst input",
        "Madry et al. 2018, cifar10_challenge",
        _UNIFORM,
        official=_TRAIN_MODE,
    ),
    "trades": MethodSpec(
        "trades",
        "clean cross-entropy, and KL between clean and adversarial predictions",
        "Zhang et al. 2019, trades.py",
        _KL,
        official=_OFFICIAL,
    ),
    "mart": MethodSpec(
        "mart",
        "boosted cross-entropy, and KL weighted by 1 - p_y of the clean input",
        "Wang et al. 2020, mart.py",
        _UNIFORM,
        official={**_OFFICIAL, "start": "normal"},
    ),
    "alp": MethodSpec(
        "alp", "adversarial pairing of predictions", "Kannan et al. 2018, as the MART paper compares it", _UNIFORM
    ),
    "clp": MethodSpec(
        "clp", "clean loss and pairing of predictions", "Kannan et al. 2018, as the MART paper compares it", _UNIFORM
    ),
    "mma": MethodSpec(
        "mma",
        "margin maximisation: train at the nearest adversarial example within ε = d_max",
        "Ding et al. 2020, mma_training: d_max 12/255 on CIFAR-10",
        Ascent(10, "eps/4", "uniform", loss="slm"),
        search="margin",
    ),
    "fat": MethodSpec(
        "at",
        "friendly adversarial training: early-stopped PGD",
        "Zhang et al. 2020, FAT.py: τ 0, 1, 2 up to epochs 50, 90, 120",
        _UNIFORM,
        official={**_OFFICIAL, "jitter": 0.001},
        taus=((50 / 120, 0), (90 / 120, 1), (1.0, 2)),
    ),
    "fat-trades": MethodSpec(
        "trades",
        "TRADES with friendly adversarial inputs",
        "Zhang et al. 2020, FAT_for_TRADES.py: τ 0, 1, 2, 3 up to epochs 30, 50, 70, 85",
        _KL,
        official=_OFFICIAL,
        taus=((30 / 85, 0), (50 / 85, 1), (70 / 85, 2), (1.0, 3)),
    ),
    "fat-mart": MethodSpec(
        "mart",
        "MART with friendly adversarial inputs",
        "Zhang et al. 2020, FAT_for_MART.py: τ 0 to 4 up to epochs 20, 40, 60, 80, 90; β 6",
        Ascent(10, "eps/4", "normal"),
        settings={"beta": 6.0},
        official=_OFFICIAL,
        taus=((20 / 90, 0), (40 / 90, 1), (60 / 90, 2), (80 / 90, 3), (1.0, 4)),
    ),
    "gairat": MethodSpec(
        "at",
        "geometry-aware reweighting by how many PGD iterates are classified right",
        "Zhang et al. 2021, GAIRAT.py",
        _UNIFORM,
        weighting=_GAIRAT,
        official=_GAIRAT_CODE,
    ),
    "gair-trades": MethodSpec(
        "trades",
        "TRADES reweighted as GAIRAT does (TRADES-LPS of the MAIL paper's Table 1)",
        "Wang et al. 2021, Section 4.2; no public code",
        _KL,
        settings={"beta": 5.0},
        weighting=_GAIRAT,
    ),
    "gair-mart": MethodSpec(
        "mart",
        "MART reweighted as GAIRAT does (MART-LPS of the MAIL paper's Table 1)",
        "Wang et al. 2021, Section 4.2; no public code",
        _UNIFORM,
        settings={"beta": 6.0},
        weighting=_GAIRAT,
    ),
    "mail-at": MethodSpec(
        "at",
        "adversarial training reweighted by probabilistic margins",
        "Wang et al. 2021 (MAIL), Eq. 9: slope 10, bias -0.5",
        _UNIFORM,
        weighting=_MAIL_AT,
        official=_MAIL_CODE,
    ),
    "mail-trades": MethodSpec(
        "trades",
        "TRADES reweighted by probabilistic margins",
        "Wang et al. 2021 (MAIL), Eq. 10: slope 2, bias 0, β 5",
        _KL,
        settings={"beta": 5.0, "direction": "adv-to-clean"},
        weighting=_MAIL_OTHERS,
        official={**_MAIL_CODE, "direction": "clean-to-adv"},
    ),
    "mail-mart": MethodSpec(
        "mart",
        "MART with its boosted cross-entropy reweighted by probabilistic margins",
        "Wang et al. 2021 (MAIL): slope 2, bias 0, β 6; the paper's Appendix C is not public, this is its code's form",
        _UNIFORM,
        settings={"beta": 6.0},
        weighting=_MAIL_OTHERS,
        official=_MAIL_CODE,
    ),
    "adversarial-class": MethodSpec(
        "adversarial-class",
        "an extra class for adversarial inputs, attacked by PGD that tries to evade it",
        "the idea is in the lecture notes among the sources; the construction is ours",
        Ascent(10, "eps/4", "uniform", loss="evade"),
    ),
}

# Adversarial weight perturbation for "+awp": AT-AWP 0.01 from the start, TRADES-AWP 0.005 from its 10th epoch on (public code:
# --awp-warmup 10, counted from 1). TRADES-AWP's own code steps by 2/255 at ε 8/255, not as TRADES' code does.
_AWP = WeightPerturbation(0.01)
_AWP_TRADES = WeightPerturbation(0.005)
_AWP_TRADES_CODE = {"awp_warmup": 9}
_AWP_STEPS = {"trades": {"step_size": "eps/4"}}


def get_method_spec(name: str) -> MethodSpec:
    """Return the row of a method, with weight perturbation for a name that ends in ``+awp``.

    Raises:
        UserError: if there is none of that name, with the nearest one.
    """
    base, plus, suffix = name.partition("+")
    if plus and suffix != "awp":
        raise UserError(f"the only addition is '+awp', not {plus + suffix!r}")
    if base not in METHODS:
        raise unknown_name("method", base, METHODS)
    recipe = METHODS[base]
    if not plus:
        return recipe
    trades = recipe.objective == "trades"
    official = recipe.official | (_AWP_TRADES_CODE if trades else {}) | _AWP_STEPS.get(base, {})
    fields = {**vars(recipe), "awp": _AWP_TRADES if trades else _AWP, "official": official}
    return MethodSpec(**{**fields, "summary": recipe.summary + ", at adversarially perturbed weights (Wu et al. 2020)"})


def list_methods() -> dict[str, str]:
    """Return every method's name with one line on what it is and where it comes from; each also takes ``+awp``."""
    return {name: f"{recipe.summary} ({recipe.source})" for name, recipe in METHODS.items()}


def equation(recipe: MethodSpec) -> str:
    """Return what a method minimises, in one line, with its own settings."""
    objective = OBJECTIVES[recipe.objective]
    line = objective.equation
    if {**objective.settings, **recipe.settings}.get("direction") == "adv-to-clean":
        line = line.replace("KL(p(x)‖p(x'))", "KL(p(x')‖p(x))")
    return f"mean of {line}"
