"""The table of methods: what each is made of, and where that comes from; and ``hb.method``, which builds one by its name."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from hauberk.attacks import PGD, SmoothAdv
from hauberk.certification.training import IBP, SABR, CrownIBP
from hauberk.core.arguments import checked, shown
from hauberk.core.errors import UserError, find_name, in_one_line, unknown_name
from hauberk.core.imports import import_object, is_import_path
from hauberk.core.numerics import Precision
from hauberk.core.step_context import MeasuredWeighting
from hauberk.methods.awp import AWP
from hauberk.methods.inner import BatchAttack, FreeReplay, InnerAttack, MinimumMargin, SmallBall
from hauberk.methods.method import Method
from hauberk.objectives import ALP, AT, CLP, MMA, AdversarialClass, Mart, NoisyAT, NoisyStandard, Objective, Standard, Trades
from hauberk.threat import ThreatModel
from hauberk.weighting.gairat import COUNTS, Gairat
from hauberk.weighting.mail import MARGINS, Mail


@dataclass(frozen=True)
class MethodSpec:
    """One row of the table; adding a method is adding a row.

    Attributes:
        objective: the loss, with its hyperparameters.
        summary: what it is, in one line.
        source: where it comes from.
        attack: the inner maximisation as the paper states it; None where there is none.
        weighting: instance weights; None for weights 1.
        awp: weight perturbation; None for none.
        official: what the authors' public code does otherwise, by the name of the setting.
        further: what other sources do otherwise, by the name of their preset.
        inner: how the attack is used in training.
    """

    objective: Objective
    summary: str
    source: str
    attack: PGD | None = None
    weighting: MeasuredWeighting | None = None
    awp: AWP | None = None
    official: dict[str, Any] = field(default_factory=dict)
    further: dict[str, dict[str, Any]] = field(default_factory=dict)
    inner: Callable[..., InnerAttack] = BatchAttack

    def changes(self, preset: str) -> dict[str, Any]:
        """Return what a preset does otherwise than the paper. Raises UserError if this method has no such preset."""
        presets = {"paper": {}, "official": self.official, **self.further}
        if preset not in presets:
            raise UserError(f"preset is {' or '.join(map(repr, presets))} for this method, not {preset!r}")
        return presets[preset]


def _friendly(*epochs: int) -> Callable[..., InnerAttack]:
    """Friendly training with τ 0, 1, 2, ... up to these epochs of the sources' training, in proportion in another."""
    return partial(BatchAttack, taus=tuple((epoch / epochs[-1], tau) for tau, epoch in enumerate(epochs)))


# At ε = 8/255, ε/4 is the papers' 2/255 and 1.25 ε is 10/255. The public codes' 0.007 at ε = 0.031 is 7/31 ε.
_OFFICIAL = {"step_size": "7*eps/31"}
# TRADES, MART and MAIL take the first gradient at x + 0.001·N(0, 1) as it is; FAT clips it.
_UNPROJECTED = {**_OFFICIAL, "start": "normal-unprojected"}
# TRADES' code makes the clean pass of its divergence anew.
_TRADES_CODE = {**_UNPROJECTED, "passes": ("attack", "clean", "adversarial", "clean")}
# cifar10_challenge, robust_overfitting, AT-AWP and fast_adversarial attack in training mode, the others in evaluation mode.
# The second and third look at the last point to choose among restarts, and at the clean inputs for the log after the step.
_RICE_CODE = {"mode": "train", "evaluate_last": True, "passes": ("attack", "adversarial", "step", "clean")}
_UNIFORM = PGD(10, "eps/4", "uniform")
_KL = PGD(10, "eps/4", "normal", loss="kl")

_MAIL_CODE = {**_UNPROJECTED, "burn_in": 76}  # counted from 0

