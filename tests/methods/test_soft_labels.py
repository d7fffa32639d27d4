"""Probabilities of the classes in place of labels: label smoothing, targets of a call, and a part that makes them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hauberk as hb

THREAT = hb.Linf(0.1)
TAKING = ("standard", "at", "trades", "mart", "alp", "clp", "mail-at", "at+awp")


@pytest.fixture
def batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    return model, torch.rand(10, 6, dtype=torch.double), torch.arange(10) % 4


@pytest.mark.parametrize("name", TAKING)
def test_the_labels_as_probabilities_give_the_plain_method(name, batch):
    model, x, y = batch
    plain = hb.method(name, THREAT)(model, x, y)
    soft = hb.method(name, THREAT)(model, x, y, targets=F.one_hot(y, 4).double())
    torch.testing.assert_close(soft.loss, plain.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(soft.x_adv, plain.x_adv, rtol=0, atol=1e-12)
    assert (soft.forwards, soft.backwards) == (plain.forwards, plain.backwards)


def test_smoothing_is_that_of_torch(batch):
    model, x, y = batch
    out = hb.method("at", THREAT, label_smoothing=0.3)(model, x, y)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits_adv, y, label_smoothing=0.3), rtol=1e-12, atol=0)
    assert torch.equal(out.x_adv, hb.method("at", THREAT)(model, x, y).x_adv)  # the attack has the labels

    out = hb.method("trades", THREAT, label_smoothing=0.3)(model, x, y)
    divergence = F.kl_div(out.logits_adv.log_softmax(1), out.logits.softmax(1), reduction="none").sum(1).mean()
    expected = F.cross_entropy(out.logits, y, label_smoothing=0.3) + 6 * divergence
    torch.testing.assert_close(out.loss.detach(), expected, rtol=1e-9, atol=0)


def test_smoothing_goes_on_top_of_given_probabilities(batch):
    model, x, y = batch
    targets = torch.rand(10, 4, dtype=torch.double).softmax(1)
    out = hb.method("at", THREAT, label_smoothing=0.2)(model, x, y, targets=targets)
    expected = -((0.8 * targets + 0.05) * out.logits_adv.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(out.loss.detach(), expected, rtol=1e-12, atol=0)


def test_the_attack_raises_the_cross_entropy_with_the_targets(batch):
    model, x, y = batch
    targets = F.one_hot((y + 1) % 4, 4).double()
    towards = hb.attacks.pgd(model, x, (y + 1) % 4, THREAT, steps=10, return_last=True)
    soft = hb.attacks.pgd(model, x, y, THREAT, steps=10, return_last=True, loss="soft-ce", reference=targets)
    assert torch.equal(soft.x_adv, towards.x_adv)
    assert torch.equal(soft.success, model(soft.x_adv).argmax(1) != y)  # of the labels, all the same
    with pytest.raises(hb.UserError, match="reference="):
        hb.attacks.pgd(model, x, y, THREAT, loss="soft-ce")
    with pytest.raises(hb.UserError, match="reference must be floating"):
        hb.attacks.pgd(model, x, y, THREAT, loss="soft-ce", reference=targets[:3])


def test_the_divergence_is_from_logits_that_are_given(batch):
    model, x, y = batch
    with torch.no_grad():
        clean = model(x)
    given = hb.attacks.pgd(model, x, y, THREAT, loss="kl", start="normal", return_last=True, reference=clean)
    own = hb.attacks.pgd(model, x, y, THREAT, loss="kl", start="normal", return_last=True)
    assert torch.equal(given.x_adv, own.x_adv)
    assert given.forwards == own.forwards - 1  # the clean inputs are not looked at
    other = hb.attacks.pgd(model, x, y, THREAT, loss="kl", start="normal", return_last=True, reference=clean.flip(1))
    assert not torch.equal(other.x_adv, own.x_adv)


def test_a_part_makes_targets_that_attack_and_loss_see(batch):
    model, x, y = batch

    def reversed_labels(context):
        return F.one_hot(3 - context.y, 4).double()

    out = hb.method("at", THREAT, targets=reversed_labels)(model, x, y)
    other = hb.method("at", THREAT)(model, x, 3 - y)
    torch.testing.assert_close(out.loss, other.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(out.x_adv, other.x_adv, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["mma", "adversarial-class", "ibp", "crown-ibp", "sabr"])
def test_losses_of_labels_refuse_probabilities(name, batch):
    model, x, y = batch
    with pytest.raises(hb.UserError, match="not defined for probabilities"):
        hb.method(name, THREAT, label_smoothing=0.1)
    with pytest.raises(hb.UserError, match="not defined for probabilities"):
        hb.method(name, THREAT)(model, x, y, targets=torch.rand(10, 4))


def test_targets_are_checked(batch):
    model, x, y = batch
    for wrong in (torch.rand(9, 4), y, torch.rand(10)):
        with pytest.raises(hb.UserError, match="targets must be probabilities"):
            hb.method("at", THREAT)(model, x, y, targets=wrong)
    with pytest.raises(hb.UserError, match="label_smoothing"):
        hb.method("at", THREAT, label_smoothing=1.0)


def test_a_weighting_is_named(batch):
    model, x, y = batch
    named = hb.method("trades", THREAT, weighting="GAIRAT", lam=0.0, burn_in=0)
    passed = hb.method("trades", THREAT, weighting=hb.weighting.Gairat(lam=0.0), burn_in=0)
    assert torch.equal(named(model, x, y).weights, passed(model, x, y).weights)
    with pytest.raises(hb.UserError, match="unknown weighting 'mial'; did you mean 'mail'"):
        hb.method("trades", THREAT, weighting="mial")
