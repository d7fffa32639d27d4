"""CFA, DAFA and FRL: radii, trade-offs and weights of each class, from the last epoch."""

import math

import pytest
import torch
import torch.nn.functional as F

import hauberk as hb
from hauberk.core.random import ExampleRng
from hauberk.core.step_context import StepContext
from helpers import losses_by_hand, steps_by_hand, tiny_batch, tiny_net

THREAT = hb.Linf("8/255")


def reach(out, x):
    """How far each example was moved, in units of ε."""
    return (out.x_adv - x).abs().flatten(1).amax(1) * 255 / 8


def two_epochs(name, **more):
    """Two epochs of one step each: what the first has shown, and the second step with its method."""
    model, (x, y) = tiny_net(seed=3).eval(), tiny_batch(40)
    method = hb.method(name, THREAT, begin=1, **more)
    rng = ExampleRng(0, torch.arange(40))
    first = method(model, x, y, epoch=0, rng=rng)
    assert reach(first, x).max() <= 1 + 1e-5
    return first, method(model, x, y, epoch=1, rng=rng), method, x, y


def by_class(values, y):
    return torch.stack([values[y == c].mean(0) for c in range(5)])


def test_trade_off_of_cfa_by_its_equation():
    generator = torch.Generator().manual_seed(0)
    z, a = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    y, rho = torch.arange(6) % 4, torch.rand(6, generator=generator, dtype=torch.float64)
    kl = (z.softmax(1) * (z.log_softmax(1) - a.log_softmax(1))).sum(1)
    ce = F.cross_entropy(z, y, reduction="none")
    for given, odds in ((None, 3.0), (rho, (0.25 + rho) * 3.0)):
        for preset, scale in (("paper", 4.0), ("official", 1.0)):
            found = hb.objectives.cfa(z, a, y, beta=3.0, beta_lam=0.25, robust_accuracy=given, preset=preset)
            assert torch.allclose(found.robust, scale * odds / (1 + odds) * kl)
            assert torch.allclose(found.regularizer, scale * ce / (1 + odds))
    with pytest.raises(hb.UserError, match="robust_accuracy"):
        hb.objectives.cfa(z, a, y, robust_accuracy=rho[:3])


