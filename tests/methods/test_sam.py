import copy

import pytest
import torch
import torch.nn.functional as F

import hauberk as hb
from hauberk.core.random import ExampleRng
from helpers import count_passes, tiny_batch, tiny_net

THREAT = hb.Linf("8/255")


def moved(model, x, y, rho, adaptive, eta=0.01):
    """The weights after the ascent step of SamsungLabs/ASAM's SAM or ASAM, written out in a loop."""
    other = copy.deepcopy(model)
    F.cross_entropy(other(x), y).backward()
    scaled, squares = {}, 0.0
    for name, parameter in other.named_parameters():
        t = parameter.detach().abs() + eta if adaptive and "weight" in name else torch.ones_like(parameter)
        scaled[name] = t * t * parameter.grad
        squares += float((t * parameter.grad).square().sum())
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.add_(rho / squares**0.5 * scaled[name])
    other.zero_grad()
    return other


@pytest.mark.parametrize(("name", "rho", "adaptive"), [("sam", 0.05, False), ("asam", 0.5, True)])
@pytest.mark.parametrize("given", [{}, {"rho": 0.2}])
def test_the_gradient_is_that_at_the_weights_of_the_public_code(name, rho, adaptive, given):
    model, (x, y) = tiny_net().double().train(), tiny_batch(16, dtype=torch.float64)
    method = hb.method("at", THREAT, weight_perturbation=name, **given)
    before = copy.deepcopy(model.state_dict())
    out = method(model, x, y, rng=ExampleRng(0, torch.arange(16)))
    assert all(torch.equal(parameter, before[key]) for key, parameter in model.named_parameters())
    out.loss.backward()
    other = moved(model, out.x_adv, y, given.get("rho", rho), adaptive)
    expected = F.cross_entropy(other(out.x_adv), y)
    expected.backward()
    assert torch.allclose(out.loss, expected, atol=1e-12)
    assert float((out.loss - F.cross_entropy(model(out.x_adv), y)).detach()) > 1e-3  # it is higher there
    for (key, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-12), key
    assert (out.forwards, out.backwards) == (12, 10)


def test_every_parameter_takes_part_and_the_step_has_its_length():
    model, (x, y) = tiny_net().train(), tiny_batch()
    change = hb.SAM(0.3).direction(model, F.cross_entropy(model(x), y))
    assert set(change) == dict(model.named_parameters()).keys()
    assert float(torch.cat([v.flatten() for v in change.values()]).norm()) == pytest.approx(0.3, rel=1e-5)


def test_names_settings_and_cards():
    asam = hb.method("trades", THREAT, weight_perturbation="asam", eta=0.1, awp_warmup=2)
    assert asam.weight_perturbation == hb.SAM(0.5, True, 0.1, warmup=2)
    assert hb.method(**{**asam.to_dict(), "threat": THREAT}).weight_perturbation == asam.weight_perturbation
    assert hb.method("at", THREAT, weight_perturbation="awp", gamma=0.02).weight_perturbation == hb.AWP(0.02)
    assert hb.method("at", THREAT, weight_perturbation=hb.SAM(0.1)).weight_perturbation.rho == 0.1
    model, batch = tiny_net().train(), tiny_batch()
    assert asam(model, *batch, epoch=1).forwards == 13
    seen = count_passes(model)
    assert asam(model, *batch, epoch=2).forwards == 15 == seen["forwards"]
    with pytest.raises(hb.UserError, match="did you mean 'sam'"):
        hb.method("at", THREAT, weight_perturbation="samm")
    with pytest.raises(hb.UserError, match="setting of at"):
        hb.method("at", THREAT, weight_perturbation="sam", gamma=0.01)
    with pytest.raises(hb.UserError, match="rho, eta and warmup must not be negative"):
        hb.SAM(-1.0)