METHODS: dict[str, MethodSpec] = {
    "standard": MethodSpec(Standard(), "standard training, no attack", "empirical risk minimisation"),
    "fgsm-at": MethodSpec(
        AT(), "single-step adversarial training from a random start; watch for catastrophic overfitting",
        "Wong et al. 2020, fast_adversarial",
        PGD(1, "1.25*eps", "uniform"), official={"mode": "train"}),
    "free-at": MethodSpec(
        AT(), "free adversarial training: each batch 8 times, input and weight gradients from the same pass",
        "Shafahi et al. 2019",
        PGD(1, "eps", "uniform"), inner=lambda attack: FreeReplay()),  # whose step is the last backward pass
    "at": MethodSpec(
        AT(), "adversarial training: cross-entropy at the worst input", "Madry et al. 2018, cifar10_challenge",
        _UNIFORM, official=_RICE_CODE),
    "trades": MethodSpec(
        Trades(), "clean cross-entropy, and KL between clean and adversarial predictions", "Zhang et al. 2019, trades.py",
        _KL, official=_TRADES_CODE),
    "mart": MethodSpec(
        Mart(), "boosted cross-entropy, and KL weighted by 1 - p_y of the clean input", "Wang et al. 2020, mart.py",
        _UNIFORM, official=_UNPROJECTED,
        # A note among the sources: clean pass before the attack, which is in training mode; weight and clean logits detached.
        further={"note": {"beta": 6.0, "mode": "train", "passes": ("clean", "attack", "adversarial")}}),
    "alp": MethodSpec(
        ALP(), "adversarial pairing of predictions", "Kannan et al. 2018, as the MART paper compares it", _UNIFORM),
    "clp": MethodSpec(
        CLP(), "clean loss and pairing of predictions", "Kannan et al. 2018, as the MART paper compares it", _UNIFORM),
    "mma": MethodSpec(
        MMA(), "margin maximisation: train at the nearest adversarial example within ε = d_max",
        "Ding et al. 2020, mma_training: d_max 12/255 on CIFAR-10",
        PGD(10, "eps/4", "uniform", loss="slm"), inner=MinimumMargin),
    "fat": MethodSpec(
        AT(), "friendly adversarial training: early-stopped PGD",
        "Zhang et al. 2020, FAT.py: τ 0, 1, 2 up to epochs 50, 90, 120",
        _UNIFORM, official={**_OFFICIAL, "step_noise": 0.001}, inner=_friendly(50, 90, 120)),
    "fat-trades": MethodSpec(
        Trades(), "TRADES with friendly adversarial inputs",
        "Zhang et al. 2020, FAT_for_TRADES.py: τ 0, 1, 2, 3 up to epochs 30, 50, 70, 85",
        _KL, official=_OFFICIAL, inner=_friendly(30, 50, 70, 85)),
    "fat-mart": MethodSpec(
        Mart(beta=6.0), "MART with friendly adversarial inputs",
        "Zhang et al. 2020, FAT_for_MART.py: τ 0 to 4 up to epochs 20, 40, 60, 80, 90",
        PGD(10, "eps/4", "normal"), official={**_OFFICIAL, "passes": ("attack", "adversarial", "clean")},
        inner=_friendly(20, 40, 60, 80, 90)),
    "gairat": MethodSpec(
        AT(), "geometry-aware reweighting by how many PGD iterates are classified right", "Zhang et al. 2021, GAIRAT.py",
        _UNIFORM, weighting=Gairat(), official={**_OFFICIAL, "burn_in": 59}),  # --begin_epoch 60, counted from 1
    "gair-trades": MethodSpec(
        Trades(beta=5.0), "TRADES reweighted as GAIRAT does (TRADES-LPS of the MAIL paper's Table 1)",
        "Wang et al. 2021, Section 4.2; no public code (GAIR-RST's loss of this name mixes two attacks by the weights)",
        _KL, weighting=Gairat()),
    "gair-mart": MethodSpec(
        Mart(beta=6.0), "MART reweighted as GAIRAT does (MART-LPS of the MAIL paper's Table 1)",
        "Wang et al. 2021, Section 4.2; no public code",
        _UNIFORM, weighting=Gairat()),
    "mail-at": MethodSpec(
        AT(), "adversarial training reweighted by probabilistic margins", "Wang et al. 2021 (MAIL), Eq. 9",
        _UNIFORM, weighting=Mail(slope=10.0, bias=-0.5), official=_MAIL_CODE),
    "mail-trades": MethodSpec(
        Trades(beta=5.0, direction="adv-to-clean"), "TRADES reweighted by probabilistic margins",
        "Wang et al. 2021 (MAIL), Eq. 10",
        _KL, weighting=Mail(slope=2.0, bias=0.0), official={**_MAIL_CODE, "direction": "clean-to-adv"}),
    "mail-mart": MethodSpec(
        Mart(beta=6.0), "MART with its boosted cross-entropy reweighted by probabilistic margins",
        "Wang et al. 2021 (MAIL); the paper's Appendix C is not public, this is its code's form",
        _UNIFORM, weighting=Mail(slope=2.0, bias=0.0), official=_MAIL_CODE),
    "ibp": MethodSpec(
        IBP(), "certified training: the worst logits that interval bounds allow, no attack; let ε grow (eps_warmup)",
        "Gowal et al. 2018"),
    "crown-ibp": MethodSpec(
        CrownIBP(), "certified training by CROWN-IBP's bounds, which give way to intervals while ε grows (eps_warmup)",
        "Zhang et al. 2020"),
    "sabr": MethodSpec(
        SABR(), "certified training by interval bounds on a small box around an adversarial input",
        "Müller et al. 2023; its public code attacks the whole ball by steps that fall from ε/2, and moves x' inwards",
        PGD(8, "eps/2", "uniform"), inner=SmallBall),
    "gaussian": MethodSpec(
        NoisyStandard(), "training with Gaussian noise, no attack, for randomised smoothing",
        "Cohen et al. 2019, smoothing: σ 0.12, 0.25, 0.5 or 1 on CIFAR-10"),
    "smoothadv": MethodSpec(
        NoisyAT(), "adversarial training of the smoothed classifier, at adversarial inputs with Gaussian noise",
        "Salman et al. 2019, smoothing-adversarial: in L2, ε 64/256 to 512/256, m 1 to 8, ε warm-up of 10 epochs",
        SmoothAdv(10, "eps/5", "clean")),
    "adversarial-class": MethodSpec(
        AdversarialClass(), "an extra class for adversarial inputs, attacked by PGD that tries to evade it",
        "the idea is in the lecture notes among the sources; the construction is ours",
        PGD(10, "eps/4", "uniform", loss="evade")),
}  # fmt: skip

