import pytest
import torch
import torch.nn.functional as F

import hauberk as hb
from hauberk.core.random import ExampleRng
from helpers import tiny_batch, tiny_net

EPS = 8 / 255


def drawn(x, k=2.0, eps=EPS):
    """The noise by the draws of the library: uniform in ±kε, clipped to the box."""
    return (x + k * eps * (2 * ExampleRng(0, torch.arange(len(x))).uniform(x, 0) - 1)).clamp(0, 1)


@pytest.mark.parametrize(("k", "alpha"), [(2.0, "eps"), (1.0, "eps"), (0.0, "eps"), (2.0, "1.25*eps"), (2.0, 0.02)])
def test_a_point_is_the_noise_and_one_step_clipped_to_the_box_only(k, alpha):
    """As train.py of pdejorge/N-FGSM has it: --unif 2, --alpha 8 at --epsilon 8, --clip -1."""
    model, (x, y) = tiny_net().double().eval(), tiny_batch(8, dtype=torch.float64)
    method = hb.method("n-fgsm", hb.Linf(EPS), noise_magnitude=k, step_size=alpha)
    out = method(model, x, y, rng=ExampleRng(0, torch.arange(8)))
    start = drawn(x, k).requires_grad_()
    grad = torch.autograd.grad(F.cross_entropy(model(start), y, reduction="sum"), start)[0]
    size = {"eps": EPS, "1.25*eps": 1.25 * EPS}.get(alpha, alpha)
    expected = (start.detach() + size * grad.sign()).clamp(0, 1)
    assert torch.allclose(out.x_adv, expected, rtol=0, atol=1e-15)
    far = (out.x_adv - x).abs().max()
    assert far <= k * EPS + size + 1e-12
    assert bool(far > EPS * 1.01) == (k > 0 or size > EPS)
    assert (out.forwards, out.backwards) == (2, 1)


def test_defaults_are_those_of_the_public_code():
    method = hb.method("n-fgsm", hb.Linf(EPS))
    assert (method.inner.noise_magnitude, method.attack.steps, method.attack.step_size) == (2.0, 1, "eps")
    assert hb.method("n-fgsm", hb.Linf(EPS), preset="official").attack.mode == "train"


def test_frozen_and_one_way_features_and_their_own_eps_are_kept():
    model, (x, y) = tiny_net().eval(), tiny_batch(8)
    eps, frozen, ways = (torch.zeros(3, 8, 8) for _ in range(3))
    eps += torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.01
    frozen[0], ways[1], ways[2, :4] = 1, 1, -1
    threat = hb.Linf(eps, frozen=frozen.bool(), monotone=ways)
    for alpha in ("eps", 0.02, eps / 2):
        change = hb.method("n-fgsm", threat, step_size=alpha)(model, x, y).x_adv - x
        assert not change[:, 0].any()
        assert (change[:, 1] >= 0).all()
        assert (change[:, 2, :4] <= 0).all()
        assert ((change[:, 1:].abs() - 3 * eps[1:]).amax() <= 1e-6) or not isinstance(alpha, str)
        assert (change.abs() > eps + 1e-6).any()


@pytest.mark.parametrize("threat", [hb.L2(0.5), hb.L1(4.0)])
def test_in_other_norms_points_stay_within_their_reach(threat):
    model, (x, y) = tiny_net().eval(), tiny_batch(8)
    method = hb.method("n-fgsm", threat)
    out = method(model, x, y)
    wide = method.inner.reach(threat)
    assert float(wide.eps) == pytest.approx(3 * float(threat.eps))
    assert wide.contains(out.x_adv, x).all()
    assert not threat.contains(out.x_adv, x).all()


def test_while_eps_grows_all_of_it_does_and_what_leaves_its_reach_is_refused():
    model, (x, y) = tiny_net().eval(), tiny_batch(8)
    out = hb.method("n-fgsm", hb.Linf(EPS))(model, x, y, eps_scale=0.5)
    assert EPS < float((out.x_adv - x).abs().max()) <= 1.5 * EPS + 1e-6
    assert torch.equal(hb.method("n-fgsm", hb.Linf(EPS))(model, x, y, eps_scale=0.0).x_adv, x)
    with pytest.raises(hb.UserError, match="noise_magnitude must not be negative"):
        hb.method("n-fgsm", hb.Linf(EPS), noise_magnitude=-1.0)

    def strays(context):
        return (context.x + 0.5).clamp(0, 1)

    strays.reach = lambda threat: threat.scaled(3)
    with pytest.raises(hb.UserError, match="left the threat model"):
        hb.method("at", hb.Linf(EPS), attack=strays)(model, x, y)
    strays.reach = lambda threat: threat.scaled(20)
    assert hb.method("at", hb.Linf(EPS), attack=strays)(model, x, y).x_adv is not None
