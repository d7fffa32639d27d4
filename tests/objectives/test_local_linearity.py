import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hauberk as hb
from hauberk.core.random import ExampleRng
from hauberk.methods import get_method_spec
from hauberk.objectives import AT, ELLE, GradAlign, Regularized
from helpers import Signalling, count_passes, easy_data, settings, tiny_batch, tiny_net

EPS = 8 / 255
THREAT = hb.Linf(EPS)
RNG = ExampleRng(0, torch.arange(12))


def batch():
    return tiny_net().double().train(), *tiny_batch(12, dtype=torch.float64)


def uniform(like, tag):
    return RNG.uniform(like, tag)


def gradients(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()))


def alike(ours, theirs, tolerance=1e-12):
    assert all(torch.allclose(a, b, atol=tolerance) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("base", ["fgsm-at", "n-fgsm", "trades"])
def test_elle_is_the_public_snippet(base):
    """README of LIONS-EPFL/ELLE: the triplet in one pass, no clipping to the box, mean squared error times λ."""
    model, x, y = batch()
    out = hb.method(f"{base}+elle", THREAT, elle_lam=3000.0)(model, x, y, rng=RNG)
    a, b = (x + EPS * (2 * uniform(x, tag) - 1) for tag in (99_800, 99_810))
    assert ((a < 0) | (a > 1)).any()
    alpha = uniform(x.new_empty(12, 1), 99_820)[:, 0]
    part = alpha.view(-1, 1, 1, 1)
    losses = F.cross_entropy(model(torch.cat([a, b, (1 - part) * a + part * b])), y.repeat(3), reduction="none")
    penalty = F.mse_loss(losses[24:], (1 - alpha) * losses[:12] + alpha * losses[12:24])
    logits = None if base != "trades" else model(x)
    terms = get_method_spec(base).objective.function(logits, model(out.x_adv), y)
    expected = (terms.robust + terms.regularizer).mean() + 3000 * penalty
    assert float(3000 * penalty.detach()) > 1e-4
    assert torch.allclose(out.loss, expected, atol=1e-12)
    alike(gradients(out.loss, model), gradients(expected, model))


@pytest.mark.parametrize("base", ["fgsm-at", "n-fgsm"])
def test_gradalign_is_the_cosine_of_the_public_code(base):
    """train.py of tml-epfl/understanding-fast-adv-training: the first gradient is detached, the second has a graph."""
    model, x, y = batch()
    out = hb.method(f"{base}+gradalign", THREAT, gradalign_lam=0.7)(model, x, y, rng=RNG)
    here, there = x.clone().requires_grad_(), (x + EPS * (2 * uniform(x, 99_700) - 1)).requires_grad_()
    (one,) = torch.autograd.grad(F.cross_entropy(model(here), y), here)
    (other,) = torch.autograd.grad(F.cross_entropy(model(there), y), there, create_graph=True)
    one, other = one.flatten(1), other.flatten(1)
    cosine = (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))
    expected = F.cross_entropy(model(out.x_adv), y) + 0.7 * (1 - cosine.mean())
    assert float(1 - cosine.mean().detach()) > 1e-3
    assert torch.allclose(out.loss, expected, atol=1e-12)
    alike(gradients(out.loss, model), gradients(expected, model), 1e-9)


def test_examples_without_a_gradient_do_not_count_in_gradalign():
    class Flat(nn.Module):
        """Constant logits for dark inputs."""

        def __init__(self):
            super().__init__()
            self.net = tiny_net().double().eval()

        def forward(self, x):
            return self.net(x) * (x[:, :, 0, 0].sum(1, keepdim=True) > 0.5).to(x.dtype)

    model, (x, y) = Flat(), tiny_batch(12, dtype=torch.float64)
    x[:, :, 0, 0] = torch.where(torch.arange(12) < 5, 0.0, 1.0)[:, None]
    threat = hb.Linf(0.05)
    few = ExampleRng(0, torch.arange(12)[5:])
    parts = []
    for inputs, labels, rng in ((x, y, RNG), (x[5:], y[5:], few)):
        method = hb.method("standard+gradalign", threat, gradalign_lam=1.0)
        context_loss = method(model, inputs, labels, rng=rng).loss - hb.method("standard", threat)(model, inputs, labels).loss
        assert all(grad is None or grad.isfinite().all() for grad in gradients(context_loss, model))
        parts.append(float(context_loss.detach()))
    assert parts[0] == pytest.approx(parts[1], rel=1e-9)
    nothing = hb.method("standard+gradalign", threat)(model, x[:5], y[:5]).loss
    assert float(nothing.detach()) == pytest.approx(math.log(5))


@pytest.mark.parametrize(
    ("name", "forwards", "backwards"),
    [("fgsm-at+elle", 5, 1), ("n-fgsm+gradalign", 4, 3), ("n-fgsm+gradalign+elle", 7, 3), ("at+awp+elle", 18, 10)],
)
def test_passes_are_counted(name, forwards, backwards):
    model, batch_ = tiny_net().train(), tiny_batch()
    method = hb.method(name, THREAT)
    seen = count_passes(model)
    out = method(model, *batch_)
    assert (out.forwards, out.backwards) == (forwards, backwards)
    in_one = 2 * name.count("elle") * (2 if "awp" in name else 1)  # three inputs of each example in one pass
    assert seen["forwards"] == forwards - in_one


