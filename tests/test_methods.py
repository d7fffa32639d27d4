import pytest
import torch

import hauberk as hb
from conftest import tiny_batch, tiny_net
from hauberk.objectives import OBJECTIVES
from test_attacks_engine import count_passes

THREAT = hb.Linf("8/255")


@pytest.mark.parametrize(
    ("name", "forwards", "backwards"), [("standard", 1, 0), ("at", 11, 10), ("mart", 12, 10), ("trades", 13, 10)]
)
def test_a_step_makes_no_pass_too_many(name, forwards, backwards):
    model = tiny_net().train()
    method = hb.method(name, THREAT)
    x, y = tiny_batch()
    seen = count_passes(model)
    out = method(model, x, y)
    assert (out.forwards, out.backwards) == (forwards, backwards)
    assert seen == {"forwards": forwards, "backwards": backwards}
    before = int(model[1].num_batches_tracked)
    method(model, x, y)
    assert int(model[1].num_batches_tracked) - before == (2 if name in ("mart", "trades") else 1)


@pytest.mark.parametrize("name", list(hb.list_methods()))
def test_one_line_in_anybodys_loop(name, device):
    method = hb.method(name, THREAT)
    model = tiny_net(classes=5 + method.extra_outputs).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = (t.to(device) for t in tiny_batch(32))
    losses = []
    for epoch in range(15):
        out = method(model, x, y, epoch=epoch)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(float(out.loss.detach()))
    assert losses[-1] < losses[0]
    assert out.weights.shape == (32,)
    assert not out.weights.requires_grad
    if name != "standard":
        assert THREAT.contains(out.x_adv, x).all()
        assert out.logits_adv.shape == (32, 5 + method.extra_outputs)


def test_the_loss_is_the_formula():
    model = tiny_net().eval()
    x, y = tiny_batch()
    for name in ("at", "trades", "mart"):
        out = hb.method(name, THREAT)(model, x, y)
        terms = OBJECTIVES[name].terms(out.logits, out.logits_adv, y)
        assert torch.allclose(out.loss, (out.weights * terms.robust + terms.regular).mean(), atol=1e-6)
        assert torch.allclose(out.logits_adv, model(out.x_adv), atol=1e-5)


def test_each_call_draws_new_starts_and_the_seed_repeats_them():
    model = tiny_net().eval()
    x, y = tiny_batch()
    first, second = (hb.method("at", THREAT, steps=1, seed=4) for _ in range(2))
    a, b = first(model, x, y).x_adv, first(model, x, y).x_adv
    assert not torch.equal(a, b)
    assert torch.equal(a, second(model, x, y).x_adv)


def test_class_weights_multiply_the_whole_term():
    model = tiny_net().eval()
    x, y = tiny_batch()
    weights = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    out = hb.method("trades", THREAT)(model, x, y, class_weights=weights)
    terms = hb.objectives.trades(out.logits, out.logits_adv, y)
    assert torch.allclose(out.loss, (weights[y] * (terms.robust + terms.regular)).mean(), atol=1e-6)


def test_eps_scale_shrinks_the_ball():
    model = tiny_net().eval()
    x, y = tiny_batch()
    out = hb.method("at", THREAT)(model, x, y, eps_scale=0.25)
    assert float((out.x_adv - x).abs().max()) == pytest.approx(2 / 255, rel=1e-3)


def test_overrides_and_presets_reach_attack_and_objective():
    mart = hb.method("mart", THREAT, beta=1.5, steps=3, step_size="2/255")
    assert (mart.attack.steps, mart.attack.step_size, mart.settings["beta"]) == (3, "2/255", 1.5)
    official = hb.method("trades", hb.Linf(0.031), preset="official")
    from hauberk.attacks.steps import parse_step

    assert parse_step(official.attack.step_size, official.threat) == pytest.approx(0.007)
    assert official.attack.start == "normal"
    again = hb.method(**{**mart.to_dict(), "threat": THREAT})
    assert again.to_dict() == mart.to_dict()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: hb.method("marts", THREAT), "did you mean 'mart'"),
        (lambda: hb.method("at", THREAT, stepsize=1), "did you mean 'step_size'"),
        (lambda: hb.method("at", THREAT, beta=1.0), "unknown setting of at"),
        (lambda: hb.method("mart", THREAT, beta=-1), "not negative"),
        (lambda: hb.method("mart", THREAT, beta=float("nan")), "not negative"),
        (lambda: hb.method("mart", THREAT, preset="code"), "preset is"),
        (lambda: hb.method("at", THREAT)(tiny_net(), *tiny_batch()[:1], torch.full((6,), 9)), "labels must be 0 to 4"),
        (lambda: hb.method("at", THREAT)(tiny_net(), tiny_batch()[0] * 4 - 2, tiny_batch()[1]), "normalisation belongs inside"),
        (lambda: hb.method("at", THREAT)(tiny_net(), tiny_batch()[0] * 255, tiny_batch()[1]), "divide by 255"),
        (
            lambda: hb.method("at", THREAT)(torch.nn.Sequential(tiny_net(), torch.nn.Softmax(1)), *tiny_batch()),
            "returns probabilities",
        ),
    ],
)
def test_mistakes_get_one_clear_line(make, says):
    with pytest.raises(hb.UserError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)
