"""Attacks with a stand-in for the backward pass, on a quantised linear model whose worst case is known."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import hauberk as hb
from hauberk.attacks.model.bpda import BPDA
from helpers import linear, sound

EPS, LEVELS = 0.3, 4


class Quantised(nn.Module):
    """A network that sees its inputs in a few levels, with no gradient."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net((LEVELS * x).round() / LEVELS)


def quantised(count=60, size=5):
    """A quantised linear model, inputs that it classifies right, and how small an adversary can make their margin."""
    generator = torch.Generator().manual_seed(4)
    w = torch.randn(size, generator=generator, dtype=torch.float64)
    model, x = Quantised(linear(w)), torch.rand(count, size, generator=generator, dtype=torch.float64)
    y = model(x).argmax(1)
    sign = (2.0 * y - 1)[:, None] * w  # of the margin's slope in each coordinate, larger levels never being reached later
    furthest = (x - EPS * sign.sign()).clamp(0, 1)
    return model, x, y, (sign * (LEVELS * furthest).round() / LEVELS).sum(1)


def margin(model, x, y):
    z = model(x)
    return (z.gather(1, y[:, None]) - z.gather(1, 1 - y[:, None])).squeeze(1)


ATTACKS = {
    "fgsm": hb.attacks.fgsm,
    "pgd": partial(hb.attacks.pgd, steps=10, step_size="eps/2"),
    "cw": partial(hb.attacks.cw, steps=10, step_size="eps/2", confidence=9.0),
    "lm_pgd": partial(hb.attacks.lm_pgd, steps=10),
}


@pytest.mark.parametrize("kind", ["module", "function"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_through_a_quantiser_the_worst_case_is_reached(attack, kind):
    model, x, y, least = quantised()
    bpda = model.net if kind == "module" else lambda x: model.net(x)
    threat = hb.Linf(EPS)
    found = ATTACKS[attack](model, x, y, threat, bpda=bpda)
    assert torch.allclose(margin(model, found.x_adv, y).clamp_min(0), least.clamp_min(0))
    assert torch.equal(found.success, least < 0)
    assert 0.2 < (least < 0).double().mean() < 0.9
    blind = ATTACKS[attack](model, x, y, threat)
    assert blind.success.sum() < 0.5 * found.success.sum()
    assert torch.equal(found.logits, model(found.x_adv))


@pytest.mark.parametrize("attack", [hb.attacks.apgd, partial(hb.attacks.fab, targets=1), hb.attacks.autoattack])
def test_attacks_that_stop_at_a_success_find_every_one(attack):
    model, x, y, least = quantised(30)
    found = attack(model, x, y, hb.Linf(EPS), bpda=model.net)
    assert found.success.sum() >= 0.9 * (least < 0).sum()  # FAB steps to a boundary that the quantiser has moved
    assert not (found.success & (least > 0)).any()
    assert torch.equal(found.success, model(found.x_adv).argmax(1) != y)


def test_attacks_without_gradients_do_not_ask_the_stand_in():
    model, x, y, _ = quantised(10)

    def unasked(x):
        raise AssertionError("it was asked")

    for attack in (partial(hb.attacks.square, steps=30), partial(hb.attacks.random_search, steps=5)):
        found = attack(model, x, y, hb.Linf(EPS), bpda=unasked)
        assert torch.equal(found.x_adv, attack(model, x, y, hb.Linf(EPS)).x_adv)


def test_the_gradient_is_the_stand_ins_and_the_rest_the_models():
    model, x, y = sound(8, torch.float64)
    other, _, _ = sound(8, torch.float64)
    with torch.no_grad():
        other[0].weight.mul_(1.5)
    whole, x = BPDA(model, other), x.requires_grad_()
    logits = whole(x)
    assert torch.equal(logits, model(x))
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y, reduction="sum"), x)
    outer = model(x).softmax(1) - nn.functional.one_hot(y, 5)
    (expected,) = torch.autograd.grad(other(x), x, outer.detach())
    assert torch.allclose(grad, expected)


def test_model_and_stand_in_are_as_they_were():
    model, x, y = sound(8)
    stand_in, _, _ = sound(8)
    model[5].p = stand_in[5].p = 0.5  # dropout that must not be seen
    model.train()
    stand_in.train()
    before = [value.clone() for net in (model, stand_in) for value in net.state_dict().values()]
    for mode in ("eval", "train-frozen"):
        hb.attacks.pgd(model, x, y, hb.Linf(0.1), bpda=stand_in, mode=mode, steps=3)
        after = [value for net in (model, stand_in) for value in net.state_dict().values()]
        assert all(map(torch.equal, before, after))
        for net in (model, stand_in):
            assert all(module.training for module in net.modules())
            assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("bpda", "says"),
    [
        (nn.Linear, "bpda is a class"),
        (3, "bpda must be"),
        (lambda x: x[:, :1], r"bpda must return outputs of shape \(8, 5\)"),
        (lambda x: torch.zeros(8, 5), "bpda has no gradient"),
        (nn.Linear(7, 5), "bpda fails on inputs"),
    ],
)
def test_a_stand_in_that_does_not_fit_is_refused_in_one_line(bpda, says):
    model, x, y = sound(8)
    with pytest.raises(hb.UserError, match=says):
        hb.attacks.pgd(model, x, y, hb.Linf(0.1), bpda=bpda, steps=1)


@pytest.mark.parametrize("precision", ["fp32", "model", "bf16"])
def test_an_evaluation_attacks_through_the_stand_in_and_judges_the_model(precision, tmp_path):
    net, x, _ = sound(40)
    model = Quantised(net)
    y = model(x).argmax(1)
    how = {"threat": hb.Linf(0.1), "attacks": ["pgd-10", "apgd-ce"], "precision": precision, "quiet": True}
    bare = hb.evaluate(model, (x, y), **how)
    ev = hb.evaluate(model, (x, y), **how, bpda=net, out=tmp_path, save_adversarials=True)
    assert "gradients" in {d.name for d in bare.warnings}
    assert not {d.name for d in ev.warnings} & {"gradients", "gradients-tell-the-truth", "gradients-beat-square"}
    assert ev.robust_accuracy < bare.robust_accuracy - 0.3
    points = torch.from_numpy(np.load(tmp_path / "adversarials.npy"))
    robust = torch.tensor([name is None for name in ev.broken_by])
    assert torch.equal(model(points).argmax(1) == y, robust)
    assert hb.evaluate(model, (x, y), **how, bpda=net, out=tmp_path, save_adversarials=True).examples == ev.examples
    with pytest.raises(hb.UserError, match="bpda: its code or its weights"):
        hb.evaluate(model, (x, y), **how, bpda=nn.Sequential(net), out=tmp_path, save_adversarials=True)
