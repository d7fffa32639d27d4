import copy

import pytest
import torch
from torch import nn

import hauberk as hb
from hauberk.core.random import ExampleRng
from hauberk.core.step_context import StepContext
from hauberk.methods import AWP
from hauberk.methods.weight_perturbation.awp import applied
from helpers import tiny_batch, tiny_net

THREAT = hb.Linf("8/255")


@pytest.mark.parametrize("name", ["at", "trades", "mart", "mail-mart"])
def test_awp_is_the_gradient_at_perturbed_weights_and_leaves_no_trace(name):
    """Against the algorithm written out with a deep copy of the model, as the public code does it."""
    model = tiny_net().double().train()
    x, y = tiny_batch(16, dtype=torch.float64)
    rng = ExampleRng(0, torch.arange(16))
    settings = {"burn_in": 0} if name.startswith("mail") else {}
    method = hb.method(f"{name}+awp", THREAT, gamma=0.02, **settings)
    before = copy.deepcopy(model.state_dict())
    seen = method.attack(model, x, y, THREAT, seed=rng)

    def loss_of(network, weights):
        clean = None if name == "at" else network(x)
        logits_adv = network(seen.x_adv)
        terms = method.objective(StepContext(network, x, y, THREAT, rng, logits=clean, logits_adv=logits_adv))
        if weights is None:
            weights = (
                hb.weighting.mail(hb.probabilistic_margin(logits_adv, y), 2.0, 0.0) if name == "mail-mart" else torch.ones(16)
            )
        return (weights * terms.robust + terms.regularizer).mean(), weights

    proxy = copy.deepcopy(model)
    loss, weights = loss_of(proxy, None)
    change = AWP(0.02).direction(proxy, loss)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for key, parameter in other.named_parameters():
            if key in change:
                parameter.add_(change[key])
    expected, _ = loss_of(other, weights)
    expected.backward()

    out = method(model, x, y, rng=rng)
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]), key  # the same bits
    out.loss.backward()
    assert torch.allclose(out.loss, expected)
    for (key, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-10), key
    passes = 1 if name == "at" else 2
    assert int(model[1].num_batches_tracked) == passes  # not those of the proxy
    assert torch.allclose(model[1].running_mean, other[1].running_mean)


def test_only_convolutions_and_linear_layers_by_their_own_norm():
    model = tiny_net().train()
    x, y = tiny_batch()
    change = AWP(0.05).direction(model, nn.functional.cross_entropy(model(x), y))
    assert set(change) == {"0.weight", "5.weight"}
    for name, v in change.items():
        assert float(v.norm() / model.get_parameter(name).norm()) == pytest.approx(0.05, rel=1e-5)


def test_attention_and_recurrent_layers_are_perturbed_as_in_the_public_code():
    """Which takes every weight with more than one dimension, whatever layer it is of."""

    class Sequences(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.recurrent = nn.MultiheadAttention(4, 2, batch_first=True), nn.GRU(4, 4, batch_first=True)
            self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.norm(self.recurrent(self.attention(x, x, x)[0])[0]).mean(1))

    model = Sequences()
    change = AWP(0.01).direction(model, nn.functional.cross_entropy(model(torch.rand(5, 6, 4)), torch.arange(5) % 3))
    matrices = {name for name, value in model.state_dict().items() if value.ndim > 1 and "weight" in name}
    assert set(change) == matrices > {"attention.in_proj_weight", "recurrent.weight_ih_l0", "recurrent.weight_hh_l0"}


def test_weights_come_back_when_something_fails():
    model = tiny_net()
    before = model[0].weight.detach().clone()
    try:
        with applied(model, {"0.weight": torch.ones_like(before)}):
            assert not torch.equal(model[0].weight, before)
            raise RuntimeError("stop")
    except RuntimeError:
        pass
    assert torch.equal(model[0].weight, before)


def test_warm_up_and_frozen_layers():
    model = tiny_net().train()
    model[0].weight.requires_grad_(False)
    x, y = tiny_batch()
    method = hb.method("at+awp", THREAT, awp_warmup=2)
    assert method(model, x, y, epoch=1).forwards == 11
    out = method(model, x, y, epoch=2)
    assert out.forwards == 12
    out.loss.backward()
    assert model[0].weight.grad is None
    assert model[5].weight.grad is not None
    assert hb.method("trades+awp", THREAT).weight_perturbation.gamma == 0.005


def test_trades_awp_as_its_script_has_it():
    """ε 8/255, steps of 2/255, and weights perturbed where ``epoch >= 10``, with epochs counted from 1."""
    model, (x, y) = tiny_net().train(), tiny_batch()
    official = hb.method("trades+awp", THREAT, preset="official")
    passes = {epoch: official(model, x, y, epoch=epoch - 1).forwards for epoch in range(1, 13)}
    assert [epoch for epoch, made in passes.items() if made > passes[1]] == [10, 11, 12]
    assert official.attack.step_size == "eps/4"
    for other in ("trades", "mail-trades+awp"):  # no code of the second is public: it steps as MAIL's does
        assert hb.method(other, THREAT, preset="official").attack.step_size == "7*eps/31"
