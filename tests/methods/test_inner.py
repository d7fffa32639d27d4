import pytest
import torch
from torch import nn

import hauberk as hb
from hauberk.methods.inner_attacks.minimum_margin import MinimumMargin
from hauberk.objectives.functional import evade_loss, soft_logit_margin
from helpers import tiny_batch, tiny_net

THREAT = hb.Linf(0.05)


def linear(margin=0.03):
    """Two classes whose boundary lies at a known L∞ distance from x = 0.5."""
    model = nn.Linear(4, 2, bias=True).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.0, 2.0, 0.5], [-1.0, 1.0, -2.0, -0.5]]))
        score = 0.5 * float(model.weight[0].sum())
        model.bias.copy_(torch.tensor([-score + 4.5 * margin, score - 4.5 * margin]))
    return model


@pytest.mark.parametrize("margin", [0.01, 0.03, 0.049])
def test_mma_finds_the_distance_to_the_boundary(margin):
    x = torch.full((1, 4), 0.5, dtype=torch.float64)
    fraction = torch.full((1,), 0.5)
    found, distance = MinimumMargin(hb.attacks.PGD(10), 20).search(linear(margin), x, torch.tensor([0]), THREAT, fraction)
    assert found.success.all()
    assert float(distance) * 0.05 == pytest.approx(margin, rel=1e-3)
    assert float((found.x_adv - x).abs().max()) == pytest.approx(margin, rel=1e-3)


def test_mma_leaves_out_what_lies_beyond():
    x, fraction = torch.full((1, 4), 0.5, dtype=torch.float64), torch.full((1,), 0.5)
    found, distance = MinimumMargin(hb.attacks.PGD(10)).search(linear(0.06), x, torch.tensor([0]), THREAT, fraction)
    assert not found.success.any()
    assert float(distance) == 1.0
    assert torch.equal(found.x_adv, x)


def test_mma_remembers_each_examples_radius():
    method = hb.method("mma", THREAT)
    model = tiny_net(seed=3).eval()
    x, y = tiny_batch(12)
    y = model(x).argmax(1)
    index = torch.arange(100, 112)
    method(model, x, y, index=index)
    shares = method.inner.radius_fractions(index, y)
    assert ((shares >= 0.1) & (shares <= 1)).all()
    assert len(shares.unique()) > 3
    again = hb.method("mma", THREAT)
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.inner.radius_fractions(index, y), shares)
    assert torch.equal(method.inner.radius_fractions(torch.tensor([5]), y[:1]), torch.tensor([0.1]))  # never seen


@pytest.mark.parametrize(("d_max", "found"), [(0.08, True), ("8/100", True), (0.055, False), (None, False)])
def test_mma_searches_and_pushes_to_a_d_max_of_its_own(d_max, found):
    model, x = linear(0.06), torch.full((1, 4), 0.5, dtype=torch.float64)
    y = torch.tensor([0])
    out = hb.method("mma", THREAT, d_max=d_max, bisections=40)(model, x, y)
    assert (out.forwards, out.backwards) == (53, 10)
    toward = torch.tensor([[-0.06, 0.06, -0.06, -0.06]], dtype=torch.float64)  # where the boundary lies, beyond ε = 0.05
    expected = x + toward if found else x
    torch.testing.assert_close(out.x_adv, expected, rtol=0, atol=1e-9)
    clean, pushed = (nn.functional.cross_entropy(model(z), y) for z in (x, expected))
    torch.testing.assert_close(out.loss, clean / 3 + (2 / 3 * pushed if found else 0), rtol=1e-8, atol=0)


def test_a_d_max_grows_with_epsilon_and_its_radii_are_parts_of_it():
    model, x, y = linear(0.03), torch.full((1, 4), 0.5, dtype=torch.float64), torch.tensor([0])
    method = hb.method("mma", THREAT, d_max=0.08, bisections=40)
    for scale, success in ((1.0, True), (0.3, False), (0.5, True)):  # within 0.08, 0.024 and 0.04
        out = method(model, x, y, index=torch.tensor([0]), eps_scale=scale)
        assert bool((out.x_adv != x).any()) == success
        assert float(method.inner.fractions[0]) == pytest.approx(min(0.03 / (0.08 * scale), 1.0), rel=1e-4)
    again = method.with_schedule(epochs=5).inner
    assert (again.d_max, len(again.fractions)) == (0.08, 0)
    assert method.to_dict()["d_max"] == 0.08


