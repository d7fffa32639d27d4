import copy
import math

import pytest
import torch
import torch.nn.functional as F

import hauberk as hb
from hauberk.core.random import ExampleRng
from hauberk.methods import RWP
from helpers import count_passes, tiny_batch, tiny_net

THREAT = hb.Linf("8/255")


def perturbed(model, x, y, threshold, gamma=0.01, steps=10, rate=0.01):
    """calc_awp of ChaojianYu/Robust-Weight-Perturbation, written out: SGD steps of a proxy, summed, scaled by global norms."""
    chosen = [name for name, value in model.named_parameters() if value.ndim > 1 and "weight" in name]
    size = torch.cat([model.get_parameter(name).flatten() for name in chosen]).norm()
    total, scaled = dict.fromkeys(chosen, 0.0), dict.fromkeys(chosen, 0.0)
    for _ in range(steps):
        proxy = copy.deepcopy(model)
        with torch.no_grad():
            for name in chosen:
                proxy.get_parameter(name).add_(gamma * scaled[name])
        losses = F.cross_entropy(proxy(x), y, reduction="none")
        (losses * (losses < threshold)).mean().backward()
        total = {name: total[name] + rate * proxy.get_parameter(name).grad for name in chosen}
        length = torch.cat([one.flatten() for one in total.values()]).norm() + 1e-20
        scaled = {name: size / length * one for name, one in total.items()}
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name in chosen:
            other.get_parameter(name).add_(gamma * scaled[name])
    return other


@pytest.mark.parametrize(
    ("name", "settings", "threshold"),
    [
        ("rwp", {}, 1.7),
        ("mlcat-wp", {}, 1.5),
        ("rwp", {"c_min": 1.8, "gamma": 0.05}, 1.8),
        ("rwp", {"ascent_steps": 1}, 1.7),
    ],
)
def test_the_gradient_is_that_at_the_weights_of_the_public_code(name, settings, threshold):
    model, (x, y) = tiny_net().double().train(), tiny_batch(24, dtype=torch.float64)
    losses = F.cross_entropy(model(x), y, reduction="none")
    assert 2 < int((losses < threshold).sum()) < 22  # the threshold says something
    before = copy.deepcopy(model.state_dict())
    out = hb.method("at", THREAT, weight_perturbation=name, **settings)(model, x, y, rng=ExampleRng(0, torch.arange(24)))
    assert all(torch.equal(parameter, before[key]) for key, parameter in model.named_parameters())
    out.loss.backward()
    start = copy.deepcopy(model)
    start.load_state_dict(before)
    steps = settings.get("ascent_steps", 10)
    other = perturbed(start, out.x_adv, y, threshold, settings.get("gamma", 0.01), steps)
    expected = F.cross_entropy(other(out.x_adv), y)
    expected.backward()
    assert torch.allclose(out.loss, expected, atol=1e-11)
    for (key, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-10), key
    assert out.forwards == 10 + steps + 1
    assert int(model[1].num_batches_tracked) == int(before["1.num_batches_tracked"]) + 1  # not those of the search


def test_only_examples_below_the_threshold_move_the_weights():
    model, (x, y) = tiny_net().train(), tiny_batch(16)
    plain, none, all_of_them, first = (copy.deepcopy(model) for _ in range(4))
    rng = ExampleRng(0, torch.arange(16))
    hb.method("at", THREAT)(plain, x, y, rng=rng).loss.backward()
    hb.method("at", THREAT, weight_perturbation=RWP(c_min=-1.0))(none, x, y, rng=rng).loss.backward()
    for one, other in zip(plain.parameters(), none.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)  # nothing below it: bit for bit the method without
    # With all of them and one step it is AWP with one norm for all layers.
    hb.method("at", THREAT, weight_perturbation=RWP(c_min=1e9, ascent_steps=1))(all_of_them, x, y, rng=rng).loss.backward()
    found = hb.method("at", THREAT)(first, x, y, rng=rng)
    awp = hb.AWP(0.01).direction(first, found.loss)
    grads = torch.autograd.grad(F.cross_entropy(first(found.x_adv), y), [first.get_parameter(name) for name in awp])
    weights = [first.get_parameter(name).detach() for name in awp]
    norm = math.hypot(*(float(w.norm()) for w in weights)) / math.hypot(*(float(g.norm()) for g in grads))
    with torch.no_grad():
        for weight, grad in zip(weights, grads, strict=True):
            weight.add_(0.01 * norm * grad)
    F.cross_entropy(first(found.x_adv), y).backward()
    for one, other in zip(all_of_them.parameters(), first.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-5)


def test_weights_of_instances_are_made_once_and_passes_counted():
    model, (x, y) = tiny_net().train(), tiny_batch(16)
    method = hb.method("mail-trades", THREAT, weight_perturbation="rwp", ascent_steps=3, burn_in=0)
    seen = count_passes(model)
    out = method(model, x, y)
    assert out.forwards == seen["forwards"] == 10 + 1 + 2 * 3 + 2
    plain = hb.method("mail-trades", THREAT, burn_in=0)(tiny_net().train(), x, y)
    assert torch.allclose(out.weights, plain.weights, atol=1e-6)  # at the unperturbed weights
    with pytest.raises(hb.UserError, match="ascent_steps must be at least 1"):
        RWP(ascent_steps=0)


def test_a_search_of_your_own_and_one_that_never_looks():
    class Backwards:
        """Weights at which the worst example is a little better."""

        warmup = 0

        def search(self, model, losses, context):
            grad = torch.autograd.grad(losses().max(), model[0].weight)[0]
            return {"0.weight": -0.01 * grad}

    class Blind:
        warmup = 0

        def search(self, model, losses, context):
            return {}

    model, batch = tiny_net().train(), tiny_batch()
    hb.Method(THREAT, hb.attacks.PGD(2), weight_perturbation=Backwards())(model, *batch).loss.backward()
    assert model[0].weight.grad is not None
    with pytest.raises(hb.UserError, match="never asked for the losses"):
        hb.Method(THREAT, hb.attacks.PGD(2), weight_perturbation=Blind())(model, *batch)
