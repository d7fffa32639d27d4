"""The table of methods: what each is made of, and where that comes from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hauberk.attacks import PGD, SmoothAdv
from hauberk.certification.training import IBP, SABR, CrownIBP
from hauberk.core.errors import UserError
from hauberk.core.step_context import MeasuredWeighting
from hauberk.methods.adr import ADR
from hauberk.methods.distillation import FromTangentOfTeacher, FromTeacher, FromTeacherAtPoint
from hauberk.methods.inner_attacks.batch_attack import BatchAttack, InnerAttack, SmallBall
from hauberk.methods.inner_attacks.free_replay import FreeReplay
from hauberk.methods.inner_attacks.inverse import WithInverse
from hauberk.methods.inner_attacks.minimum_margin import MinimumMargin
from hauberk.methods.inner_attacks.mm_at import TargetsInTurn
from hauberk.methods.inner_attacks.n_fgsm import NFGSM
from hauberk.methods.inner_attacks.several_threats import AlternatingThreats, WorstThreat
from hauberk.methods.weight_perturbation.awp import AWP
from hauberk.methods.weight_perturbation.rwp import RWP
from hauberk.methods.weight_perturbation.sam import SAM
from hauberk.objectives import (
    ALP,
    ARD,
    AT,
    CFAAT,
    CLP,
    DAFAAT,
    FRL,
    GKL,
    HAT,
    IKL,
    LRAT,
    MMA,
    RSLAD,
    SAAD,
    SOVR,
    TSOVR,
    UIAT,
    AdaAD,
    AdversarialClass,
    ARoW,
    CFATrades,
    DAFATrades,
    Mart,
    Mixed,
    NoisyAT,
    NoisyStandard,
    Objective,
    Ramp,
    ReBAT,
    Score,
    Standard,
    Trades,
    UIATTrades,
    UniformNoise,
)
from hauberk.objectives.local_linearity import ELLE, GradAlign, with_terms
from hauberk.weighting import Gairat, Mail, Saad, Vir


@dataclass(frozen=True)
class MethodSpec:
    """One row of the table; adding a method is adding a row.

    Attributes:
        objective: the loss, with its hyperparameters.
        summary: what it is, in one line.
        source: where it comes from.
        attack: the inner maximisation as the paper states it; None where there is none.
        weighting: instance weights; None for weights 1.
        awp: weight perturbation, AWP or another; None for none.
        targets: what makes probabilities of the classes in place of labels; None for the labels.
        official: what the authors' public code does otherwise, by the name of the setting.
        further: what other sources do otherwise, by the name of their preset.
        inner: how the attack is used in training.
        terms: what is added to the regularizer of the objective.
    """

    objective: Objective
    summary: str
    source: str
    attack: PGD | None = None
    weighting: MeasuredWeighting | None = None
    awp: AWP | SAM | RWP | None = None
    targets: ADR | None = None
    official: dict[str, Any] = field(default_factory=dict)
    further: dict[str, dict[str, Any]] = field(default_factory=dict)
    inner: Callable[..., InnerAttack] = BatchAttack
    terms: tuple[GradAlign | ELLE, ...] = ()

    @property
    def equation(self) -> str:
        """What is minimised of an example, the terms that are added included."""
        return with_terms(self.objective.equation, self.terms)

    @property
    def needs_teacher(self) -> bool:
        """Whether it learns from another network, which the caller gives."""
        return any(getattr(part, "needs_teacher", False) for part in (self.objective, self.weighting, self.inner))

    def changes(self, preset: str) -> dict[str, Any]:
        """Return what a preset does otherwise than the paper. Raises UserError if this method has no such preset."""
        presets = {"paper": {}, "official": self.official, **self.further}
        if preset not in presets:
            raise UserError(f"preset is {' or '.join(map(repr, presets))} for this method, not {preset!r}")
        return presets[preset]


def _friendly(*epochs: int, by: int = 1) -> Callable[..., InnerAttack]:
    """Friendly training with τ 0, 1, 2, ... times ``by`` up to these epochs of the sources' training, or in proportion."""
    return partial(BatchAttack, taus=tuple((epoch / epochs[-1], by * tau) for tau, epoch in enumerate(epochs)))


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
_BEST = PGD(10, "eps/4", "clean")  # of points visited, from x itself as the public code of E-AT and RAMP begins
_KL = PGD(10, "eps/4", "normal", loss="kl")