def test_a_d_max_that_is_no_radius_says_so():
    model, (x, y) = tiny_net(), tiny_batch()
    for threat, d_max, says in (
        (THREAT, 12.0, r"d_max = 12.0 is no radius here: eps = 12 is wider than the box \[0.0, 1.0\]; did you mean '12/255'"),
        (THREAT, -0.1, "d_max = -0.1 is no radius here: eps must be finite and not negative"),
        (hb.Linf([[[0.1]], [[0.2]], [[0.1]]]), 0.3, "d_max is one number, and .* has an ε of each feature"),
    ):
        with pytest.raises(hb.UserError, match=says):
            hb.method("mma", threat, d_max=d_max)(model, x, y)


def test_mma_objective_by_hand():
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    adv = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 3.0]])
    y = torch.zeros(3, dtype=torch.long)
    clean, at = (nn.functional.cross_entropy(z, y, reduction="none") for z in (logits, adv))
    terms = hb.objectives.mma(logits, adv, y)
    assert torch.allclose(terms.robust, 2 / 3 * torch.stack([at[0], torch.tensor(0.0), clean[2]]))
    assert torch.allclose(terms.regularizer, clean / 3)


def test_the_attack_grows_when_the_learning_rate_has_dropped():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.rand(9, 6, dtype=torch.double), torch.arange(9) % 3

    def by_hand(steps, eps):
        point = x
        for _ in range(steps):
            point = point.detach().requires_grad_()
            (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(point), y, reduction="sum"), point)
            point = (point + 0.05 / 4 * grad.sign()).clamp(x - eps, x + eps).clamp(0, 1).detach()
        return point

    strong = {"preset": "++", "start": "clean"}
    method = hb.method("rebat", THREAT, **strong).with_schedule(epochs=8, first_drop=4)
    later = method.inner.later_radius, method.inner.later_steps
    assert later == (
        10 / 8,
        12,
    )  # --stronger-epsilon 10, --stronger-attack-iters 12
    for epoch, steps, eps in ((0, 10, 0.05), (3, 10, 0.05), (4, 12, 0.0625), (7, 12, 0.0625)):
        out = method(model, x, y, epoch=epoch)
        torch.testing.assert_close(out.x_adv, by_hand(steps, eps), rtol=0, atol=1e-12)
        assert out.backwards == steps
    first = hb.method("rebat", THREAT, **strong).with_schedule(epochs=8, first_drop=0)  # a first call is checked for its reach
    assert float((first(model, x, y, epoch=0).x_adv - x).abs().max()) == pytest.approx(0.0625)
    plain = hb.method("at", THREAT, later_steps=3, start="clean").with_schedule(epochs=8, first_drop=4)
    torch.testing.assert_close(plain(model, x, y, epoch=4).x_adv, by_hand(3, 0.05), rtol=0, atol=1e-12)
    for settings in ({"later_radius": 0.0}, {"later_steps": 0}):
        with pytest.raises(hb.UserError, match="must be positive"):
            hb.method("at", THREAT, **settings)


def test_a_later_radius_goes_with_radii_of_the_classes():
    model, (x, y) = tiny_net(seed=3).double().eval(), tiny_batch(12, dtype=torch.float64)
    seen = {}
    for later in (None, 1.5):
        method = hb.method("cfa-at", THREAT, begin=0, later_radius=later, step_size="2*eps").with_schedule(8, first_drop=1)
        method.objective.means.values = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]  # robust accuracies
        x_adv = method(model, x, y, epoch=1).x_adv
        seen[later] = (x_adv - x).abs().flatten(1).amax(1)
    assert len(seen[None].unique()) > 1
    torch.testing.assert_close(seen[1.5], 1.5 * seen[None], rtol=1e-9, atol=0)