_BUILDERS: dict[str, Callable[..., Method]] = {}  # methods of the caller's own


@checked
def get_method_spec(name: str) -> MethodSpec:
    """Return the row of a method, with weight perturbation for a name that ends in ``+awp``.

    Raises:
        UserError: if there is none of that name, with the nearest one.
    """
    base, plus, _ = find_method(name).partition("+")
    if base not in METHODS:
        raise UserError(f"{base!r} is no row of the table of methods, but built by a function")
    spec = METHODS[base]
    if not plus:
        return spec
    summary = spec.summary + ", at adversarially perturbed weights (Wu et al. 2020)"
    if not isinstance(spec.objective, Trades):
        return replace(spec, awp=AWP(0.01), summary=summary)
    official = spec.official | {"awp_warmup": 9}  # --awp-warmup 10, counted from 1
    if base == "trades":  # TRADES-AWP's own code steps by 2/255 at ε 8/255, and sees x' first
        official |= {"step_size": "eps/4", "passes": ("attack", "adversarial", "clean", "clean")}
    return replace(spec, awp=AWP(0.005), official=official, summary=summary)


def find_method(name: str) -> str:
    """Return the name of a method as the table has it, whatever its case; an import path is left as it is.

    Raises:
        UserError: if there is none of that name, with the nearest one.
    """
    if is_import_path(name):
        return name
    base, plus, suffix = name.partition("+")
    if plus and suffix.lower() != "awp":
        raise UserError(f"the only addition is '+awp', not {plus + suffix!r:.60}")
    return find_name("method", base, [*METHODS, *_BUILDERS]) + ("+awp" if plus else "")


@checked
def register_method(name: str, build: Callable[..., Method]) -> None:
    """Give a method of your own a name, for :func:`hauberk.method` and everything that takes one.

    Args:
        name: that no method has yet, without "+" and ":".
        build: ``build(threat, **settings) -> Method``; the first line of its description is what lists show.

    Raises:
        UserError: if the name is taken, or no name.
    """
    if name in METHODS or name in _BUILDERS or not name or "+" in name or ":" in name:
        raise UserError(f"{name!r} is no free name for a method")
    _BUILDERS[name] = build


def list_methods() -> dict[str, str]:
    """Return every method's name with one line on what it is and where it comes from; rows of papers also take ``+awp``."""
    rows = {name: f"{spec.summary} ({spec.source})" for name, spec in METHODS.items()}
    own = {name: (build.__doc__ or "registered by the caller").strip().splitlines()[0] for name, build in _BUILDERS.items()}
    return rows | own


