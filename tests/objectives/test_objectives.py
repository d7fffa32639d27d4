import re
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hauberk as hb
from hauberk import objectives as every
from hauberk.core.random import ExampleRng
from hauberk.core.step_context import StepContext
from hauberk.methods import get_method_spec
from hauberk.objectives import kl_divergence
from hauberk.objectives.smoothing import gaussian_noise


def logits_pair(n=7, classes=4, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clean, adv = (torch.randn(n, classes, generator=generator, dtype=torch.float64) * scale for _ in range(2))
    return clean, adv, torch.randint(classes, (n,), generator=generator)


def test_terms_by_their_equations():
    clean, adv, y = logits_pair()
    p, q = clean.softmax(1), adv.softmax(1)
    rows = torch.arange(len(y))
    divergence = (p * (p.log() - q.log())).sum(1)
    assert torch.allclose(kl_divergence(clean, adv), divergence)

    terms = hb.objectives.at(None, adv, y)
    assert torch.allclose(terms.robust, -q[rows, y].log())
    assert not terms.regularizer.any()

    terms = hb.objectives.mixed(clean, adv, y, clean_share=0.3)  # Goodfellow et al.'s α
    assert torch.allclose(terms.robust, -0.7 * q[rows, y].log())
    assert torch.allclose(terms.regularizer, -0.3 * p[rows, y].log())
    with pytest.raises(hb.UserError, match="clean_share is a part, at most 1"):
        hb.objectives.Mixed(clean_share=1.5)

    terms = hb.objectives.standard(clean, None, y)
    assert torch.allclose(terms.robust, -p[rows, y].log())

    terms = hb.objectives.trades(clean, adv, y, beta=3.0)
    assert torch.allclose(terms.robust, 3 * divergence)
    assert torch.allclose(terms.regularizer, -p[rows, y].log())

    terms = hb.objectives.mart(clean, adv, y, beta=2.0)
    other = q.masked_fill(F.one_hot(y, 4).bool(), 0).amax(1)
    assert torch.allclose(terms.robust, -q[rows, y].log() - (1 - other).log())
    assert torch.allclose(terms.regularizer, 2 * divergence * (1 - p[rows, y]))


def test_pairing_margin_and_extra_class_by_their_equations():
    clean, adv, y = logits_pair()
    p, q, rows = clean.softmax(1), adv.softmax(1), torch.arange(len(y))
    ce, ce_adv = -p[rows, y].log(), -q[rows, y].log()
    apart = (q - p).square().sum(1)

    robust, regular = hb.objectives.alp(clean, adv, y, beta=0.5)
    assert torch.allclose(robust, ce_adv)
    assert torch.allclose(regular, 0.5 * apart)
    robust, regular = hb.objectives.alp(clean, adv, y, beta=0.5, pairing="logits")  # Kannan et al.
    assert torch.allclose(robust, ce_adv)
    assert torch.allclose(regular, ce + 0.5 * (adv - clean).square().mean(1))

    robust, regular = hb.objectives.clp(clean, adv, y, beta=0.5)
    assert torch.allclose(robust, 0.5 * apart)
    assert torch.allclose(regular, ce)
    robust, regular = hb.objectives.clp(clean, None, y, beta=0.5, pairing="logits")  # no adversarial inputs at all
    assert not robust.any()
    next_one = clean[(rows + 1) % len(y)]
    assert torch.allclose(regular, ce + 0.5 * (clean - next_one).square().mean(1))

    within = torch.arange(len(y)) % 2 == 0
    robust, regular = hb.objectives.mma(clean, adv, y, within=within)
    right = clean.argmax(1) == y
    assert right.any()
    assert (~right).any()
    expected = torch.where(right, torch.where(within, ce_adv, 0.0), ce)
    assert torch.allclose(robust, 2 / 3 * expected)
    assert torch.allclose(regular, ce / 3)

    robust, regular = hb.objectives.adversarial_class(clean, adv, y, beta=0.5)
    assert torch.allclose(robust, -0.5 * q[:, -1].log())
    assert torch.allclose(regular, ce)

    for pairing in (hb.objectives.alp, hb.objectives.clp):
        with pytest.raises(hb.UserError, match="pairing must be"):
            pairing(clean, adv, y, pairing="outputs")
    with pytest.raises(hb.UserError, match="direction must be"):
        hb.objectives.trades(clean, adv, y, direction="both")


@pytest.mark.parametrize("name", ["trades", "mart"])
def test_gradients_flow_where_the_papers_let_them(name):
    clean, adv, y = logits_pair()
    objective = getattr(hb.objectives, name)

    def loss(a, b):
        terms = objective(a, b, y, beta=2.0)
        return terms.robust + terms.regularizer

    assert torch.autograd.gradcheck(loss, (clean.requires_grad_(), adv.requires_grad_()))


@pytest.mark.parametrize("name", ["trades", "mart"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_stay_finite_where_probabilities_underflow(name, dtype):
    """A probability target gives NaN here (a clean logit gap of 120 in float32); log space does not."""
    clean = torch.tensor([[120.0, 0.0, 0.0], [0.0, 200.0, 0.0]], dtype=dtype, requires_grad=True)
    adv = torch.tensor([[0.0, 150.0, 0.0], [0.0, 0.0, 300.0]], dtype=dtype, requires_grad=True)
    terms = getattr(hb.objectives, name)(clean, adv, torch.tensor([0, 1]))
    assert terms.robust.dtype == torch.float32
    for grad in torch.autograd.grad((terms.robust + terms.regularizer).sum(), (clean, adv)):
        assert grad.isfinite().all()


def test_exact_mart_still_teaches_the_confidently_wrong():
    """With the code's constants the margin term ends at 9.21 and its gradient vanishes; the exact form keeps it."""
    adv = torch.tensor([[0.0, 20.0, 0.0]], dtype=torch.float64, requires_grad=True)
    clean = torch.zeros(1, 3, dtype=torch.float64)
    margins = {}
    for preset in ("paper", "official"):
        boosted = hb.objectives.mart(clean, adv, torch.tensor([0]), beta=0.0, preset=preset).robust
        margin = boosted - F.cross_entropy(adv, torch.tensor([0]), reduction="none")
        margins[preset] = (float(margin.detach()), float(torch.autograd.grad(margin.sum(), adv)[0][0, 1]))
    assert margins["official"][0] < 9.22
    assert abs(margins["official"][1]) < 1e-3
    assert margins["paper"][0] > 19
    assert margins["paper"][1] > 0.99


def test_two_classes_are_enough():
    clean, adv, y = logits_pair(classes=2)
    for name in ("Standard", "AT", "Trades", "Mart", "ALP", "CLP", "MMA", "AdversarialClass"):
        context = StepContext(None, clean, y, None, None, logits=clean, logits_adv=adv)
        terms = getattr(every, name)()(context)  # all are called alike
        assert terms.robust.shape == terms.regularizer.shape == (7,)
        assert (terms.robust + terms.regularizer).isfinite().all()


def test_unknown_preset():
    clean, adv, y = logits_pair()
    with pytest.raises(hb.UserError, match="paper"):
        hb.objectives.mart(clean, adv, y, preset="code")


def value_of(equation, clean, adv, y, weight, constants):
    """Compute a formula as it is printed, (B,): an evaluator that knows nothing of the objectives."""

    def divergence(p, q):
        return (p * (p.log() - q.log())).sum(1)

    def as_probabilities(label):
        return label if label.ndim == 2 else F.one_hot(label, clean.shape[1]).to(clean.dtype)

    def boosted(p, label):
        others = p.masked_fill(F.one_hot(label, p.shape[1]).bool(), 0).amax(1)
        return -p.gather(1, label[:, None])[:, 0].log() - (1 - others).log()

    formula = equation.partition(";")[0]
    formula = re.sub(r"‖([^‖]+)‖²", r"sum_of_squares(\1)", re.sub(r"mean_k \((.+?)\)²", r"mean_of_squares(\1)", formula))
    formula = formula.replace("f(x + u)", "f(x_u)")
    signs = {"x_h": "far", "x'": "adv", "x*": "star", "·": "*", "‖": ", ", "ω": "weight", "β": "beta", "κ": "kappa"}
    signs |= {"α": "alpha", "λ": "lam"}
    for sign, python in signs.items():
        formula = formula.replace(sign, python)
    right = (clean.argmax(1) == y)[:, None]
    names = {
        "x": clean, "adv": adv, "star": torch.where(right, adv, clean), "z": clean.roll(-1, 0), "y": y, "weight": weight,
        "f": lambda logits: logits, "p": lambda logits: logits.softmax(1), "BCE": boosted, "KL": divergence,
        "p_y": lambda logits: logits.softmax(1).gather(1, y[:, None])[:, 0], "K": torch.full_like(y, clean.shape[1] - 1),
        "CE": lambda logits, label: -(logits.log_softmax(1) * as_probabilities(label)).sum(1),
        "OVR": lambda logits, label: F.binary_cross_entropy_with_logits(
            logits, as_probabilities(label), reduction="none").sum(1),
        "wMSE": lambda z, other: ((z - z.mean(1, True)) - (other - other.mean(1, True))).square().mean(1) / 2,  # uniform
        "sum_of_squares": lambda v: v.square().sum(1), "mean_of_squares": lambda v: v.square().mean(1),
    }  # fmt: skip
    return eval(formula, {"__builtins__": {}}, names | constants)


def of_two_networks(objective, net, other, x, clean, adv):
    """What formulas with a further network speak of: its predictions, and those of both at further points."""

    def of_other(logits):
        return other(x) if logits is clean else other(x + 0.05)

    tau, h = getattr(objective, "temperature", 1.0), getattr(objective, "h", 1.0)
    p = other(x + 0.05).softmax(1)
    unsure = -(p * p.log()).sum(1)
    return {
        "alpha": getattr(objective, "alpha", None), "τ": tau, "γ": getattr(objective, "helper_gamma", None),
        "a": getattr(objective, "igdm_alpha", None),
        "v": (unsure - unsure.min()) / (unsure.max() - unsure.min() + 1e-8),
        "p_T": lambda logits: of_other(logits).softmax(1), "p_a": lambda logits: of_other(logits).softmax(1),
        "q_T": lambda logits: (of_other(logits) / tau).softmax(1), "q": lambda logits: (logits / tau).softmax(1),
        "d": (adv - net(x - 0.05)).softmax(1), "d_T": (other(x + 0.05) - other(x - 0.05)).softmax(1),
        "far": net(x + h * 0.05), "y_h": other(x + 0.05).argmax(1),
    }  # fmt: skip


SHOWN = [
    (name, changed)
    for name in hb.list_methods()
    for changed in (
        {},
        {"beta": 0.7},
        {"pairing": "logits"},
        {"direction": "adv-to-clean"},
        {"clean_share": 0.0},
        {"kappa": 0.3},
        {"clip": 0.6},
        {"alpha": 0.3},
        {"temperature": 2.0},
        {"igdm_alpha": 0.7},
        {"h": 3.0},
    )
    if set(changed) <= {field.name for field in fields(get_method_spec(name).objective)}
]


@pytest.mark.parametrize(("name", "changed"), SHOWN)
def test_the_formula_that_is_shown_is_the_loss(name, changed):
    objective = replace(get_method_spec(name).objective, **changed)
    clean, adv, _ = logits_pair(9, 5)
    y = (adv.argmax(1) + 1) % 4  # none is right at x', as MMA wants it
    y = torch.where(y == adv.argmax(1), (y + 1) % 4, y)
    rng, sigma = ExampleRng(0, torch.arange(9)), getattr(objective, "sigma", 0.0)
    # Bounds are those of a linear network, which are exact and easily had by hand; ε has grown to 0.4 of itself.
    net, threat = torch.nn.Linear(3, 5, dtype=torch.float64), hb.Linf(0.3, low=-9, high=9)
    x = adv[:, :3].detach().clamp(-5, 5)
    clean = net(x) if objective.computes else clean
    points = (x + 0.02, x - 0.02)
    if isinstance(objective, every.Ramp):
        y = net(points[0]).argmax(1)  # right at the first of its pair, so that all count
    context = StepContext(net, x, y, threat, rng, 89, logits=clean, logits_adv=adv, x_adv=x + 0.05, eps_scale=0.4)
    context.x_adv_by_threat, context.x_inverse = points, x + 0.03
    other = context.teacher = context.average = torch.nn.Linear(3, 5, dtype=torch.float64)
    kappa = torch.arange(9) % 4
    if name == "lrat":
        context.attack = SimpleNamespace(kappa=kappa, steps=3)
    if sigma:  # logits are the inputs of a network that hands them on
        context = StepContext(nn.Identity(), clean, y, None, rng, x_adv=adv, logits=clean, logits_adv=adv)
    terms, weight = objective(context), torch.linspace(0, 2, 9, dtype=torch.float64)
    constants = {"beta": getattr(objective, "beta", None), "c": getattr(objective, "clean_share", None)}
    constants |= {"σ": sigma, "n": gaussian_noise(clean, 1.0, 1, rng)[:, 0]}
    constants |= of_two_networks(objective, net, other, x, clean, adv)
    share = getattr(objective, "subselection_ratio", None)
    normal = net.weight[y][:, None] - net.weight
    middle = torch.einsum("bkd,bd->bk", normal, x if share is None else x + 0.05) + net.bias[y][:, None] - net.bias
    constants["m"] = middle - 0.3 * (1 if share is None else share) * normal.abs().sum(2)
    constants |= {"x_inv": net(x + 0.03), "x_1": net(points[0]), "x_2": net(points[1])}
    constants["x_u"] = net(threat.around(x).random(rng)) if objective.needs == frozenset() and not sigma else None
    constants["kappa"] = 1 - 0.4 * (1 - getattr(objective, "kappa", 1))
    constants["g"] = (1 + torch.tanh(5 * (1 - 2 * kappa.double() / 3) - 1)) / 2
    constants["lam"] = getattr(objective, "ovr_weight", getattr(objective, "ramp_lam", None))
    smoothing, clip = getattr(objective, "smoothing", 0.0), getattr(objective, "clip", 0.0)
    t = F.one_hot(y, 5) * (1 - smoothing) + smoothing / 5
    constants["t"] = 0.9 if hasattr(objective, "igdm_alpha") else t  # the part of the training that is done
    bound = clip**2 * 1.25
    p, q = clean.softmax(1), adv.softmax(1)
    loss = (p - t).square().sum(1) + (constants["beta"] or 0) * (p - q).square().sum(1)
    constants["h"], constants["u"], constants["w"] = (loss >= bound).double(), 1.0, 1.0
    odds = constants["beta"] or 0
    constants["b"] = odds / (1 + odds) if name.startswith("cfa") else bound
    margin = hb.attacks.logit_margin(clean if "f(x)" in objective.equation else adv, y)
    constants["s"] = (margin < margin.sort().values[int(9 * getattr(objective, "share", 0))]).double()
    shown = value_of(objective.equation, clean, adv, y, weight, constants)
    assert torch.allclose(weight * terms.robust + terms.regularizer, shown, rtol=1e-10, atol=1e-12)