def test_attack_and_settings_are_those_of_the_papers():
    elle, aligned, adaptive = (hb.method(f"fgsm-at+{name}", THREAT) for name in ("elle", "gradalign", "elle-a"))
    for method in (elle, aligned, adaptive):
        assert (method.attack.start, method.attack.step_size) == ("clean", "eps")  # no noise, α = ε in both papers' code
    assert elle.objective.terms == [ELLE(1000.0)]
    assert aligned.objective.terms == [GradAlign(0.2)]
    assert adaptive.objective.terms[0].settings == ELLE(4000.0, True, 0.99, 2.0)
    assert hb.method("n-fgsm+elle", THREAT).attack.start == hb.method("n-fgsm", THREAT).attack.start
    assert get_method_spec("n-fgsm+elle").equation.endswith("- α·CE(f(x_b), y))²")
    assert get_method_spec("uniform-noise+elle").equation.partition(";")[0].count("+ λ") == 1
    both = hb.method("trades+gradalign+elle", THREAT, elle_lam=2.0, gradalign_lam=3.0, beta=4.0)
    assert (both.objective.terms, both.objective.objective.beta) == ([GradAlign(3.0), ELLE(2.0)], 4.0)
    assert hb.method(**{**both.to_dict(), "threat": THREAT}).objective.terms == both.objective.terms
    with pytest.raises(hb.UserError, match="unknown setting of at"):
        hb.method("at", THREAT, elle_lam=1.0)
    with pytest.raises(hb.UserError, match="elle_decay must be at most 1"):
        ELLE(elle_decay=1.5)
    with pytest.raises(hb.UserError, match="must not be negative"):
        GradAlign(-1.0)


@pytest.mark.parametrize("suffix", ["", "+awp"])
def test_elle_a_follows_the_rule_of_the_public_code(suffix):
    """λ begins at 0, jumps when an error is more than two deviations above the mean of those before, and decays otherwise."""
    model, x, y = batch()
    method = hb.method(f"n-fgsm+elle-a{suffix}", THREAT, elle_sensitivity=0.5)
    plain = ELLE(1.0)
    errors, lams, lam = [], [], 0.0
    for step in range(12):
        rng = ExampleRng(step, torch.arange(12))
        base = hb.method(f"n-fgsm{suffix}", THREAT)(copy.deepcopy(model), x, y, rng=rng)
        seen = method(model, x, y, rng=rng)
        lams.append(lam)
        term = Regularized(AT(), plain).terms[0]
        context = hb.StepContext(model, x, y, THREAT, rng, sizes=[12])
        error = float(term(context).mean().detach())
        if not suffix:
            assert float((seen.loss - base.loss).detach()) == pytest.approx(lam * error, rel=1e-6, abs=1e-9)
        mean = sum(errors) / max(len(errors), 1)
        deviation = (sum((e - mean) ** 2 for e in errors) / max(len(errors), 1)) ** 0.5
        lam = 4000.0 if len(errors) > 2 and error > mean + 0.5 * deviation else lam * 0.99
        errors.append(error)
        assert float(method.objective.terms[0].state[0]) == pytest.approx(lam)
        assert int(method.objective.terms[0].state[1]) == step + 1  # once a step, perturbed weights or not
    assert 4000.0 in lams
    assert any(0 < one < 4000 for one in lams)


def test_what_elle_a_remembers_is_saved_and_begins_anew_with_a_training(tmp_path):
    model, x, y = batch()
    method = hb.method("n-fgsm+elle-a", THREAT)
    for _ in range(5):
        method(model, x, y)
    again = hb.method("n-fgsm+elle-a", THREAT)
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.objective.terms[0].state, method.objective.terms[0].state)
    assert not method.with_schedule(10).objective.terms[0].state.any()
    assert method.objective.terms[0].state[1] == 5

    def go(at, folder, resume=False):
        trained = hb.method("n-fgsm+elle-a", THREAT, elle_sensitivity=0.1)
        data = Signalling(easy_data(), at)
        return hb.train("small-cnn", data, method=trained, out=tmp_path / folder, resume=resume, **settings(val_size=0))

    whole = go(0, "whole")
    assert go(280, "stopped").interrupted
    assert (tmp_path / "stopped" / "state.ckpt").exists()  # steps have been taken
    resumed = go(0, "stopped", resume=True)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


def test_a_term_of_your_own_and_an_objective_of_your_own():
    def loss(context):
        return F.cross_entropy(context.logits_adv, context.y, reduction="none"), torch.zeros(len(context.y)).double()

    model, x, y = batch()
    objective = Regularized(loss, lambda context: context.logits_adv.square().mean(1))
    out = hb.Method(THREAT, hb.attacks.PGD(1, "eps"), objective)(model, x, y)
    z = model(out.x_adv)
    model(x)  # moves BatchNorm as the step did
    assert torch.allclose(out.loss, F.cross_entropy(z, y) + z.square().mean(), atol=1e-12)
    assert hb.method("at+elle", THREAT, objective=loss)(model, x, y).loss.requires_grad


@pytest.mark.parametrize("threat", [hb.L2(0.5), hb.L1(4.0), hb.Linf(torch.rand(3, 8, 8) * 0.1, frozen=[0, 1, 2])])
def test_in_other_threat_models(threat):
    model, (x, y) = tiny_net().train(), tiny_batch()
    for name in ("n-fgsm+elle", "n-fgsm+gradalign"):
        out = hb.method(name, threat)(model, x, y)
        out.loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