def test_lm_pgd_beats_pgd_step_for_step_and_counts_its_passes():
    model = tiny_net(seed=4).eval()
    x, _ = tiny_batch(64)
    y = model(x).argmax(1)
    threat = hb.Linf(0.02)
    ours = hb.attacks.lm_pgd(model, x, y, threat, steps=5, step_size="eps/10")
    plain = hb.attacks.pgd(model, x, y, threat, steps=5, step_size="eps/10")
    loss = [nn.functional.cross_entropy(found.logits, y) for found in (ours, plain)]
    assert loss[0] > loss[1]
    assert (ours.forwards, ours.backwards) == (5 * 6 + 1, 5)
    assert threat.contains(ours.x_adv, x).all()


def test_losses_by_hand():
    logits = torch.tensor([[1.0, 3.0, 0.0, 2.0], [4.0, 1.0, 0.0, 5.0]])
    y = torch.tensor([0, 0])
    assert torch.allclose(evade_loss(logits, y), torch.tensor([1.0, -4.0]))
    assert torch.allclose(soft_logit_margin(logits[:1], y[:1]), torch.tensor([3.0, 0.0, 2.0]).logsumexp(0) - 1)
    with pytest.raises(hb.UserError, match="at least 3 outputs"):
        evade_loss(logits[:, :2], y)


def test_recognising_an_adversarial_input_is_no_success_of_the_attack():
    class Suspicious(nn.Module):
        """Says "adversarial" to everything but the exact middle."""

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, x):
            off = (x - 0.5).abs().flatten(1).sum(1, keepdim=True)
            return torch.cat([self.w * torch.ones_like(off), 0 * off, 1e4 * off], 1)

    x, y = torch.full((3, 4), 0.5), torch.zeros(3, dtype=torch.long)
    assert hb.attacks.pgd(Suspicious(), x, y, THREAT, steps=3).success.all()
    assert not hb.attacks.pgd(Suspicious(), x, y, THREAT, steps=3, loss="evade").success.any()
    assert hb.attacks.apgd(Suspicious(), x, y, THREAT, steps=3).success.all()
    assert not hb.attacks.apgd(Suspicious(), x, y, THREAT, steps=3, loss="evade").success.any()


def test_free_training_carries_its_perturbation_and_its_gradient():
    method = hb.method("free-at", THREAT)
    model = tiny_net().train()
    x, y = tiny_batch()
    first = method(model, x, y)
    assert torch.equal(first.x_adv, x)
    first.loss.backward()
    second = method(model, x, y)
    assert torch.allclose(second.x_adv, THREAT.project(x + 0.05 * first.x_adv.grad.sign(), x))
    other = torch.rand_like(x)
    second.loss.backward()
    third = method(model, other, y)
    assert THREAT.contains(third.x_adv, other).all()
    assert not torch.equal(third.x_adv, other)
    again = hb.method("free-at", THREAT)
    again.load_state_dict(method.state_dict())
    third.loss.backward()
    again.inner._point.grad = third.x_adv.grad
    assert torch.equal(method(model, x, y).x_adv, again(model, x, y).x_adv)


def test_jitter_stays_inside_and_is_keyed_by_example():
    model = tiny_net(seed=3).eval()
    x, y = tiny_batch(8)
    plain = hb.attacks.friendly_pgd(model, x, y, THREAT, tau=9)
    shaken = hb.attacks.friendly_pgd(model, x, y, THREAT, tau=9, step_noise=0.01)
    assert not torch.equal(plain.x_adv, shaken.x_adv)
    assert THREAT.contains(shaken.x_adv, x).all()
    assert torch.equal(shaken.x_adv, hb.attacks.friendly_pgd(model, x, y, THREAT, tau=9, step_noise=0.01).x_adv)


def test_friendly_points_are_no_further_than_they_need_be():
    model = tiny_net(seed=3).eval()
    x, _ = tiny_batch(64)
    y = model(x).argmax(1)
    found = hb.attacks.friendly_pgd(model, x, y, THREAT, tau=0, start="clean")
    logits = model(found.x_adv)
    early = found.steps_taken < 10
    assert early.any()
    assert (logits.argmax(1) != y)[early].all()
    full = hb.attacks.pgd(model, x, y, THREAT, start="clean", return_last=True)
    assert nn.functional.cross_entropy(logits, y) < nn.functional.cross_entropy(full.logits, y)
