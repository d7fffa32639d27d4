"""Weightings after MAIL: each against its formula in float64, and inside a step."""

import math

import pytest
import torch

import hauberk as hb
from hauberk.core.random import ExampleRng
from hauberk.weighting import WEIGHTINGS
from helpers import steps_by_hand, tiny_batch, tiny_net

THREAT = hb.Linf("8/255")
UNIFORM = {
    "wmmr": {"slope": 0.0},
    "mlcat": {"threshold": 1e-30},
    "dom": {"threshold": 0.0},
    "vir": {"scale": 0.0, "bias": 1.0},
    "kl-dro": {"temperature": 1e12},
    "ewat": {"burn_in": 9},
    "frl": {},  # in the first epoch there are no errors to go by
}
LATER = ["ewat", "wmmr", "mlcat", "dom", "vir", "kl-dro"]


def logits(n=9, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clean, adv = (3 * torch.randn(n, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return clean, adv, torch.randint(classes, (n,), generator=generator)


def by_formula(name, clean, adv, y, robust=None):
    """Weights of each example by themselves, in a loop over the examples."""
    found = []
    for z, z_adv, label in zip(clean.double(), adv.double(), y.tolist(), strict=True):
        p, q = z.softmax(0), z_adv.softmax(0)
        others = [float(v) for k, v in enumerate(z_adv) if k != label]
        kl = sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
        found.append(
            {
                "ewat": 1 - sum(float(v) * math.log(float(v)) for v in q),
                "wmmr": math.exp(-(float(z_adv[label]) - max(others))),
                "mlcat": max(1.0, 1.5 / -math.log(float(q[label]))),
                "mlcat-official": float(-math.log(float(q[label])) >= 1.5),
                "dom": float(-math.log(float(p[label])) >= 1.5),
                "vir": 7 * math.exp(-10 * float(p[label])) * kl + 0.007,
                "kl-dro": 0.0,
            }[name]
        )
    found = torch.tensor(found, dtype=torch.float64)
    if name == "kl-dro":
        found = robust.double().exp()
    return found * len(found) / found.sum() if name in ("wmmr", "kl-dro") else found


def test_functions_by_their_equations():
    clean, adv, y = logits()
    ce = torch.nn.functional.cross_entropy
    loss, loss_clean = ce(adv, y, reduction="none"), ce(clean, y, reduction="none")
    margin = hb.attacks.logit_margin(adv, y)
    pairs = {
        "ewat": hb.weighting.ewat(adv),
        "wmmr": hb.weighting.wmmr(margin),
        "mlcat": hb.weighting.mlcat(loss),
        "mlcat-official": hb.weighting.mlcat(loss, preset="official"),
        "dom": hb.weighting.dom(loss_clean),
        "vir": hb.weighting.vir(clean, adv, y),
        "kl-dro": hb.weighting.kl_dro(loss),
    }
    for name, found in pairs.items():
        assert torch.allclose(found, by_formula(name, clean, adv, y, loss), atol=1e-12), name
    assert torch.allclose(hb.weighting.ewat(torch.zeros(2, 8)), torch.full((2,), 1 + math.log(8)))
    assert torch.allclose(hb.weighting.vir(clean, clean, y, bias=1.6), torch.tensor(1.6, dtype=torch.float64))
    # 1 at the temperature of infinity, and all on the largest loss at that of 0
    assert torch.allclose(hb.weighting.kl_dro(loss, 1e9), torch.ones_like(loss))
    assert float(hb.weighting.kl_dro(loss, 1e-3).max()) == pytest.approx(len(loss))


def test_losses_at_the_edges():
    edge = torch.tensor([0.0, 1e-45, 1e-30, 1.4999, 1.5, 1.5001, 90.0])
    assert hb.weighting.mlcat(edge).isfinite().all()
    assert hb.weighting.mlcat(edge)[[0, 4, 6]].tolist() == [1.0, 1.0, 1.0]
    assert hb.weighting.mlcat(edge, preset="official").tolist() == [0, 0, 0, 0, 1, 1, 1]  # the code keeps 1.5 / ℓ <= 1
    assert hb.weighting.dom(edge).tolist() == [0, 0, 0, 0, 1, 1, 1]
    huge = torch.tensor([[300.0, -300.0], [-300.0, 300.0]])
    y = torch.tensor([0, 0])
    for found in (hb.weighting.ewat(huge), hb.weighting.vir(huge, -huge, y), hb.weighting.wmmr(torch.tensor([-600.0, 600.0]))):
        assert found.isfinite().all()
    assert hb.weighting.ewat(huge.bfloat16()).dtype == torch.float32


def test_what_mlcats_public_code_does_is_to_take_small_losses_out():
    """The factor of the code is not detached: the gradient of its loss is that of our official weights, and not the paper's."""
    adv = torch.tensor([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 0])
    loss = torch.nn.functional.cross_entropy(adv, y, reduction="none")
    scale = 1.5 / loss
    theirs = (loss * (scale * (scale > 1) + (scale <= 1))).mean()
    (wanted,) = torch.autograd.grad(theirs, adv, retain_graph=True)
    assert float(wanted[0].abs().max()) < 1e-12 < float(wanted[1].abs().max())
    for preset, same in (("official", True), ("paper", False)):
        (found,) = torch.autograd.grad((hb.weighting.mlcat(loss, preset=preset) * loss).mean(), adv, retain_graph=True)
        assert torch.allclose(found, wanted, atol=1e-12) == same
    paper = hb.weighting.mlcat(loss) * loss
    assert torch.allclose(paper.detach()[0], torch.tensor(1.5, dtype=torch.float64))  # the value that the code prints, too


@pytest.mark.parametrize("name", LATER)
@pytest.mark.parametrize("base", ["at", "trades", "mart", "trades+awp"])
def test_every_weighting_goes_with_every_objective(base, name):
    model, (x, y) = tiny_net(seed=3).eval(), tiny_batch(16)
    method = hb.method(base, THREAT, weighting=name, burn_in=1, **({"gamma": 1e-6} if "awp" in base else {}))
    rng = ExampleRng(0, torch.arange(16))
    assert torch.equal(method(model, x, y, epoch=0, rng=rng).weights, torch.ones(16))
    out = method(model, x, y, epoch=1, rng=rng)
    x_adv = method.attack(model, x, y, THREAT, seed=rng).x_adv
    with torch.no_grad():
        clean, adv = model(x), model(x_adv)
    plain = {
        "at": lambda: hb.objectives.at(None, adv, y),
        "trades": lambda: hb.objectives.trades(clean, adv, y),
        "mart": lambda: hb.objectives.mart(clean, adv, y),
    }[base.removesuffix("+awp")]()
    expected = by_formula(name, clean, adv, y, plain.robust).float()
    assert torch.allclose(out.weights, expected, rtol=1e-3, atol=1e-5)
    assert not out.weights.requires_grad
    if "awp" not in base:
        assert torch.allclose(out.loss, (expected * plain.robust + plain.regularizer).mean(), rtol=1e-3)
    assert {"effective_size", "weight_q50", "measure_q50"} <= set(out.report)


@pytest.mark.parametrize("name", LATER)
def test_passes(name):
    """Only those that look at the clean input cost adversarial training a pass more."""
    for base, forwards in (("at", 12 if name in ("dom", "vir") else 11), ("trades", 13)):
        out = hb.method(base, THREAT, weighting=name, burn_in=0)(tiny_net(), *tiny_batch())
        assert (out.forwards, out.backwards) == (forwards, 10)


@pytest.mark.parametrize("base", ["at", "trades", "mart"])
@pytest.mark.parametrize(("name", "settings"), UNIFORM.items())
def test_uniform_weights_give_the_plain_method_bit_for_bit(base, name, settings):
    x, y = tiny_batch(16)
    losses, grads = [], []
    for more in ({}, {"weighting": name, **({"burn_in": 0} | settings)}):
        model = tiny_net().train()
        if base == "at" and name in ("dom", "vir"):
            model.eval()  # their clean pass moves the statistics of BatchNorm
        out = hb.method(base, THREAT, **more)(model, x, y, epoch=0, rng=ExampleRng(0, torch.arange(16)))
        out.loss.backward()
        losses.append(out.loss.detach())
        grads.append([p.grad for p in model.parameters()])
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_burn_in_may_be_a_part_of_the_training():
    model, (x, y) = tiny_net(seed=3).eval(), tiny_batch(16)
    method = hb.method("at", THREAT, weighting="dom")
    for epochs, first in ((10, 5), (11, 6), (200, 100)):
        fitted = method.with_schedule(epochs=epochs)
        assert fitted.first_full_epoch == first
        assert torch.equal(fitted(model, x, y, epoch=first - 1).weights, torch.ones(16))
        assert not torch.equal(fitted(model, x, y, epoch=first).weights, torch.ones(16))
    with pytest.warns(UserWarning, match="until epoch 50"):
        method(model, x, y, epoch=0)
    assert hb.method("mail-at", THREAT, burn_in=0.25).with_schedule(epochs=8).first_full_epoch == 2
    with pytest.raises(hb.UserError, match="nothing would be reweighted"):
        method.with_schedule(epochs=1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: hb.method("at", THREAT, weighting="dom", burn_in=1.5), "burn_in"),
        (lambda: hb.method("at", THREAT, weighting="dom", burn_in=-0.5), "burn_in"),
        (lambda: hb.weighting.Dom(threshold=-1.0), "threshold"),
        (lambda: hb.weighting.Mlcat(threshold=0.0), "threshold"),
        (lambda: hb.weighting.Vir(scale=-1.0), "scale"),
        (lambda: hb.weighting.KLDRO(temperature=0.0), "temperature"),
        (lambda: hb.weighting.Wmmr(slope=-1.0), "slope"),
        (lambda: hb.weighting.mlcat(torch.zeros(2, 2)), "loss must be"),
        (lambda: hb.weighting.mlcat(torch.zeros(2), preset="code"), "preset"),
        (lambda: hb.weighting.vir(torch.zeros(2, 3), torch.zeros(2, 2), torch.zeros(2, dtype=torch.long)), "logits_adv"),
        (lambda: hb.method("at", THREAT, weighting="doom"), "dom"),
        (lambda: hb.method("trades", THREAT, weighting="ewat", slope=1.0), "slope"),
    ],
)
def test_wrong_settings_say_why(make, says):
    with pytest.raises(hb.UserError, match=says):
        make()


def test_frl_by_its_equation():
    """As the public code has it, in loops: multipliers on a simplex, and the costs of classes that they make."""
    error = torch.tensor([0.2, 0.3, 0.9, 0.6, 0.5], dtype=torch.float64)
    start = torch.tensor([0.0, 0.01, 0.4, 0.05, 0.0], dtype=torch.float64)
    for limit in (0.9, 0.2):
        wanted = [max(float(p) + 0.3 * (float(e) - 0.5 - 0.1), 0.0) for p, e in zip(start, error, strict=True)]
        whole = sum(wanted)
        wanted = [p * min(limit / whole, 1.0) for p in wanted]
        costs = [1 / 5 + 4 / 5 * p - sum(wanted[:c] + wanted[c + 1 :]) / 5 for c, p in enumerate(wanted)]
        weights, multipliers = hb.weighting.frl(error, start, rate=0.3, limit=limit)
        assert torch.allclose(multipliers, torch.tensor(wanted, dtype=torch.float64))
        assert torch.allclose(weights, 5 * torch.tensor(costs, dtype=torch.float64))
        assert float(weights.mean()) == pytest.approx(1.0)
        assert weights.min() > 0
    same = hb.weighting.frl(torch.full((3,), 0.4), torch.zeros(3))
    assert torch.equal(same[0], torch.ones(3))
    for wrong in (lambda: hb.weighting.frl(error, start[:2]), lambda: hb.weighting.frl(error, start, limit=1.0)):
        with pytest.raises(hb.UserError, match="must"):
            wrong()


@pytest.mark.parametrize("base", ["at", "trades+awp"])
def test_weights_of_frl_follow_the_errors_of_the_last_epoch_and_go_on_exactly(base):
    x, y = tiny_batch(40)
    more = {"awp_warmup": 0} if "awp" in base else {}

    def new():
        return hb.method(base, THREAT, weighting="frl", bound=0.0, rate=0.5, **more).with_schedule(epochs=9)

    def steps(method, model, of):
        return steps_by_hand(method, model, x, y, of, 2)

    whole = steps(new(), tiny_net(), range(7))
    assert torch.equal(whole[1].weights, torch.ones(40))
    multipliers = torch.zeros(5, dtype=torch.float64)
    for epoch in (1, 2, 3):
        if "awp" in base:
            break  # its last look is at other weights than those that the output shows
        last = torch.stack([out.logits_adv.argmax(1) != y for out in whole[2 * epoch - 2 : 2 * epoch]]).double().mean(0)
        error = torch.stack([last[y == c].mean() for c in range(5)])
        weights, multipliers = hb.weighting.frl(error, multipliers, rate=0.5, bound=0.0)
        assert torch.allclose(whole[2 * epoch].weights, weights[y].float())
    assert not torch.equal(whole[-1].weights, torch.ones(40))
    for stop in (1, 2, 3, 5):
        method, model = new(), tiny_net()
        begun = steps(method, model, range(stop))
        other, copied = new(), tiny_net()
        other.load_state_dict(method.state_dict())
        copied.load_state_dict(model.state_dict())
        for one, two in zip(begun + steps(other, copied, range(stop, 7)), whole, strict=True):
            assert torch.equal(one.loss, two.loss)
            assert torch.equal(one.weights, two.weights)
    assert torch.equal(steps(method.with_schedule(epochs=9), tiny_net(), range(3))[-1].loss, whole[2].loss)


def test_printed_constants_of_frl():
    weighting = hb.method("at", THREAT, weighting="frl").weighting
    assert (weighting.rate, weighting.bound, weighting.limit, weighting.burn_in) == (0.1, 0.1, 0.5, 0)


def test_rows_of_vir():
    at, trades = hb.method("vir-at", THREAT), hb.method("vir-trades", THREAT)
    assert (at.weighting.scale, at.weighting.slope, at.weighting.bias) == (7.0, 10.0, 0.007)
    assert (trades.weighting.scale, trades.weighting.slope, trades.weighting.bias) == (8.0, 3.0, 1.6)
    assert trades.objective.beta == 5.0
    assert at.burn_in == trades.burn_in == "first-drop"
    # γ of "+awp" is another than VIR's, and its β another than that of TRADES
    changed = hb.method("vir-trades+awp", THREAT, gamma=0.02, slope=1.0, beta=2.0, bias=0.5)
    assert (changed.weight_perturbation.gamma, changed.weighting.slope) == (0.02, 1.0)
    assert (changed.objective.beta, changed.weighting.bias) == (2.0, 0.5)
    assert set(LATER) <= set(WEIGHTINGS)
