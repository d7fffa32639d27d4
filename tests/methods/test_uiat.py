"""UIAT: its two searches and its loss against formulas written out here, its class means, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hauberk as hb
from helpers import tiny_batch, tiny_net

BALL = hb.Linf(0.1)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    return model, torch.rand(10, 6, dtype=torch.double), torch.arange(10) % 4


def climb(x, loss, start, eps, sign=1.0, steps=10):
    """PGD in L∞ by hand, or with sign -1 downwards; loss(points) -> (B,)."""
    point = start
    for _ in range(steps):
        point = point.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss(point).sum(), point)
        point = (point + sign * eps / 4 * grad.sign()).clamp(x - eps, x + eps).clamp(0, 1).detach()
    return point


def divergence(q, logits):
    return (q * (q.log() - logits.softmax(1).log())).sum(1)


@pytest.mark.parametrize("name", ["uiat", "uiat-trades"])
@pytest.mark.parametrize("radius", [1.0, 0.5])
def test_attack_inverse_and_loss_are_those_of_the_formula(name, radius, batch):
    model, x, y = batch
    start = x + 0.01 * torch.rand(10, 6, dtype=torch.double)

    def ce(z):
        return F.cross_entropy(model(z), y, reduction="none")

    def kl(z):
        return divergence(model(x).softmax(1).detach(), model(z))

    out = hb.method(name, BALL, start=start, beta=2.0, inverse_radius=radius)(model, x, y)
    adv = climb(x, ce if name == "uiat" else kl, start, 0.1)
    inverse = climb(x, ce, start, 0.1 * radius, -1.0)
    assert (ce(inverse) <= ce(x)).all()
    torch.testing.assert_close(out.x_adv, adv, rtol=0, atol=1e-12)
    expected = (ce(adv if name == "uiat" else x) + 2 * divergence(model(inverse).softmax(1), model(adv))).mean()
    torch.testing.assert_close(out.loss, expected, rtol=1e-10, atol=0)
    own, reference = (torch.autograd.grad(loss, model.parameters()) for loss in (out.loss, expected))
    for one, other in zip(own, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-12)


def test_the_class_mean_is_of_the_last_epoch_and_a_constant(batch):
    model, x, y = batch
    method = hb.method("uiat", BALL, class_share=0.3, beta=2.0, start="clean")

    def inverse_probabilities():
        ce = climb(x, lambda z: F.cross_entropy(model(z), y, reduction="none"), x, 0.1, -1.0)
        return model(ce).softmax(1)

    seen = []
    for epoch in range(3):
        q = inverse_probabilities()
        mean = None if not seen else torch.stack([seen[-1][y == c].mean(0) for c in range(4)])[y]
        seen.append(q.detach())
        out = method(model, x, y, epoch=epoch)
        mixed = q if mean is None else 0.7 * q + 0.3 * mean
        logits = model(out.x_adv)
        expected = F.cross_entropy(logits, y) + 2 * divergence(mixed, logits).mean()
        torch.testing.assert_close(out.loss, expected, rtol=1e-10, atol=0)
        own, reference = (torch.autograd.grad(loss, model.parameters()) for loss in (out.loss, expected))
        for one, other, p in zip(own, reference, model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-12)
            p.data.sub_(0.5 * one)


def test_without_its_divergence_uiat_is_adversarial_training(batch):
    model, x, y = batch
    out = hb.method("uiat", BALL, beta=0.0)(model, x, y)
    plain = hb.method("at", BALL)(model, x, y)
    assert torch.equal(out.x_adv, plain.x_adv)
    assert torch.equal(out.loss, plain.loss)
    ones = hb.method("uiat", BALL, weighting=lambda context: torch.ones(10))
    assert torch.equal(ones(model, x, y).loss, hb.method("uiat", BALL)(model, x, y).loss)


def test_uiat_follows_soft_labels_into_its_inverse(batch):
    model, x, y = batch
    hard = hb.method("uiat", BALL)(model, x, y)
    same = hb.method("uiat", BALL)(model, x, y, targets=F.one_hot(y, 4).double())
    torch.testing.assert_close(hard.loss, same.loss, rtol=1e-12, atol=0)
    soft = torch.rand(10, 4, dtype=torch.double).softmax(1)
    out = hb.method("uiat", BALL, start="clean", beta=2.0)(model, x, y, targets=soft)
    inverse = climb(x, lambda z: -(soft * model(z).log_softmax(1)).sum(1), x, 0.1, -1.0)
    logits = model(out.x_adv)
    expected = F.cross_entropy(logits, soft) + 2 * divergence(model(inverse).softmax(1), logits).mean()
    torch.testing.assert_close(out.loss, expected, rtol=1e-10, atol=0)


def test_a_class_mean_may_have_zeros_and_large_logits_stay_finite():
    logits = torch.tensor([[400.0, 0.0, -400.0]], requires_grad=True)
    mean, y = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([0])
    terms = hb.objectives.uiat(None, -logits, y, logits_inverse=logits, class_mean=mean, class_share=0.5)
    terms.regularizer.sum().backward()
    assert logits.grad.isfinite().all()
    assert float(terms.regularizer.detach()) == pytest.approx(3.5 * 800.0)


def test_what_uiat_refuses():
    z, y = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(hb.UserError, match="class_mean must be probabilities of shape"):
        hb.objectives.uiat(None, z, y, logits_inverse=z, class_mean=torch.ones(3), class_share=0.5)
    for settings, says in (({"class_share": 1.0}, "class_share"), ({"inverse_radius": 1.5}, "inverse_radius")):
        with pytest.raises(hb.UserError, match=says):
            hb.method("uiat", BALL, **settings)
    with pytest.raises(hb.UserError, match="inverse adversarial inputs, which its attack leaves"):
        hb.method("uiat", hb.Linf(0.1), attack=hb.attacks.PGD(2))(tiny_net(), *tiny_batch())
