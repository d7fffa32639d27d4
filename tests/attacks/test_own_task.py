"""Attacks and evaluations with a criterion and a loss of one's own, on linear models whose worst case is known."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hauberk as hb
from hauberk.attacks import evades, fooled
from helpers import tiny_net

FAR = {"low": -9.0, "high": 9.0}  # a box that no ball reaches
THREATS = {"Linf": (hb.Linf(0.1, **FAR), 1), "L2": (hb.L2(0.3, **FAR), 2), "L1": (hb.L1(0.5, **FAR), torch.inf)}
LIMIT = 3.0


def off_by_far(outputs, y):
    return (outputs.reshape(y.shape) - y).abs() > LIMIT


def error(outputs, y):
    return (outputs.reshape(y.shape) - y).abs()


def regression(dual, outputs=()):
    """A linear model, inputs, targets that it misses by a margin, and the largest error there is.

    Even L1-APGD, which begins within 3ε, cannot turn the sign of an error.
    """
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(40, 6, generator=generator, dtype=torch.float64)
    layer = nn.Linear(6, 1).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(1, 6, generator=generator))
    model = nn.Sequential(layer, nn.Flatten(0)) if outputs == () else layer
    threat_gain = {1: 0.1, 2: 0.3, torch.inf: 0.5}[dual] * layer.weight.norm(p=dual)
    missed = threat_gain * (3.1 + 3 * torch.rand(40, generator=generator, dtype=torch.float64))
    sign = torch.where(torch.rand(40, generator=generator) < 0.5, -1.0, 1.0)
    y = (layer(x).squeeze(1) + sign * missed).detach()
    return model, x, y, (missed + threat_gain).detach()


ATTACKS = {
    "fgsm": hb.attacks.fgsm,
    "pgd": partial(hb.attacks.pgd, steps=30, step_size="eps/4"),
    "lm_pgd": partial(hb.attacks.lm_pgd, steps=30),
    "apgd": partial(hb.attacks.apgd, steps=100),
    "pgd in training": partial(hb.attacks.pgd, steps=30, return_last=True, evaluate_last=False),
}


@pytest.mark.parametrize("outputs", [(), (1,)], ids=["(B,)", "(B, 1)"])
@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_regression_reaches_the_largest_error(attack, norm, outputs):
    threat, dual = THREATS[norm]
    model, x, y, largest = regression(dual, outputs)
    limit = float(largest.median())

    def criterion(outputs, y):
        return error(outputs, y) > limit

    found = ATTACKS[attack](model, x, y, threat, criterion=criterion, loss=error)
    broken = largest > limit
    slack = 0.05 if norm == "L1" else 0.02
    clear = (largest - limit).abs() > slack * limit
    assert torch.equal(found.success[clear], broken[clear])
    if attack != "apgd":  # which stops at a success
        assert torch.allclose(error(model(found.x_adv), y), largest, rtol=slack)
    assert torch.equal(found.success, criterion(model(found.x_adv), y)) or attack == "pgd in training"
    assert bool(threat.contains(found.x_adv, x).all())


def all_right(outputs, y):
    return ((outputs > 0) == (y > 0.5)).all(1)


def worst_label(outputs, y):
    """How far the label that is nearest to a mistake is beyond it."""
    return ((1 - 2 * y) * outputs).amax(1)


def multi_label(count=60):
    generator = torch.Generator().manual_seed(5)
    x, model = torch.rand(count, 6, generator=generator), nn.Linear(6, 4)
    with torch.no_grad():
        model.weight.copy_(torch.randn(4, 6, generator=generator))
        model.bias.copy_(-model(torch.full((1, 6), 0.5))[0] + model.bias)
    y = (model(x) > 0).float()
    gain = 0.05 * model.weight.abs().sum(1)
    inside = ((x > 0.05) & (x < 0.95)).all(1)
    return model, x, y, (model(x).abs() < gain).any(1).detach(), inside


@pytest.mark.parametrize("attack", ["pgd", "apgd", "square", "random_search"])
def test_of_several_labels_one_wrong_is_a_mistake(attack):
    model, x, y, breakable, inside = multi_label()
    how = {"criterion": lambda outputs, y: ~all_right(outputs, y), "loss": worst_label}
    how |= {"pgd": {"restarts": 5}, "apgd": {"restarts": 5}, "square": {"steps": 200}}.get(attack, {})
    found = getattr(hb.attacks, attack)(model, x, y, hb.Linf(0.05), **how)
    assert not (found.success & ~breakable).any()
    assert torch.equal(found.success, ~all_right(model(found.x_adv), y))
    enough = {"random_search": 0.6}.get(attack, 0.95)
    assert 10 < (breakable & inside).sum() < inside.sum()
    assert (found.success & inside).sum() >= enough * (breakable & inside).sum()


def test_a_criterion_alone_is_of_classes_and_attacks_keep_their_losses():
    model, generator = tiny_net().eval(), torch.Generator().manual_seed(0)
    x = torch.rand(20, 3, 8, 8, generator=generator)
    y = model(x).argmax(1)

    def not_among_two(logits, y):
        return (logits.topk(2).indices != y[:, None]).all(1)

    threat = hb.Linf(0.02)
    for attack in (hb.attacks.pgd, partial(hb.attacks.apgd, loss="dlr-targeted", steps=20), partial(hb.attacks.fab, steps=10)):
        strict, usual = attack(model, x, y, threat, criterion=not_among_two), attack(model, x, y, threat)
        assert torch.equal(strict.success, not_among_two(model(strict.x_adv), y))
        assert strict.success.sum() < usual.success.sum()
    how = {"threat": threat, "attacks": ["apgd-ce", hb.attacks.FAB(steps=10)], "diagnostics": "cheap", "quiet": True}
    ev = hb.evaluate(model, (x, y), criterion=not_among_two, **how)
    assert ev.robust_accuracy > hb.evaluate(model, (x, y), **how).robust_accuracy
    assert ev.by_class


def test_a_class_of_adversarial_inputs_is_one_criterion():
    model, generator = tiny_net().eval(), torch.Generator().manual_seed(0)
    x = torch.rand(30, 3, 8, 8, generator=generator)
    y = model(x)[:, :-1].argmax(1)
    how = {
        "threat": hb.Linf(0.03),
        "attacks": ["pgd-10", "apgd-t", hb.attacks.Square(50)],
        "diagnostics": "cheap",
        "quiet": True,
    }
    ev = hb.evaluate(model, (x, y), criterion=evades, **how)
    short = hb.evaluate(model, (x, y), has_reject_class=True, **how)
    assert ev.examples == short.examples
    assert ev.detection == short.detection is not None
    with pytest.raises(hb.UserError, match="give one of the two"):
        hb.evaluate(model, (x, y), criterion=fooled, has_reject_class=True, **how)


def test_under_several_threat_models_a_detector_recognises_what_it_does_under_all():
    model, generator = tiny_net().eval(), torch.Generator().manual_seed(0)
    x = torch.rand(40, 3, 8, 8, generator=generator)
    y = model(x)[:, :-1].argmax(1)
    how = {"attacks": ["fgsm"], "has_reject_class": True, "diagnostics": [], "quiet": True}
    ev = hb.evaluate(model, (x, y), threat=[hb.Linf(0.1), hb.L2(1.0), hb.Linf(0.001)], **how)
    each = [result.detection["detection_rate"] for result in ev.results.values()]
    assert ev.detection["detection_rate"] <= min(each) < each[0]
    assert ev.detection["false_alarms"] == ev.results["L2(1)"].detection["false_alarms"]


@pytest.mark.parametrize("kind", ["arrays", "numpy", "items", "loader"])
def test_an_evaluation_of_a_regression_counts_exactly_and_goes_on(kind, tmp_path):
    threat, dual = THREATS["Linf"]
    model, x, y, largest = regression(dual)
    clean = error(model(x), y) <= LIMIT
    known = float((clean & (largest <= LIMIT)).double().mean())
    assert 0.1 < known < 0.9
    data = {
        "arrays": (x, y),
        "numpy": (x.numpy(), y.numpy()),
        "items": list(zip(x, y, strict=True)),
        "loader": DataLoader(TensorDataset(x, y), batch_size=7),
    }[kind]
    before = [p.clone() for p in model.parameters()]
    attacks = ["fgsm", "pgd-20", "apgd-ce", hb.attacks.Square(50), "random-100"]
    how = {"threat": threat, "attacks": attacks, "loss": error, "quiet": True}
    ev = hb.evaluate(model, data, criterion=off_by_far, **how, out=tmp_path)
    assert all(map(torch.equal, before, model.parameters()))
    assert ev.robust_accuracy == known
    assert ev.clean_accuracy == float(clean.double().mean())
    assert ev.by_attack["fgsm"] == known
    assert ev.by_class == {}
    assert {(one["label"], one["predicted"]) for one in ev.examples} == {(-1, -1)}
    margins = np.array([one["clean_margin"] for one in ev.examples])
    assert np.allclose(margins, -error(model(x), y).detach().numpy())
    assert not ev.warnings
    assert "the loss of the caller in place of 'ce'" in ev.provenance["substitutes"]["pgd-20"]
    assert hb.evaluate(model, data, criterion=off_by_far, **how, out=tmp_path).examples == ev.examples
    with pytest.raises(hb.UserError, match=r"another evaluation .criterion, loss or has_reject_class"):
        hb.evaluate(model, data, criterion=lambda outputs, y: off_by_far(outputs, y + 1), **how, out=tmp_path)
    if kind == "arrays":
        with pytest.raises(hb.UserError, match="data: inputs, labels"):
            hb.evaluate(model, (x, y + 0.01), criterion=off_by_far, **how, out=tmp_path)


def test_a_loss_alone_takes_the_place_of_losses_by_name():
    model, generator = tiny_net().eval(), torch.Generator().manual_seed(0)
    x = torch.rand(20, 3, 8, 8, generator=generator)
    y = model(x).argmax(1)

    def last_class(logits, y):
        return logits[:, -1] - logits.logsumexp(1)

    mine = hb.attacks.PGD(5, loss=hb.attacks.AttackLoss(last_class))
    attacks = ["pgd-10", "apgd-t", mine]
    ev = hb.evaluate(model, (x, y), threat=hb.Linf(0.02), loss=last_class, attacks=attacks, diagnostics="cheap", quiet=True)
    assert set(ev.provenance["substitutes"]) == {"pgd-10"}
    assert "0x" not in str(mine)
    assert str(mine) in ev.by_attack
    assert np.allclose([one["clean_margin"] for one in ev.examples], -last_class(model(x), y).detach(), atol=1e-5)
    assert ev.by_class


def test_points_of_a_transfer_attack_are_judged_by_the_criterion():
    threat, dual = THREATS["Linf"]
    model, x, y, largest = regression(dual)
    how = {"attacks": ["transfer-pgd-20"], "surrogate": model, "diagnostics": "cheap", "quiet": True}
    crafting = hb.attacks.PGD(20, loss=error)
    found = hb.attacks.transfer(model, x, y, threat, surrogate=model, attack=crafting, criterion=off_by_far)
    assert torch.equal(found.success, largest > LIMIT)
    ev = hb.evaluate(model, (x, y), threat=threat, criterion=off_by_far, loss=error, **how)
    assert ev.robust_accuracy == float(((largest <= LIMIT) & (error(model(x), y) <= LIMIT)).double().mean())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"suite": "standard"}, "'dlr-targeted' goes by classes"),
        ({"attacks": ["fab-t"]}, "'cw-targeted' goes by classes"),
        ({"suite": "rand"}, "averaged as probabilities"),
        ({"loss": None}, "other labels need criterion= and a loss="),
        ({"criterion": None}, "other labels need criterion="),
        ({"criterion": lambda outputs, y: outputs - y}, "criterion must return a bool for each of"),
        ({"criterion": lambda outputs: outputs}, "criterion must be a function"),
        ({"loss": lambda outputs, y: (outputs - y).sum()}, "loss of an attack must return a tensor of shape"),
        ({"loss": "ce"}, "loss must be a function"),
        ({"loss": hb.attacks.AttackLoss(torch.sub, "clean")}, "of outputs and labels alone"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(changes, says):
    model, x, y, _ = regression(1)
    how = {"threat": THREATS["Linf"][0], "criterion": off_by_far, "loss": error, "diagnostics": "cheap", "quiet": True}
    with pytest.raises(hb.UserError, match=says) as caught:
        hb.evaluate(model, (x, y), **how | changes)
    assert "\n" not in str(caught.value)


def test_labels_of_the_wrong_number_or_that_are_no_numbers_are_refused():
    model, x, y, _ = regression(1)
    how = {"criterion": off_by_far, "loss": error}
    with pytest.raises(hb.UserError, match="one is needed for each input"):
        hb.attacks.pgd(model, x, y[:-1], hb.Linf(0.1), **how)
    with pytest.raises(hb.UserError, match="labels have NaN"):
        hb.attacks.pgd(model, x, y * torch.nan, hb.Linf(0.1), **how)
    with pytest.raises(hb.UserError, match="takes no target"):
        hb.attacks.pgd(model, x, y, hb.Linf(0.1), target=torch.zeros(len(x), dtype=torch.int64), **how)
