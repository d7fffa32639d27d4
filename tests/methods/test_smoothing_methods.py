"""Training for randomised smoothing: Gaussian noise, and adversarial inputs of the smoothed classifier."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hauberk as hb
from hauberk.core.random import ExampleRng
from hauberk.objectives.smoothing import gaussian_noise, log_mean_softmax
from helpers import count_passes, tiny_batch, tiny_net

THREAT = hb.L2(0.5)


def double():
    return tiny_net().double().eval(), *tiny_batch(dtype=torch.float64)


def test_noise_is_standard_normal_and_keyed_by_example():
    like, rng = torch.empty(200, 3, 4, 4, dtype=torch.float64), ExampleRng(0, torch.arange(200))
    noise = gaussian_noise(like, 0.5, 4, rng)
    assert noise.shape == (200, 4, 3, 4, 4)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.std()) == pytest.approx(0.5, abs=0.01)
    assert torch.equal(gaussian_noise(like[:2], 0.5, 4, rng.index_select(torch.tensor([7, 9]))), noise[[7, 9]])
    assert torch.equal(gaussian_noise(like, 0.5, 2, rng), noise[:, :2])
    assert torch.corrcoef(noise[:2].flatten(1)).triu(1).abs().max() < 0.3


@pytest.mark.parametrize("draws", [1, 3])
def test_gaussian_by_its_equation(draws):
    model, x, y = double()
    rng = ExampleRng(5, torch.arange(len(x)))
    out = hb.method("gaussian", THREAT, sigma=0.25, draws=draws)(model, x, y, rng=rng)
    noise = gaussian_noise(x, 0.25, draws, rng)
    losses = [F.cross_entropy(model(x + noise[:, j]), y) for j in range(draws)]
    assert torch.allclose(out.loss, torch.stack(losses).mean(), rtol=1e-12)
    assert torch.allclose(out.logits, torch.stack([model(x + noise[:, j]).softmax(1) for j in range(draws)]).mean(0).log())
    assert out.x_adv is None
    assert (out.forwards, out.backwards) == (draws, 0)


@pytest.mark.parametrize("name", ["gaussian", "smoothadv"])
def test_labels_may_be_smoothed_and_probabilities(name):
    model, x, y = double()
    rng, soft = ExampleRng(5, torch.arange(len(x))), torch.rand(len(x), 5, dtype=torch.float64).softmax(1)
    out = hb.method(name, THREAT, draws=2, label_smoothing=0.3)(model, x, y, rng=rng, targets=soft)
    at = x if name == "gaussian" else out.x_adv
    noise = gaussian_noise(x, 0.25, 2, rng)
    losses = [F.cross_entropy(model(at + noise[:, j]), soft, label_smoothing=0.3) for j in range(2)]
    assert torch.allclose(out.loss, torch.stack(losses).mean(), rtol=1e-12)
    plain, same = (hb.method(name, THREAT)(model, x, y, rng=rng, targets=t) for t in (None, F.one_hot(y, 5).double()))
    assert torch.allclose(same.loss, plain.loss, rtol=1e-12)
    if name == "smoothadv":  # whose attack raises the cross-entropy with the probabilities
        assert torch.allclose(same.x_adv, plain.x_adv, atol=1e-12)


def test_each_step_draws_other_noise_and_the_seed_repeats_it():
    model, x, y = double()
    first, second = (hb.method("gaussian", THREAT, seed=3) for _ in range(2))
    losses = [first(model, x, y).loss.item() for _ in range(2)]
    assert losses[0] != losses[1]
    assert losses == [second(model, x, y).loss.item() for _ in range(2)]
    assert losses[0] != hb.method("gaussian", THREAT, seed=4)(model, x, y).loss.item()


@pytest.mark.parametrize("draws", [1, 3])
def test_smoothadv_by_its_equation(draws):
    """One step from x goes along the gradient of -log of the mean probability, and the loss sees the noise of the attack."""
    model, x, y = double()
    rng = ExampleRng(5, torch.arange(len(x)))
    method = hb.method("smoothadv", hb.L2(0.5, low=-9, high=9), sigma=0.25, draws=draws, steps=1, step_size=0.3)
    out = method(model, x, y, rng=rng)
    noise, point = gaussian_noise(x, 0.25, draws, rng), x.clone().requires_grad_()
    p = torch.stack([model(point + noise[:, j]).softmax(1) for j in range(draws)]).mean(0)
    (grad,) = torch.autograd.grad(-p[torch.arange(len(y)), y].log().sum(), point)
    expected = x + 0.3 * F.normalize(grad.flatten(1), dim=1).view_as(x)
    assert torch.allclose(out.x_adv, expected, atol=1e-10)
    logits = torch.stack([model(expected + noise[:, j]) for j in range(draws)], 1)
    losses = F.cross_entropy(logits.flatten(0, 1), y.repeat_interleave(draws))
    assert torch.allclose(out.loss, losses, rtol=1e-8)
    assert torch.allclose(out.logits_adv, logits.softmax(2).mean(1).log(), atol=1e-8)


def test_log_mean_softmax_keeps_far_apart_logits():
    logits = torch.tensor([[[0.0, 200.0], [0.0, 300.0]]])
    found = log_mean_softmax(logits)
    assert found.isfinite().all()
    assert float(found[0, 0]) == pytest.approx(-200 - 0.6931, rel=1e-4)
    assert log_mean_softmax(torch.randn(4, 3, 5).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("threat", [THREAT, hb.Linf("8/255")])
def test_smoothadv_raises_the_smoothed_loss_within_the_threat_model(threat):
    model, x, y = double()
    rng = ExampleRng(1, torch.arange(len(x)))
    loss = [
        hb.method("smoothadv", threat.scaled(scale), sigma=0.1, draws=2)(model, x, y, rng=rng).loss.item()
        for scale in (1e-6, 0.5, 1.0)
    ]
    assert loss[0] < loss[1] < loss[2]
    assert threat.contains(hb.method("smoothadv", threat)(model, x, y).x_adv, x).all()


@pytest.mark.parametrize(
    ("name", "settings", "forwards", "backwards", "calls"),
    [
        ("gaussian", {}, 1, 0, 1),
        ("gaussian", {"draws": 4}, 4, 0, 1),
        ("smoothadv", {"steps": 3}, 4, 3, 4),
        ("smoothadv", {"steps": 3, "draws": 2}, 8, 6, 4),
        ("smoothadv", {"steps": 3, "draws": 2, "evaluate_last": True}, 10, 6, 5),
        ("gaussian+awp", {"draws": 2}, 4, 0, 2),
        ("smoothadv+awp", {"steps": 3, "draws": 2}, 10, 6, 5),
    ],
)
def test_passes_are_counted_for_each_copy(name, settings, forwards, backwards, calls):
    model = tiny_net().train()
    method, (x, y) = hb.method(name, THREAT, **settings), tiny_batch()
    seen = count_passes(model)
    out = method(model, x, y, epoch=0)
    assert (out.forwards, out.backwards) == (forwards, backwards)
    assert seen["forwards"] == calls
    before = int(model[1].num_batches_tracked)
    method(model, x, y, epoch=0)
    assert int(model[1].num_batches_tracked) - before == 1  # the copies of a batch are one pass in training mode
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_smoothadv_goes_with_weights_of_every_measure():
    x, y = tiny_batch(8)
    for measure, more in (("pm-adv", 0), ("pm-nat", 1), ("kappa", 0)):
        method = hb.method("smoothadv", THREAT, steps=2, draws=2, measure=measure, burn_in=0)
        out = method(tiny_net().train(), x, y, epoch=0)
        assert out.forwards == 6 + more
        assert out.weights.std() > 0
        assert out.weights.mean().item() == pytest.approx(1, abs=1e-5)


def test_settings_reach_attack_and_objective():
    method = hb.method("smoothadv", THREAT, sigma=0.5, draws=4, steps=6)
    for part in (method.attack, method.objective):
        assert (part.sigma, part.draws) == (0.5, 4)
    assert (method.attack.steps, method.attack.start, method.attack.mode) == (6, "clean", "eval")
    again = hb.method(**{**method.to_dict(), "threat": THREAT})
    assert again.to_dict() == method.to_dict()
    assert again.attack.sigma == 0.5


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: hb.method("gaussian", THREAT, draws=0), "draws must be at least 1"),
        (lambda: hb.method("gaussian", THREAT, sigma=-1.0), "sigma must not be negative"),
        (lambda: hb.method("gaussian", THREAT, steps=3), "unknown setting of gaussian"),
        (lambda: hb.method("at", THREAT, sigma=0.5), "unknown setting of at"),
        (
            lambda: hb.method("gaussian", THREAT)(tiny_net(), *tiny_batch(), class_weights=torch.ones(3)),
            "number for each class",
        ),
        (lambda: hb.attacks.SmoothAdv(draws=0), "at least 1 draw"),
        (lambda: hb.Method(THREAT, objective=hb.objectives.NoisyAT())(tiny_net(), *tiny_batch()), "so it needs an attack"),
        *(
            (
                lambda name=name: hb.method(name, THREAT, draws=2)(nn.Sequential(tiny_net(), nn.Softmax(1)), *tiny_batch()),
                "returns probabilities",
            )
            for name in ("gaussian", "smoothadv")
        ),
    ],
)
def test_mistakes_get_one_clear_line(make, says):
    with pytest.raises(hb.UserError, match=says):
        make()


def test_smoothadv_is_an_attack_like_others(digits):
    """In a stream whose rows are refilled it finds what it finds in one batch."""
    x, y = digits["test"].fetch(torch.arange(24))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double().eval()
    with torch.no_grad():
        y = model(x.double()).argmax(1)
    attack = hb.attacks.SmoothAdv(steps=5, sigma=0.02, draws=2, start="uniform")
    found = [
        hb.evaluate(model, (x, y), threat=hb.L2(0.3), attacks=[attack], batch_size=size, diagnostics=[], quiet=True)
        for size in (24, 5)
    ]
    assert found[0].broken_by == found[1].broken_by
    assert 0 < found[0].robust_accuracy < 1
    assert found[0].provenance["passes"]["backwards"] >= 2 * 5 * 24 * found[0].robust_accuracy


def test_an_objective_of_the_callers_own_may_make_passes_too():
    """What goes through the context is counted, a part of the batch as a part of a pass."""

    def consistent(context):
        flipped = context.forward(context.x.flip(-1)[:3])
        return F.cross_entropy(context.logits, context.y, reduction="none"), flipped.square().mean()

    consistent.needs = {"clean"}
    out = hb.Method(THREAT, objective=consistent)(tiny_net().train(), *tiny_batch(6))
    assert out.forwards == 1.5
    assert out.loss.requires_grad