@checked
def default_settings(name: str, preset: str = "paper") -> dict[str, Any]:
    """Return what a method has where nobody says otherwise, by the names that :func:`method` takes.

    Raises:
        UserError: as :func:`get_method_spec`.
    """
    spec = get_method_spec(name)
    own = {key: getattr(spec.attack, key) for key in _NAMES_OF_ATTACK} if spec.attack else {}
    for part in (spec.objective, spec.weighting):
        own |= {key: getattr(part, key) for key in _names(part)} if part else {}
    own |= {key: getattr(spec.awp, field) for key, field in _NAMES_OF_AWP.items()} if spec.awp else {}
    return own | spec.changes(preset)


@checked
def method(
    name: str,
    threat: ThreatModel,
    *,
    preset: str = "paper",
    seed: int = 0,
    precision: Precision = "model",
    compiled: bool = False,
    attack: Any = None,
    objective: Any = None,
    weighting: Any = None,
    weight_perturbation: Any = None,
    **overrides: Any,
) -> Method:
    """Make a method by name.

    Args:
        name: see :func:`hauberk.list_methods`; with ``+awp`` behind it for adversarially perturbed weights; or the import path
            of a function of your own, ``package.module:build``, called as ``build(threat, **settings)``.
        threat: what the adversary may do.
        preset: ``"paper"``, or ``"official"`` for the authors' public code where it differs; ``"note"`` of ``mart``.
        seed: of the random starts.
        precision: what the passes run on: "model", the model as it is, under torch's switches as they are; "fp32", for attacks
            in evaluation mode, a copy of it with BatchNorm fused, the same up to rounding, and true float32 in all passes;
            "tf32", the same with TF32 allowed on CUDA; "bf16", a copy in bfloat16, and autocast for the loss.
            ``loss.backward()`` is yours: put it, or the whole step, into ``hb.float32_mode(precision)`` for the same there.
        compiled: run that copy by ``torch.compile``, which costs 20 to 60 s at the first step, and as much again where the
            method needs passes without gradients (a second graph). A copy of another model begins with an empty compiler
            (``torch.compiler.reset``), so that no CUDA graphs pile up.
        attack: in place of the row's; this and the next three as :class:`hauberk.Method` takes them, or their import paths.
        objective: in place of the row's.
        weighting: in place of the row's.
        weight_perturbation: in place of the row's.
        **overrides: any setting of the attack (``steps``, ``step_size``, ``start``, ``loss``, ``mode``, ...), of the
            objective (``beta``, ...), of the weighting (``measure``, ``kind``, ``slope``, ``bias``, ``lam``, ``burn_in``,
            ...) or of the weight perturbation (``gamma``, ``awp_warmup``); ``passes`` as :class:`hauberk.Method` takes them;
            and ``evaluate_last``, whether the attack looks at its last point.

    Returns:
        The method; call it on each batch.

    Raises:
        UserError: for an unknown name or setting, with the nearest right one, and for a setting that makes no sense.

    Example:
        >>> from hauberk import Linf
        >>> method("mail-trades+awp", Linf("8/255"), measure="pm-nat")
        method('mail-trades+awp', Linf(8/255), burn_in=74)
    """
    name = find_method(name)
    given = {"attack": attack, "objective": objective, "weighting": weighting, "weight_perturbation": weight_perturbation}
    given = {key: value for key, value in given.items() if value is not None}
    settings = {"preset": preset, "seed": seed, **given, **overrides}
    parts, overrides = ({key: _imported(key, value) for key, value in some.items()} for some in (given, overrides))
    if is_import_path(name):
        return _built(import_object(name, "method"), name, threat, {k: v for k, v in settings.items() if k != "preset"})
    if name in _BUILDERS:
        return _built(_BUILDERS[name], name, threat, {k: v for k, v in settings.items() if k != "preset" or v != "paper"})
    spec = get_method_spec(name)
    _check_names(name, spec, parts, overrides)
    chosen = {"preset": preset} | spec.changes(preset) | overrides
    used = {key: chosen[key] for key in _names_of_inner(spec) if key in chosen}
    made = Method(
        threat,
        parts.get("attack", spec.attack and spec.inner(_changed(spec.attack, chosen), **used)),
        parts.get("objective", _changed(spec.objective, chosen)),
        parts["weighting"] if "weighting" in parts else _weighting(name, spec, chosen),
        parts.get("weight_perturbation", _awp(spec, chosen)),
        name=name,
        settings=settings,
        seed=seed,
        precision=precision,
        compiled=compiled,
        burn_in=chosen.get("burn_in"),
        passes=chosen.get("passes", ("attack",)),
    )
    made.burn_in_is_chosen = "burn_in" in overrides or ("weighting" in parts and made.burn_in != "first-drop")
    return made