def test_weights_of_dafa_by_their_equation():
    """In a loop over pairs: what the paper says, and what its code does."""
    s = torch.rand(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    s = s / s.sum(1, keepdim=True)
    for preset in ("paper", "official"):
        wanted = torch.ones(5, dtype=torch.float64)
        for i in range(5):
            for j in set(range(5)) - {i}:
                if s[i, i] < s[j, j]:
                    wanted[i] += 0.7 * s[i, j] * s[j, j]
                else:
                    wanted[i] -= 0.7 * (s[i, j] * s[j, j] if preset == "official" else s[j, i] * s[i, i])
        assert torch.allclose(hb.objectives.dafa(s, 0.7, preset), wanted)
    assert float(hb.objectives.dafa(s).sum()) == pytest.approx(5.0)  # the paper's: what one loses another gains
    assert torch.equal(hb.objectives.dafa(torch.eye(3)), torch.ones(3))
    assert torch.equal(hb.objectives.dafa(s, 0.0), torch.ones(5, dtype=torch.float64))
    for wrong in (lambda: hb.objectives.dafa(s[:3]), lambda: hb.objectives.dafa(s, -1.0)):
        with pytest.raises(hb.UserError, match="similarity"):
            wrong()


@pytest.mark.parametrize("name", ["cfa-at", "cfa-trades"])
def test_a_step_of_cfa(name):
    first, out, _, x, y = two_epochs(name)
    rho = by_class((first.logits_adv.argmax(1) == y).float(), y)
    assert len(set(rho.tolist())) > 1
    radius = (0.5 + rho)[y]
    assert (reach(out, x) <= radius + 1e-4).all()
    assert torch.allclose(reach(out, x), radius, atol=1e-3)  # ten steps of ε/4 reach any of these
    if name == "cfa-at":
        wanted = F.cross_entropy(out.logits_adv, y)
    else:
        wanted = sum(hb.objectives.cfa(out.logits, out.logits_adv, y, robust_accuracy=rho[y])).mean()
    assert torch.allclose(out.loss, wanted)


@pytest.mark.parametrize("preset", ["paper", "official"])
@pytest.mark.parametrize("name", ["dafa-at", "dafa-trades"])
def test_a_step_of_dafa(name, preset):
    first, out, method, x, y = two_epochs(name, preset=preset)
    w = hb.objectives.dafa(by_class(first.logits_adv.softmax(1), y), preset=preset)
    assert torch.allclose(reach(out, x), w[y], atol=1e-3)
    ce = F.cross_entropy(out.logits_adv if name == "dafa-at" else out.logits, y, reduction="none")
    apart = 0.0 if name == "dafa-at" else hb.objectives.trades(out.logits, out.logits_adv, y).robust
    assert torch.allclose(out.loss, (w[y] * ce + apart).mean(), rtol=1e-4)
    # They are made once, and kept.
    again = method(tiny_net(seed=3).eval(), x, y, epoch=2, rng=ExampleRng(0, torch.arange(40)))
    assert torch.allclose(again.loss, out.loss, rtol=1e-5)


def test_terms_of_frl_by_their_equation():
    generator = torch.Generator().manual_seed(0)
    z, a = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    y, u, w = torch.arange(6) % 4, *torch.rand(2, 6, generator=generator, dtype=torch.float64)
    kl = (z.softmax(1) * (z.log_softmax(1) - a.log_softmax(1))).sum(1)
    found = hb.objectives.frl(z, a, y, beta=3.0, clean_weights=u, boundary_weights=w)
    assert torch.allclose(found.robust, 3.0 * w * kl)
    assert torch.allclose(found.regularizer, u * F.cross_entropy(z, y, reduction="none"))
    plain = hb.objectives.frl(z, a, y, beta=3.0)
    for ours, of_trades in zip(plain, hb.objectives.trades(z, a, y, beta=3.0), strict=True):
        assert torch.equal(ours, of_trades)
    with pytest.raises(hb.UserError, match=r"clean_weights must be \(6,\)"):
        hb.objectives.frl(z, a, y, clean_weights=u[:3])


def test_radii_of_frl_by_their_equation():
    """``clamp(exp(2 λ), 0.98, 2.5)`` of the public code, λ a running sum of what is beyond the bound."""
    exponents, wanted = torch.zeros(4, dtype=torch.float64), [0.0] * 4
    for error in ([0.1, 0.9, 0.3, 0.3], [0.2, 0.8, 0.35, 0.25]):
        radii, exponents = hb.objectives.frl_radii(torch.tensor(error, dtype=torch.float64), exponents, rate=1.5)
        wanted = [one + 1.5 * (e - 0.4 - 0.1) for one, e in zip(wanted, error, strict=True)]
        assert exponents.tolist() == pytest.approx(wanted)
        assert radii.tolist() == pytest.approx([min(max(math.exp(2 * one), 0.98), 2.5) for one in wanted])
    assert radii[1] == 2.5
    assert radii[0] == 0.98
    wrong = ({"exponents": exponents[:2]}, {"rate": -1.0}, {"limit": 0.5})
    for changed in wrong:
        with pytest.raises(hb.UserError, match="must"):
            hb.objectives.frl_radii(**{"error": exponents, "exponents": exponents, **changed})


def test_rows_of_frl_have_the_constants_of_its_code():
    rows = {form: hb.method(f"frl-{form}", THREAT).objective for form in ("rw", "rm", "rmrw")}
    found = {form: (one.clean_rate, one.boundary_rate, one.radius_rate, one.weight_limit) for form, one in rows.items()}
    assert found == {"rw": (0.05, 0.1, 0.0, 0.5), "rm": (0.05, 0.0, 0.1, 0.3), "rmrw": (0.05, 0.1, 0.1, 0.5)}
    assert {(one.beta, one.clean_bound, one.boundary_bound) for one in rows.values()} == {(1.0, 0.1, 0.1)}
    assert (rows["rm"].radius_limit, rows["rmrw"].radius_limit) == (2.5, 3.0)


@pytest.mark.parametrize("preset", ["paper", "official"])
@pytest.mark.parametrize("form", ["rw", "rm", "rmrw"])
def test_steps_of_frl_follow_both_errors_of_the_last_epoch(form, preset):
    """Epochs of one step each, in float64, by the public code's arithmetic; rates are halved with epochs 1 and 3 of 6."""
    x, y = tiny_batch(40, dtype=torch.float64)
    net = tiny_net(seed=3).double()
    rates = {"clean_rate": 1.0} | ({} if form == "rm" else {"boundary_rate": 1.5})
    rates |= {} if form == "rw" else {"radius_rate": 0.8}
    bounds = {"clean_bound": 0.0, "boundary_bound": 0.0}
    method = hb.method(f"frl-{form}", THREAT, preset=preset, **rates, **bounds).with_schedule(epochs=6)
    outs = steps_by_hand(method, net, x, y, range(4), 1)
    limit, most = {"rw": (0.5, 2.5), "rm": (0.3, 2.5), "rmrw": (0.5, 3.0)}[form]
    state, seen = [[0.0] * 5 for _ in range(3)], set()
    for epoch, out in enumerate(outs):
        if epoch:
            before = outs[epoch - 1]
            wrong = by_class((before.logits.argmax(1) != y).double(), y)
            beyond = by_class((before.logits_adv.argmax(1) != y).double(), y) - wrong
            halved = 0.5 ** ((epoch + 1) // 2) if preset == "official" else 1.0
            for which, (error, rate) in enumerate(((wrong, 1.0), (beyond, rates.get("boundary_rate", 0.0)))):
                raised = [
                    max(p + rate * halved * float(e - error.mean()), 0.0) for p, e in zip(state[which], error, strict=True)
                ]
                state[which] = [p * min(limit / max(sum(raised), 1e-9), 1.0) for p in raised]
            excess = beyond - beyond.mean()
            state[2] = [p + rates.get("radius_rate", 0.0) * float(e) for p, e in zip(state[2], excess, strict=True)]
        costs = [[1 / 5 + p - sum(of) / 5 for p in of] for of in state[:2]]
        u, w = (torch.tensor(cost, dtype=torch.float64)[y] for cost in costs)
        radius = torch.tensor([min(max(math.exp(2 * p), 0.98), most) for p in state[2]])[y]
        assert torch.allclose(reach(out, x).float(), radius, atol=1e-3)
        kl = (out.logits.softmax(1) * (out.logits.log_softmax(1) - out.logits_adv.log_softmax(1))).sum(1)
        terms = F.cross_entropy(out.logits, y, reduction="none") * u + kl * w
        assert torch.allclose(out.loss, terms.sum() / ((u + w).sum() if preset == "official" else 40 / 5))
        seen |= {tuple(one) for one in costs} | {tuple(radius.tolist())}
    assert len(seen) > 4


def test_steps_are_parts_of_what_the_papers_say():
    """CFA and FRL take steps of ε/4 whatever the radius is, DAFA steps in proportion to it."""
    model, (x, y) = tiny_net(seed=3).eval(), tiny_batch(20)
    for name, in_proportion in (("cfa-at", False), ("dafa-at", True), ("frl-rm", False)):
        method = hb.method(name, THREAT, steps=1, start="clean", loss="ce")
        context = StepContext(model, x, y, THREAT, ExampleRng(0, torch.arange(20)), sizes=[20])
        context.radii, context.largest_radius = torch.linspace(0.1, 1.5, 20), 1.5
        moved = (method.inner(context).x_adv - x).abs().flatten(1).amax(1) * 255 / 8
        expected = context.radii / 4 if in_proportion else context.radii.clamp(max=0.25)
        assert torch.allclose(moved, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["cfa-at", "cfa-trades", "dafa-at", "dafa-trades", "frl-rmrw"])
def test_before_they_begin_they_are_the_plain_method(name):
    x, y = tiny_batch(16)
    base = {"cfa-trades": "trades", "dafa-trades": "trades", "frl-rmrw": "trades"}.get(name, "at")
    start = {"dafa-at": {"start": "normal"}, "frl-rmrw": {"beta": 1.0}}.get(name, {})
    found = []
    for method in (hb.method(name, THREAT, begin=9), hb.method(base, THREAT, **start)):
        model = tiny_net()
        out = method(model, x, y, epoch=0, rng=ExampleRng(0, torch.arange(16)))
        out.loss.backward()
        found.append((out.loss.detach(), [p.grad for p in model.parameters()]))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-6)
    if name != "cfa-trades":  # whose terms are shares of one sum
        assert torch.equal(found[0][0], found[1][0])
        assert all(map(torch.equal, found[0][1], found[1][1]))


@pytest.mark.parametrize("name", ["cfa-trades", "dafa-at", "dafa-trades+awp", "frl-rmrw"])
def test_a_state_goes_on_exactly(name):
    x, y = tiny_batch(20)

    def steps(method, model, of):
        return losses_by_hand(method, model, x, y, of, 2)

    def new():
        begun = 0.25 if "frl" in name else 0.5
        return hb.method(name, THREAT, begin=begun, **({"awp_warmup": 1} if "awp" in name else {})).with_schedule(epochs=4)

    whole = steps(new(), tiny_net(), range(8))
    for stop in (2, 3, 4, 5):
        method, model = new(), tiny_net()
        begun = steps(method, model, range(stop))
        other, copied = new(), tiny_net()
        other.load_state_dict(method.state_dict())
        copied.load_state_dict(model.state_dict())
        assert torch.equal(torch.cat([begun, steps(other, copied, range(stop, 8))]), whole)
    assert torch.equal(steps(method.with_schedule(epochs=4), tiny_net(), range(8)), whole)


def test_they_say_what_is_missing():
    model, (x, y) = tiny_net(), tiny_batch(8)
    with pytest.warns(UserWarning, match="looks back at what it saw in the last epoch, and no epoch= is given"):
        hb.method("dafa-at", THREAT)(model, x, y)
    with pytest.warns(UserWarning, match="changes in the course of 100 epochs"):
        hb.method("cfa-at", THREAT)(model, x, y, epoch=0)
    with pytest.raises(hb.UserError, match="begin must not be negative"):
        hb.objectives.CFAAT(begin=-1)
    with pytest.raises(hb.UserError, match="preset"):
        hb.objectives.DAFAAT(preset="code")


class Halved:
    """A radius of one half around the examples of class 0, set by a part of one's own."""

    needs = frozenset({"adversarial"})

    def before_step(self, context):
        context.radii = torch.where(context.y == 0, 0.5, 1.0)

    def __call__(self, context):
        return hb.objectives.at(None, context.logits_adv, context.y)


@pytest.mark.parametrize("name", ["at", "fat", "mm-at", "rslad", "adaad", "saad", "max-at"])
def test_a_part_of_ones_own_gives_each_example_a_radius(name):
    model, (x, y) = tiny_net(seed=3).eval(), tiny_batch(20)
    teacher = {"teacher": tiny_net(seed=4)} if name in ("rslad", "adaad", "saad") else {}
    out = hb.method(name, THREAT, objective=Halved(), **teacher)(model, x, y)
    allowed = torch.where(y == 0, 0.5, 1.0)
    assert (reach(out, x) <= allowed + 1e-3).all()
    if name != "fat":  # which stops where an example is misclassified
        assert torch.allclose(reach(out, x)[y == 0].amax(), torch.tensor(0.5), atol=1e-3)
    if name == "at":
        assert torch.allclose(reach(out, x), allowed, atol=1e-3)


@pytest.mark.parametrize("name", ["mma", "free-at"])
def test_attacks_that_cannot_keep_to_a_radius_of_each_example_say_so(name):
    model, (x, y) = tiny_net(seed=3).eval(), tiny_batch(8)
    with pytest.raises(hb.UserError, match="a part of this method sets a radius of each example"):
        hb.method(name, THREAT, objective=Halved())(model, x, y, index=torch.arange(8))


def test_dafa_begins_with_epoch_70_of_the_110_of_its_code():
    for epoch, begun in ((69, False), (70, True)):
        method, model, (x, y) = hb.method("dafa-at", THREAT).with_schedule(110), tiny_net(), tiny_batch(40)
        for one in (epoch - 1, epoch):
            out = method(model, x, y, epoch=one, rng=ExampleRng(0, torch.arange(40)))
        assert bool((reach(out, x) > 1.01).any()) == begun


@pytest.mark.parametrize("name", ["cfa-at", "cfa-trades"])
def test_cfa_begins_with_epoch_10_of_200_at_half_of_each_share(name):
    method = hb.method(name, THREAT)
    assert method.objective.radius_lam == 0.5
    assert getattr(method.objective, "beta_lam", 0.5) == 0.5  # of the trade-off, which TRADES alone has
    for epoch, begun in ((9, False), (10, True)):
        method, model, (x, y) = hb.method(name, THREAT).with_schedule(200), tiny_net(), tiny_batch(40)
        for one in (epoch - 1, epoch):
            out = method(model, x, y, epoch=one, rng=ExampleRng(0, torch.arange(40)))
        assert (len(reach(out, x).mul(100).round().unique()) > 1) == begun
