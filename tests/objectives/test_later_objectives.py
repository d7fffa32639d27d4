"""Objectives after MART: each against its formula in float64, what is detached, and what is remembered."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import hauberk as hb
from hauberk.core.class_means import ClassMeans
from hauberk.core.distributed import World
from hauberk.core.random import ExampleRng
from hauberk.core.step_context import StepContext
from helpers import count_passes, losses_by_hand, tiny_batch, tiny_net

THREAT = hb.Linf("8/255")
LATER = ["arow", "score", "ikl", "gkl", "sovr", "tsovr"]


def logits(n=10, classes=4, scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clean, adv = (scale * torch.randn(n, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return clean, adv, torch.randint(classes, (n,), generator=generator)


def ce(z, y):
    return F.cross_entropy(z, y, reduction="none")


def test_arow_by_its_equation():
    z, a, y = logits()
    p, q, rows = z.softmax(1), a.softmax(1), torch.arange(len(y))
    kl = (p * (p.log() - q.log())).sum(1)
    found = hb.objectives.arow(z, a, y, beta=3.0)
    assert torch.allclose(found.robust, 3 * kl * (1 - q[rows, y]))
    assert torch.allclose(found.regularizer, F.cross_entropy(z, y, reduction="none", label_smoothing=0.2))
    # The code's sum of the two parts of its label smoothing, and its 1e-12.
    code = (F.kl_div((a.softmax(1) + 1e-12).log(), p, reduction="none").sum(1) * (1 - q[rows, y])) * 3
    official = hb.objectives.arow(z, a, y, beta=3.0, preset="official")
    assert torch.allclose(official.robust, code, rtol=1e-13)
    assert torch.allclose(official.regularizer, 0.8 * ce(z, y) - 0.2 * z.log_softmax(1).mean(1))
    far = torch.tensor([[0.0, 60.0, 0.0]], dtype=torch.float64)  # p underflows for the code's constant only
    gap = hb.objectives.arow(-far, far, y[:1] * 0), hb.objectives.arow(-far, far, y[:1] * 0, preset="official")
    assert float(gap[0].robust) > float(gap[1].robust)


def test_score_by_its_equation():
    z, a, y = logits()
    p, q, t = z.softmax(1), a.softmax(1), F.one_hot(y, 4).double()
    apart, miss = (p - q).square().sum(1), (p - t).square().sum(1)
    found = hb.objectives.score(z, a, y, beta=4.0, clip=0.0)
    assert torch.allclose(found.robust, 4 * apart)
    assert torch.allclose(found.regularizer, miss)
    bound = torch.dist(torch.tensor([0.7, 0.1, 0.1, 0.1]), torch.tensor([1.0, 0.0, 0.0, 0.0])).double() ** 2
    z[0], a[0], y[0] = torch.tensor([9.0, 0, 0, 0]), torch.tensor([8.0, 0, 0, 0]), 0  # as good as learned
    found = hb.objectives.score(z, a, y, beta=6.0, clip=0.3)
    p, q, t = z.softmax(1), a.softmax(1), F.one_hot(y, 4).double()
    whole = F.relu((p - t).square().sum(1) + 6 * (p - q).square().sum(1) - bound)
    assert torch.allclose(found.robust + found.regularizer, whole, atol=1e-7)
    assert float(whole[0]) == float(found.robust[0]) == float(found.regularizer[0]) == 0


def wmse(z, a, s):
    """As the public code has it: all pairs of classes."""
    d, e = z[:, :, None] - z[:, None, :], a[:, :, None] - a[:, None, :]
    return 0.25 * ((d - e).square() * (s[:, :, None] * s[:, None, :])).sum((1, 2))


def test_ikl_and_gkl_by_their_equations():
    z, a, y = logits()
    s = logits(seed=3)[0].softmax(1)
    soft = -(z.softmax(1) * a.log_softmax(1)).sum(1)
    found = hb.objectives.ikl(z, a, y, prior=s)
    assert torch.allclose(found.robust, 20 * wmse(z, a, s) + 4 * soft)
    assert torch.allclose(found.regularizer, ce(z, y))
    assert torch.allclose(hb.objectives.ikl(z, a, y).robust, 20 * wmse(z, a, torch.full_like(s, 0.25)) + 4 * soft)
    w = s.pow(0.2)
    pairs = (w[:, :, None] * w[:, None, :]).sum()
    found = hb.objectives.gkl(z, a, y, prior=s, beta=10.0, alpha=3.0)
    assert torch.allclose(found.robust.sum() / 10, 10 * wmse(z, a, w).sum() / pairs + 3 * soft.mean())
    assert torch.allclose(hb.objectives.gkl(z, a, y).robust, hb.objectives.gkl(z, a, y, prior_exponent=3.0).robust)


@pytest.mark.parametrize("name", ["ikl", "gkl"])
def test_what_of_ikl_is_detached(name):
    """With β 0 no gradient reaches the clean logits but by cross-entropy; with α 0 it reaches both, with opposite signs."""
    z, a, y = logits()
    z.requires_grad_(), a.requires_grad_()
    function = getattr(hb.objectives, name)
    grads = torch.autograd.grad(function(z, a, y, beta=0.0).robust.sum(), (z, a), allow_unused=True)
    assert grads[0] is None or not grads[0].any()
    assert torch.allclose(grads[1], 4 * (a.softmax(1) - z.softmax(1)))
    grads = torch.autograd.grad(function(z, a, y, alpha=0.0).robust.sum(), (z, a))
    assert torch.allclose(grads[0], -grads[1])
    assert grads[0].any()


def test_the_gradient_of_ikl_is_that_of_kl_where_its_paper_says_so():
    """DKL: with s the prediction of the example itself, α = β = 1, KL(p‖p') has the same gradient to both logits."""
    z, a, y = logits()
    z.requires_grad_(), a.requires_grad_()
    p = z.softmax(1)
    kl = (p * (p.log() - a.log_softmax(1))).sum()
    wanted = torch.autograd.grad(kl, (z, a))
    # The half of wMSE to the clean logits alone, the rest to the adversarial ones alone.
    half = hb.objectives.ikl(z, a.detach(), y, beta=1.0, alpha=0.0, prior=z.softmax(1)).robust.sum()
    rest = hb.objectives.ikl(z.detach(), a, y, beta=0.0, alpha=1.0).robust.sum()
    assert torch.allclose(torch.autograd.grad(half, z)[0], wanted[0])
    assert torch.allclose(torch.autograd.grad(rest, a)[0], wanted[1])


def test_sovr_by_its_equation():
    z, a, y = logits()
    margin = hb.attacks.logit_margin(a, y)
    small = margin <= margin.sort().values[3]  # 40 % of 10
    own = F.one_hot(y, 4).bool()
    ovr = -torch.where(own, a.sigmoid().log(), (-a).sigmoid().log()).sum(1)
    found = hb.objectives.sovr(None, a, y)
    assert torch.allclose(found.robust, torch.where(small, 0.4 * ovr, ce(a, y)))
    assert not found.regularizer.any()
    assert torch.allclose(hb.objectives.sovr(None, a, y, share=0.0).robust, ce(a, y))
    assert torch.allclose(hb.objectives.sovr(None, a, y, share=1.0, ovr_weight=1.0).robust, ovr)
    margin = hb.attacks.logit_margin(z, y)
    small = margin <= margin.sort().values[3]
    ovr = -torch.where(own, z.sigmoid().log(), (-z).sigmoid().log()).sum(1)
    found, trades = hb.objectives.tsovr(z, a, y), hb.objectives.trades(z, a, y)
    assert torch.allclose(found.robust, trades.robust)
    assert torch.allclose(found.regularizer, torch.where(small, 0.4 * ovr, ce(z, y)))
    far = torch.tensor([[400.0, -400.0], [-400.0, 400.0]], requires_grad=True)
    terms = hb.objectives.sovr(None, far, torch.tensor([0, 0]), share=1.0)
    assert torch.autograd.grad(terms.robust.sum(), far)[0].isfinite().all()


def test_lrat_by_its_equation_and_in_a_step():
    z, a, y = logits()
    g = torch.linspace(0, 1.2, 10, dtype=torch.float64)
    found = hb.objectives.lrat(z, a, y, share=g)
    assert torch.allclose(found.robust, g * ce(a, y))
    assert torch.allclose(found.regularizer, (1 - g).clamp(0) * ce(z, y))
    model, (x, y) = tiny_net(seed=3).eval(), tiny_batch(16)
    method, rng = hb.method("lrat", THREAT), ExampleRng(0, torch.arange(16))
    out = method(model, x, y, rng=rng)
    kappa = method.attack(model, x, y, THREAT, seed=rng).kappa
    assert len(set(kappa.tolist())) > 1
    g = (1 + torch.tanh(-1 + 5 * (1 - 2 * kappa / 10))) / 2
    assert torch.allclose(out.loss, (g * ce(out.logits_adv, y) + (1 - g) * ce(out.logits, y)).mean())
    assert (out.forwards, out.backwards) == (12, 10)
    assert torch.allclose(
        hb.method("lrat", THREAT, measure="kappa", burn_in=0)(model, x, y, rng=rng).weights.mean(), torch.ones(())
    )
    with pytest.raises(hb.UserError, match="counts its steps"):
        hb.method("lrat", THREAT, attack=lambda context: context.x)(model, x, y)
    with pytest.raises(hb.UserError, match="share"):
        hb.objectives.lrat(z, a, torch.arange(10) % 4, share=g[:3])


@pytest.mark.parametrize("name", LATER)
def test_targets_that_are_the_labels_change_nothing(name):
    z, a, y = logits()
    function, t = getattr(hb.objectives, name), F.one_hot(y, 4).double()
    for one, other in zip(function(z, a, y), function(z, a, y, targets=t), strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    mixed = function(z, a, y, targets=0.5 * t + 0.125)
    assert not torch.allclose(mixed.robust + mixed.regularizer, sum(function(z, a, y)))
    model, (x, labels) = tiny_net(), tiny_batch()
    assert hb.method(name, THREAT, label_smoothing=0.1)(model, x, labels).loss.isfinite()


@pytest.mark.parametrize("name", LATER)
def test_gradients_are_those_of_the_value(name):
    z, a, y = logits(4)
    z.requires_grad_(), a.requires_grad_()
    extra = {"chosen": torch.tensor([True, False, True, False])} if "sovr" in name else {}
    extra |= {"alpha": 0.0} if "kl" in name else {}  # its target is detached

    def loss(one, other):
        terms = getattr(hb.objectives, name)(one, other, y, **extra)
        return terms.robust + terms.regularizer

    assert torch.autograd.gradcheck(loss, (z, a))


@pytest.mark.parametrize("name", LATER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_stay_finite_where_probabilities_underflow(name, dtype):
    clean = torch.tensor([[120.0, 0.0, 0.0], [0.0, 200.0, 0.0]], dtype=dtype, requires_grad=True)
    adv = torch.tensor([[0.0, 150.0, 0.0], [0.0, 0.0, 300.0]], dtype=dtype, requires_grad=True)
    terms = getattr(hb.objectives, name)(clean, adv, torch.tensor([0, 1]))
    assert terms.robust.dtype == torch.float32
    for grad in torch.autograd.grad((terms.robust + terms.regularizer).sum(), (clean, adv), allow_unused=True):
        assert grad is None or grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "forwards"), [("arow", 13), ("score", 13), ("ikl", 13), ("gkl", 13), ("sovr", 11), ("tsovr", 13)]
)
def test_passes(name, forwards):
    model = tiny_net().train()
    seen = count_passes(model)
    out = hb.method(name, THREAT)(model, *tiny_batch())
    assert (out.forwards, out.backwards) == (forwards, 10)
    assert seen == {"forwards": forwards, "backwards": 10}
    out = hb.method(name + "+awp", THREAT)(model, *tiny_batch())
    assert out.forwards == forwards + (1 if name == "sovr" else 2)


def test_the_attack_of_score_maximises_the_squared_distance():
    model, (x, y) = tiny_net(seed=3).double().eval(), tiny_batch(16, dtype=torch.float64)
    found = hb.attacks.pgd(model, x, y, THREAT, start="normal", loss="lse", seed=1, return_last=True)
    p = model(x).softmax(1).detach()
    point = (x + 0.001 * ExampleRng(1, torch.arange(16)).normal(x, 0)).clamp(0, 1)
    for _ in range(10):
        point = point.detach().requires_grad_()
        value = (model(point).softmax(1) - p).square().sum(1)
        (grad,) = torch.autograd.grad(value.sum(), point)
        point = torch.minimum(torch.maximum(point + 2 / 255 * grad.sign(), x - 8 / 255), x + 8 / 255).clamp(0, 1)
    assert torch.allclose(found.x_adv, point.detach(), atol=1e-9)


class Seen:
    """What the loss is handed, step after step, without a network."""

    def __init__(self, n=12, classes=3):
        self.y, self.classes = torch.arange(n) % classes, classes
        self.z = torch.randn(n, classes, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def context(self, epoch, rows=slice(None), z=None, **more):
        x = torch.zeros(len(self.y[rows]), 1)
        z = self.z[rows] if z is None else z
        return StepContext(None, x, self.y[rows], THREAT, None, epoch, logits=z, logits_adv=z + 1, **more)


def test_class_means_are_of_the_last_epoch_and_count_each_step_once():
    seen, means = Seen(), ClassMeans()
    assert torch.equal(means.of(seen.y, 3, torch.float64), torch.full((12, 3), 1 / 3, dtype=torch.float64))
    for epoch in range(3):
        for rows in (slice(0, 5), slice(5, 12)):
            context = seen.context(epoch, rows)
            means.begin_step(context)
            means.note(context, torch.zeros(len(context.y), 3), 3)  # a look that another follows, as with weight perturbation
            means.note(context, (seen.z[rows] + epoch).softmax(1) * (epoch + 1), 3)
            expected = None
            if epoch:
                expected = torch.stack([(seen.z[seen.y == c].softmax(1) * epoch).mean(0) for c in range(3)])
                assert torch.allclose(means.values, expected)
                assert torch.allclose(means.of(seen.y, 3, torch.float64), expected[seen.y])
            assert (means.values is None) == (epoch == 0)


def test_a_class_without_examples_keeps_what_it_had():
    seen, means = Seen(), ClassMeans()
    for epoch, rows in enumerate((slice(0, 2), slice(0, 12), slice(0, 1), slice(0, 1))):
        context = seen.context(epoch, rows)
        means.begin_step(context)
        means.note(context, context.logits.softmax(1), 3)
        if epoch == 1:
            assert torch.allclose(means.values[2], torch.full((3,), 1 / 3, dtype=torch.float64))
            assert torch.allclose(means.values[1], seen.z[1].softmax(0))
    assert torch.allclose(means.values[2], seen.z[2::3].softmax(1).mean(0))  # of epoch 1, still


def test_what_is_noted_in_several_processes_is_summed():
    class Two(World):
        def sum(self, value):
            return value + 10

    seen, means = Seen(), ClassMeans()
    context = seen.context(0, world=Two(0, 2))
    means.note(context, seen.z, 3)
    means.begin_step(seen.context(1))
    sums = torch.stack([seen.z[seen.y == c].sum(0) for c in range(3)])
    assert torch.allclose(means.values, (sums + 10) / 14)


@pytest.mark.parametrize("name", ["ikl", "gkl"])
def test_priors_of_a_training_are_those_of_the_last_epoch(name):
    seen, objective = Seen(), hb.method(name, THREAT).objective
    objective.before_step(seen.context(0))
    first = objective(seen.context(0))
    function = getattr(hb.objectives, name)
    assert torch.allclose(first.robust, function(seen.z, seen.z + 1, seen.y).robust)
    other = seen.z.flip(0)
    context = seen.context(1)
    context.logits_adv = other
    objective.before_step(context)
    p = (seen.z / objective.prior_temperature).softmax(1)
    prior = torch.stack([p[seen.y == c].mean(0) for c in range(3)])[seen.y]
    assert torch.allclose(objective(context).robust, function(seen.z, other, seen.y, prior=prior).robust)


@pytest.mark.parametrize("name", ["ikl", "gkl+awp"])
def test_a_state_goes_on_exactly(name):
    """At any step, within an epoch and at its end; and a method for another training remembers nothing."""
    x, y = tiny_batch(16)

    def steps(method, model, of):
        return losses_by_hand(method, model, x, y, of, 3)

    def new():
        return hb.method(name, THREAT, **({"awp_warmup": 1} if "awp" in name else {})).with_schedule(epochs=5)

    whole = steps(new(), tiny_net(), range(9))
    for stop in (2, 3, 4, 6):
        method, model = new(), tiny_net()
        begun = steps(method, model, range(stop))
        other, copied = new(), tiny_net()
        other.load_state_dict(method.state_dict())
        copied.load_state_dict(model.state_dict())
        assert torch.equal(torch.cat([begun, steps(other, copied, range(stop, 9))]), whole)
        assert torch.equal(steps(method.with_schedule(epochs=5), tiny_net(), range(4)), whole[:4])
    plain = hb.objectives.ikl if name == "ikl" else hb.objectives.gkl
    model, method = tiny_net(), new()
    out = method(model, x, y, epoch=0, rng=ExampleRng(0, torch.arange(16), stage=0))
    assert torch.allclose(out.loss, sum(plain(out.logits, out.logits_adv, y)).mean())


def test_sovr_switches_by_the_margins_of_the_whole_batch():
    _, a, y = logits(10)
    margin = hb.attacks.logit_margin(a, y)

    class Two(World):
        def all_gather_rows(self, mine, sizes):
            assert torch.equal(mine, margin[3:])
            return margin

    context = StepContext(None, a[3:], y[3:], THREAT, None, logits_adv=a[3:], world=Two(1, 2), sizes=[3, 7])
    found = hb.objectives.SOVR()(context)
    assert torch.allclose(found.robust, hb.objectives.sovr(None, a, y).robust[3:])
    assert not torch.allclose(found.robust, hb.objectives.sovr(None, a[3:], y[3:]).robust)


def test_printed_constants():
    spec = hb.methods.get_method_spec
    assert (spec("arow").objective.beta, spec("arow").objective.smoothing) == (7.0, 0.2)  # --lamb 7 --ls 0.2
    assert (spec("ikl").objective.alpha, spec("ikl").objective.beta, spec("ikl").objective.prior_temperature) == (
        4.0,
        20.0,
        4.0,
    )
    assert (spec("gkl").objective.prior_exponent, spec("gkl").objective.prior_temperature) == (0.2, 1.0)
    assert hb.method("gkl", THREAT, preset="official").objective.prior_temperature == 4.0
    code = hb.method("ikl", THREAT, preset="official")
    assert (code.attack.steps, code.attack.step_size, code.attack.start) == (5, "eps/2", "normal-unprojected")
    assert (spec("score").objective.beta, spec("score").objective.clip) == (4.0, 0.0)  # with generated data: β 3 to 4
    clipped = hb.method("score", THREAT, preset="clipped")
    assert (clipped.objective.beta, clipped.objective.clip) == (6.0, 0.3)  # --TRADESlambda 6 --clip_loss 0.3
    assert hb.method("score", THREAT, preset="official").attack.mode == "train-frozen"
    assert (spec("sovr").objective.ovr_weight, spec("sovr").objective.share) == (0.4, 0.4)
    assert {name: spec(name + "+awp").awp.gamma for name in LATER} == dict.fromkeys(LATER, 0.005) | {"sovr": 0.01}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: hb.objectives.SOVR(share=1.5), "share"),
        (lambda: hb.objectives.Score(clip=1.0), "clip"),
        (lambda: hb.objectives.IKL(prior_temperature=0.0), "prior_temperature"),
        (lambda: hb.objectives.IKL(beta=-1.0), "beta"),
        (lambda: replace(hb.objectives.GKL(), prior_exponent="x"), "prior_exponent"),
        (lambda: hb.objectives.ikl(*logits(), prior=torch.ones(3, 4)), "prior"),
        (lambda: hb.objectives.sovr(*logits(), chosen=torch.ones(3)), "chosen"),
        (lambda: hb.objectives.arow(*logits(), smoothing=1.0), "smoothing"),
        (lambda: hb.objectives.arow(*logits(), preset="code"), "preset"),
    ],
)
def test_wrong_settings_say_why(make, says):
    with pytest.raises(hb.UserError, match=says):
        make()