def _imported(key: str, value: Any) -> Any:
    """Import a part, or the loss of the attack, that is given by its import path."""
    return import_object(value, key) if isinstance(value, str) and is_import_path(value) else value


def _built(build: Callable[..., Method], name: str, threat: ThreatModel, settings: dict[str, Any]) -> Method:
    """Build a method of the caller's own, or raise UserError if it is none."""
    seed = settings.pop("seed")
    try:
        inspect.signature(build).bind(threat, **settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} cannot be built as build(threat, {', '.join(settings)}): {in_one_line(error)}") from error
    made = build(threat, **settings)
    if not isinstance(made, Method):
        raise UserError(f"{name} must build an hb.Method, it returned {type(made).__name__}")
    made.name, made.seed, made.settings = name, seed, {"seed": seed, **settings}
    return made


def _names(part: Any) -> list[str]:
    """Settings of a part, which is a dataclass."""
    return [field.name for field in fields(part) if field.name != "preset"]


_NAMES_OF_ATTACK = [name for name in _names(PGD) if name not in ("tau", "return_last", "evaluate_last", "targets")]
_NAMES_OF_WEIGHTING = list(dict.fromkeys([*_names(Mail), *_names(Gairat)]))
_NAMES_OF_AWP = {"gamma": "gamma", "awp_warmup": "warmup"}


def _names_of_inner(spec: MethodSpec) -> list[str]:
    """Settings of how the attack is used, which a preset or the caller may set; one that the objective has too is for both."""
    return [name for name in inspect.signature(spec.inner).parameters if name not in ("attack", "taus")]


def _check_names(name: str, spec: MethodSpec, parts: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Refuse settings of parts that the method does not have, or that were given whole."""
    known = [
        "passes",
        *(_NAMES_OF_ATTACK if spec.attack and "attack" not in parts else ()),
        *(_names_of_inner(spec) if "attack" not in parts else ()),
        *(_names(spec.objective) if "objective" not in parts else ()),
        *(_NAMES_OF_WEIGHTING if "weighting" not in parts else ("burn_in",)),
        *(_NAMES_OF_AWP if "weight_perturbation" not in parts else ()),
    ]
    for key in overrides:
        if key not in known:
            raise unknown_name(f"setting of {name}", key, known)


def _changed(part: Any, chosen: dict[str, Any]) -> Any:
    """Replace the fields of a dataclass that are among the settings."""
    return replace(part, **{f.name: chosen[f.name] for f in fields(part) if f.name in chosen})


def _weighting(name: str, spec: MethodSpec, chosen: dict[str, Any]) -> MeasuredWeighting | None:
    """The weighting, of the kind that its measure asks for: MAIL's of margins, GAIRAT's of counts."""
    own = [key for key in chosen if key in _NAMES_OF_WEIGHTING]
    measure = chosen.get("measure", getattr(spec.weighting, "measure", None))
    if measure is None:
        if own:
            raise UserError(f"{name} has no weighting for {own[0]!r} to set; give measure=, too")
        return None
    if not isinstance(measure, str) or measure not in (*MARGINS, *COUNTS):
        raise UserError(f"measure is one of {', '.join((*MARGINS, *COUNTS))}, not {shown(measure)}")
    kind: type[Mail] | type[Gairat] = Mail if measure in MARGINS else Gairat
    for key in own:
        if key not in _names(kind):
            raise UserError(f"a weighting by {measure!r} has no {key!r}; it has {', '.join(sorted(_names(kind)))}")
    preset = {"preset": "official" if chosen["preset"] == "official" else "paper"}
    made: MeasuredWeighting = _changed(spec.weighting if isinstance(spec.weighting, kind) else kind(), chosen | preset)
    return made


def _awp(spec: MethodSpec, chosen: dict[str, Any]) -> AWP | None:
    own = {field: chosen[key] for key, field in _NAMES_OF_AWP.items() if key in chosen}
    made = replace(spec.awp or AWP(0.0), **own)
    return made if made.gamma else None