# DKL's code with its large budget, at an ε that grows from 0 over the whole training (eps_warmup=1 of hb.train).
_DKL_CODE = {"steps": 5, "step_size": "eps/2", "start": "normal-unprojected", "passes": ("attack", "adversarial", "clean")}

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
        MMA(), "margin maximisation: train at the nearest adversarial example within d_max, ε unless it is set",
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
    "vir-at": MethodSpec(
        AT(), "adversarial training reweighted by vulnerability and by how far the attack moves the prediction",
        "Fakorede et al. 2023; no public code, its constants from memory",
        _UNIFORM, weighting=Vir()),
    "vir-trades": MethodSpec(
        Trades(beta=5.0), "TRADES reweighted by vulnerability and by how far the attack moves the prediction",
        "Fakorede et al. 2023; no public code, its constants from memory",
        _KL, weighting=Vir(scale=8.0, slope=3.0, bias=1.6)),
    "arow": MethodSpec(
        ARoW(), "clean cross-entropy with label smoothing, and KL weighted by 1 - p_y of the adversarial input",
        "Yang et al. 2023, ARoW: λ 3.5, label smoothing 0.2; its code attacks by cross-entropy on CIFAR-100",
        PGD(10, "eps/4", "uniform", loss="kl")),
    "score": MethodSpec(
        Score(), "squared distances of probabilities in place of cross-entropy and KL",
        "Pang et al. 2022, SCORE: TRADES (LSE); 'clipped' is its code without generated data, whose rate is 0.05",
        PGD(10, "eps/4", "normal", loss="lse"), official={"mode": "train-frozen", "start": "uniform"},
        further={"clipped": {"beta": 6.0, "clip": 0.3}}),
    "ikl": MethodSpec(
        IKL(), "KL taken apart: squared differences of logits, weighted by class means of the last epoch, and cross-entropy",
        "Cui et al. 2024, DKL; its results are with +awp and an average of the weights",
        _KL, official=_DKL_CODE),
    "gkl": MethodSpec(
        GKL(), "IKL with a flatter prior of the classes",
        "Cui et al. 2026, DKL; a line of its script that lacks a backslash leaves T at 4",
        _KL, official={**_DKL_CODE, "prior_temperature": 4.0}),
    "sovr": MethodSpec(
        SOVR(), "one-vs-the-rest in place of cross-entropy for the smallest logit margins at adversarial inputs",
        "Kanai et al. 2023; no public code",
        _UNIFORM),
    "tsovr": MethodSpec(
        TSOVR(), "TRADES with one-vs-the-rest in place of cross-entropy for the smallest logit margins",
        "Kanai et al. 2023; no public code",
        _KL),
    "lrat": MethodSpec(
        LRAT(), "clean and adversarial cross-entropy of each example, shared by how many PGD iterates are classified right",
        "Gao et al. 2021, LRAT, with one attack; no public code, its form from memory",
        _UNIFORM),
    "uiat": MethodSpec(
        UIAT(), "adversarial training that draws adversarial predictions to those of inverse adversarial inputs",
        "Dong et al. 2023, UIAT; no public code of its authors was found, β from a comparison of others",
        _UNIFORM, inner=WithInverse),
    "uiat-trades": MethodSpec(
        UIATTrades(), "TRADES with the predictions of inverse adversarial inputs in place of the clean ones",
        "Dong et al. 2023, UIAT, which begins from TRADES; no public code of its authors was found",
        _KL, inner=WithInverse),
    "cfa-at": MethodSpec(
        CFAAT(), "adversarial training with a radius of each class, from its robust accuracy in the last epoch",
        "Wei et al. 2023, CFA; its FAWA is a setting of the training (fawa=0.88); x' may leave the threat model",
        _UNIFORM, official={"mode": "train", "passes": ("attack", "adversarial", "step", "clean")},
        inner=partial(BatchAttack, own_steps=False)),
    "cfa-trades": MethodSpec(
        CFATrades(), "TRADES with a radius and a trade-off of each class, from its robust accuracy in the last epoch",
        "Wei et al. 2023, CFA; its FAWA is a setting of the training (fawa=0.88); x' may leave the threat model",
        _KL, inner=partial(BatchAttack, own_steps=False),
        official={"start": "normal-unprojected", "passes": ("attack", "clean", "adversarial", "clean", "step", "clean")}),
    "dafa-at": MethodSpec(
        DAFAAT(), "adversarial training with weights of the classes on loss and radius, from which are taken for which",
        "Lee et al. 2024, DAFA; x' may leave the threat model",
        PGD(10, "eps/4", "normal"), official=_UNPROJECTED),
    "dafa-trades": MethodSpec(
        DAFATrades(), "TRADES with weights of the classes on clean loss and radius, from which are taken for which",
        "Lee et al. 2024, DAFA; x' may leave the threat model",
        _KL, official={**_UNPROJECTED, "passes": ("attack", "adversarial", "clean")}),
    **{
        f"frl-{form}": MethodSpec(
            objective, f"TRADES with {what} of each class, from its errors in the last epoch",
            f"Xu et al. 2021, FRL, frl{form}.py: by errors of held-out images, from a trained network",
            _KL, inner=partial(BatchAttack, own_steps=False),
            official={"start": "normal-unprojected", "passes": ("attack", "clean", "adversarial", "clean")})
        for form, objective, what in (
            ("rw", FRL(), "weights of the clean loss and of the divergence"),
            ("rm", FRL(boundary_rate=0.0, radius_rate=0.1, weight_limit=0.3), "a weight of the clean loss and a radius"),
            ("rmrw", FRL(radius_rate=0.1, radius_limit=3.0), "weights of the clean loss and of the divergence, and a radius"),
        )
    },
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
    # Methods with a further network: teacher= (helper= of HAT), or the moving average of their own.
    "hat": MethodSpec(
        HAT(), "TRADES, with a helper's labels at twice the perturbation; needs teacher=, a plainly trained network",
        "Rade and Moosavi-Dezfooli 2022, hat",
        _KL, official={"start": "normal-unprojected"}),
    "rebat": MethodSpec(
        ReBAT(), "adversarial training that stays near its moving average after the learning rate drops",
        "Wang et al. 2023, ReBAT; its rate drops by a factor of 1.5 only, which is a setting of the training",
        _UNIFORM, official={"passes": ("attack", "adversarial", "step", "clean"), "mode": "train", "evaluate_last": True},
        further={"++": {"later_radius": 1.25, "later_steps": 12}}),  # ReBAT++: ε 10/255 in place of 8/255
    "ard": MethodSpec(
        ARD(), "distillation of a robust teacher at PGD's inputs; needs teacher=",
        "Goldblum et al. 2020, AdversariallyRobustDistillation",
        _UNIFORM, official={"mode": "train", "passes": ("attack", "adversarial", "clean")}),
    "rslad": MethodSpec(
        RSLAD(), "a robust teacher's clean prediction in place of labels, in attack and loss; needs teacher=",
        "Zi et al. 2021, RSLAD",
        _KL, inner=FromTeacher, official={"start": "normal-unprojected", "passes": ("attack", "adversarial", "clean")}),
    "adaad": MethodSpec(
        AdaAD(), "distillation of a teacher that is asked at every point of the attack; needs teacher=",
        "Huang et al. 2023, AdaAD",
        _KL, inner=FromTeacherAtPoint, official={"start": "normal-unprojected"}),
    "saad": MethodSpec(
        SAAD(), "distillation weighted by how unsure the teacher is of the adversarial input; needs teacher=",
        "Lee and Chung 2026 (TMLR), saad: the form and the constants of the public code",
        _KL, weighting=Saad(), inner=FromTangentOfTeacher,
        official={"start": "normal-unprojected", "passes": ("attack", "adversarial", "clean")}),
    # Inner attacks of later papers.
    "n-fgsm": MethodSpec(
        AT(), "single-step adversarial training from noise of 2ε, without a projection onto the ball",
        "de Jorge et al. 2022, N-FGSM",
        PGD(1, "eps"), official={"mode": "train"}, inner=NFGSM),
    "mm-at": MethodSpec(
        AT(), "adversarial training at the least margin that PGD to each of the three most likely wrong classes finds",
        "Gao et al. 2022, MM-attack (mmu_at_train)",
        PGD(10, "eps/4", "uniform", loss="cw-targeted"), official=_OFFICIAL, inner=TargetsInTurn),
    "gair-fat": MethodSpec(
        AT(), "GAIRAT's weights with λ 0, at friendly adversarial inputs",
        "Zhang et al. 2021, GAIR_FAT.py: τ 0, 3, 6 up to epochs 40, 70, 120; its labels are out of order",
        _UNIFORM, weighting=Gairat(lam=0.0), official={**_OFFICIAL, "burn_in": 59}, inner=_friendly(40, 70, 120, by=3)),
    # Several threat models.
    "e-at": MethodSpec(
        AT(), "adversarial training under several threat models, one for each batch, the weakest most often",
        "Croce and Hein 2022, robust-finetuning: L∞ and L1, by APGD where here PGD returns its best point",
        _BEST, inner=AlternatingThreats),
    "max-at": MethodSpec(
        AT(), "adversarial training at the worst point under several threat models",
        "Tramèr and Boneh 2019 (MAX); RAMP, MAX.py, by APGD where here PGD returns its best point",
        _BEST, inner=WorstThreat),
    "ramp": MethodSpec(
        Ramp(), "the worst of two threat models, and KL between predictions under both where the first is right",
        "Jiang and Singh 2024, RAMP.py --kl --max, without its gradient projection",
        _BEST, inner=partial(WorstThreat, most=2)),
    "mixed-at": MethodSpec(
        Mixed(), "clean and adversarial cross-entropy, half and half",
        "Goodfellow et al. 2015, with one step of ε from x; Kannan et al. 2018 (M-PGD)", _UNIFORM),
    "uniform-noise": MethodSpec(
        UniformNoise(), "noise augmentation, no attack: a random point of the threat model, as a baseline",
        "the baseline of adversarial training; ours"),
}  # fmt: skip
