"""Certified training: bounds with gradients beside the certifier's, the formulas by hand, and what they are for."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hauberk as hb
from certification.test_bounds import LAYERS, Residual, inputs, network
from hauberk.attacks import frozen_model
from hauberk.certification.bounds.crown import interval_bound, lower_bound
from hauberk.certification.bounds.differentiable import _TAPES, Box, present_graph
from hauberk.certification.bounds.graph import propagate
from hauberk.certification.bounds.region import Region
from hauberk.certification.bounds.trace import trace
from hauberk.certification.training import IBP, SABR, CrownIBP, worst_case_margins
from hauberk.core.io import read_state
from hauberk.core.random import ExampleRng
from hauberk.core.step_context import StepContext
from hauberk.training.config import TrainConfig
from hauberk.training.published import BY_METHOD, resolve
from helpers import THREAT, Signalling, count_passes, easy_data, long_or, settings, tiny_batch, tiny_net

NAMES = ("ibp", "crown-ibp", "sabr")
# The certifier's intervals are a little wider, so sigmoids get other lines where they are narrow, or begin at 0 behind a ReLU.
BENT = {"sigmoid": 1e-5, "tanh": 1e-5, "difference": 1e-5, "conv-deep": 1e-5, "adaptive": 1e-2}


def box_of(threat, x):
    region = threat.around(x)
    return Box(region.lower, region.upper)


def differences(y, classes=5):
    return F.one_hot(y, classes).double()[:, None] - torch.eye(classes, dtype=torch.float64)


def certifier(net, x, y, threat, crown):
    with frozen_model(net) as model, torch.no_grad():
        graph, region, c = trace(model, x), Region(threat.around(x)), differences(y)
        bounds = propagate(graph, region.interval)
        return lower_bound(graph, bounds, region, graph.output, c) if crown else interval_bound(graph, bounds, c)


@pytest.mark.parametrize("crown", [0.0, 1.0])
@pytest.mark.parametrize("name", LAYERS)
def test_bounds_in_training_are_those_of_the_certifier(name, crown):
    for seed in range(long_or(2, 20)):
        net, x, y = network(name, seed).double(), inputs(seed).double(), torch.tensor([0, 3, 4])
        frozen = torch.zeros(2, 6, 6, dtype=torch.bool)
        frozen[0, :2] = True
        for threat in (hb.Linf(0.05), hb.Linf(torch.rand(2, 6, 6) * 0.3, frozen=frozen, monotone=torch.eye(6).long())):
            mine, theirs = worst_case_margins(net, x, box_of(threat, x), y, crown), certifier(net, x, y, threat, crown)
            scale, bent = theirs.abs().max(), BENT.get(name, 0) * crown
            assert (mine - theirs).abs().max() < (bent or 1e-8) * scale
            assert bent or (mine >= theirs - 1e-12 * scale).all()  # which are rounded outwards


@pytest.mark.parametrize("name", LAYERS)
def test_bounds_of_single_inputs_are_the_margins_and_have_their_gradients(name):
    """Batch normalisations in training mode take the statistics of the clean batch, and hand their gradients on."""
    net, x, y = network(name).double().train(), inputs(1, 4).double(), torch.tensor([0, 3, 4, 1])
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = [worst_case_margins(net, x, Box(x, x), y, share) for share in (0.0, 1.0)]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    logits = net(x)
    right = logits.gather(1, y[:, None]) - logits
    slopes = torch.rand_like(right)
    wanted = torch.autograd.grad((slopes * right).sum(), list(net.parameters()))
    for margins in found:
        torch.testing.assert_close(margins, right, rtol=1e-8, atol=1e-8)
        for mine, theirs in zip(torch.autograd.grad((slopes * margins).sum(), list(net.parameters())), wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["linear", "conv", "batch-norm", "avg-pool", "max-pool", "residual", "normalize", "round"])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_by_finite_differences(name, training):
    net, x, y = network(name).double().train(training), inputs(2).double(), torch.tensor([1, 3, 0])
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    threat, parameters = hb.Linf(0.03), list(net.parameters())
    slopes = torch.rand(3, 5, dtype=torch.float64)

    def value():
        return (slopes * worst_case_margins(net, x, box_of(threat, x), y, 0.4)).sum()

    grads = torch.autograd.grad(value(), parameters)
    generator = torch.Generator().manual_seed(0)
    ways = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    change = []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, way in zip(parameters, ways, strict=True):
                parameter.add_(sign * 1e-6 * way)
            change.append(value())
            for parameter, way in zip(parameters, ways, strict=True):
                parameter.sub_(sign * 1e-6 * way)
    slope = sum((grad * way).sum() for grad, way in zip(grads, ways, strict=True))
    torch.testing.assert_close((change[0] - change[1]) / 2e-6, slope, rtol=1e-4, atol=1e-6)


def by_hand(w1, b1, w2, b2, x, half, y):
    """Intervals of a network of two layers, one example and one number after the other."""
    rows = []
    w1, b1, w2, b2 = (value.detach() for value in (w1, b1, w2, b2))
    for example, reach, label in zip(x.tolist(), half.tolist(), y.tolist(), strict=True):
        ends = []
        for weights, bias in zip(w1.tolist(), b1.tolist(), strict=True):
            middle = sum(w * v for w, v in zip(weights, example, strict=True)) + bias
            radius = sum(abs(w) * r for w, r in zip(weights, reach, strict=True))
            ends.append((max(middle - radius, 0.0), max(middle + radius, 0.0)))
        row = []
        for k in range(len(b2)):
            normal = (w2[label] - w2[k]).tolist()
            low = sum(n * (end[0] if n > 0 else end[1]) for n, end in zip(normal, ends, strict=True))
            row.append(low + float(b2[label] - b2[k]))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def two_layers():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    return net, (net[0].weight, net[0].bias, net[2].weight, net[2].bias)


def test_the_loss_of_two_layers_by_hand():
    net, layers = two_layers()
    x, y = torch.rand(7, 4, dtype=torch.float64) * 0.6 + 0.2, torch.arange(7) % 3
    threat, scale = hb.Linf([0.1, 0.05, 0.2, 0.0]), 0.25
    half = scale * torch.tensor([0.1, 0.05, 0.2, 0.0], dtype=torch.float64).expand(7, 4)
    out = hb.method("ibp", threat, kappa=0.4)(net, x, y, eps_scale=scale)
    margins = by_hand(*layers, x, half, y)
    kappa = 1 - scale * 0.6
    wanted = (1 - kappa) * F.cross_entropy(-margins, y) + kappa * F.cross_entropy(net(x), y)
    torch.testing.assert_close(out.loss, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(-out.logits_adv, margins, rtol=1e-12, atol=1e-12)
    # SABR: the small box around x', which stays inside the set.
    x_adv = x + 0.9 * scale * threat.eps * torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    context = StepContext(net, x, y, threat.scaled(scale), None, logits=net(x), x_adv=x_adv, eps_scale=1.0)
    terms = SABR(subselection_ratio=0.5)(context)
    low, high = torch.maximum(x_adv - half / 2, x - half), torch.minimum(x_adv + half / 2, x + half)
    margins = by_hand(*layers, (low + high) / 2, (high - low) / 2, y)
    torch.testing.assert_close(terms.robust, F.cross_entropy(-margins, y, reduction="none"), rtol=1e-12, atol=1e-12)
    assert not terms.regularizer.any()


def test_crown_ibp_gives_way_to_intervals_while_eps_grows():
    net, _ = two_layers()
    x, y = torch.rand(7, 4, dtype=torch.float64), torch.arange(7) % 3
    threat = hb.Linf(0.2)
    for scale in (0.0, 0.3, 1.0):
        box = box_of(threat.scaled(scale), x)
        crown, interval = (worst_case_margins(net, x, box, y, share) for share in (1.0, 0.0))
        out = hb.method("crown-ibp", threat)(net, x, y, eps_scale=scale)
        torch.testing.assert_close(-out.logits_adv, (1 - scale) * crown + scale * interval)
    assert (crown > interval + 1e-3).any()


@pytest.mark.parametrize("name", NAMES)
def test_equal_weights_change_nothing_and_others_reweight_the_bounds(name):
    x, y = tiny_batch(12)
    losses = []
    for more in ({}, {"measure": "pm-adv", "slope": 0.0, "burn_in": 0}, {"measure": "pm-adv", "slope": 5.0, "burn_in": 0}):
        model = tiny_net().train()
        out = hb.method(name, THREAT, **more)(model, x, y, epoch=0, eps_scale=0.5)
        out.loss.backward()
        losses.append((out, [p.grad.clone() for p in model.parameters()]))
    (plain, grads), (equal, same), (weighted, others) = losses
    assert torch.equal(plain.loss, equal.loss)
    assert all(map(torch.equal, grads, same))
    assert abs(float(weighted.weights.mean()) - 1) < 1e-5
    p = weighted.logits_adv.softmax(1)
    margin = p.gather(1, y[:, None])[:, 0] - p.scatter(1, y[:, None], -1).amax(1)
    assert torch.corrcoef(torch.stack([margin, weighted.weights]))[0, 1] < -0.5
    assert not torch.allclose(grads[0], others[0])


@pytest.mark.parametrize(("name", "forwards", "backwards"), [("ibp", 1, 0), ("crown-ibp", 1, 0), ("sabr", 9, 8)])
def test_a_step_makes_no_pass_of_the_model_too_many(name, forwards, backwards):
    model, (x, y) = tiny_net().train(), tiny_batch()
    method = hb.method(name, THREAT)
    method(model, x, y)  # watches the model once
    seen, before = count_passes(model), int(model[1].num_batches_tracked)
    out = method(model, x, y)
    assert seen == {"forwards": forwards, "backwards": backwards}
    assert (out.forwards, out.backwards) == (forwards, backwards)
    assert int(model[1].num_batches_tracked) - before == 1


def test_sabr_attacks_in_a_smaller_ball():
    x, y = tiny_batch(8)
    for ratio in (0.1, 0.4, 1.0):
        method = hb.method("sabr", hb.Linf(0.1), subselection_ratio=ratio)
        assert method.objective.subselection_ratio == method.inner.subselection_ratio == ratio
        reach = (method(tiny_net().train(), x, y).x_adv - x).abs().max()
        assert float(reach) == pytest.approx(0.1 * (1 - ratio), abs=1e-6)


def test_one_reading_serves_for_all_steps_and_the_weights_are_the_present_ones():
    model, (x, y) = tiny_net().eval(), tiny_batch()
    box = box_of(hb.Linf(0.02), x)
    for _ in range(2):
        worst_case_margins(model, x, box, y)
    assert len(_TAPES[model]) == 1
    with torch.no_grad():
        model[0].weight.mul_(-1.5)
        model[1].running_mean.add_(1)
        model[5].bias.normal_()
    fresh = tiny_net().eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(worst_case_margins(model, x, box, y), worst_case_margins(fresh, x, box, y))
    model.train()
    worst_case_margins(model, x, box, y)
    assert len(_TAPES[model]) == 2


def test_what_is_remembered_of_a_model_goes_with_it():
    model, (x, y) = tiny_net(), tiny_batch()
    worst_case_margins(model, x, box_of(THREAT, x), y)
    gone, count = weakref.ref(model), len(_TAPES)
    del model
    gc.collect()
    assert gone() is None
    assert len(_TAPES) < count


def test_eps_grows_where_nobody_says_otherwise():
    for name in ("ibp", "crown-ibp+awp", "sabr"):
        assert resolve("digits", "mlp", name).settings["eps_warmup"] == 0.5
        assert resolve("else", "mlp", name, settings={"eps_warmup": 0.2}).settings["eps_warmup"] == 0.2
    assert resolve("mnist", "small-cnn", "ibp").settings["eps_warmup"] == 0.3  # which the data set's own settings say
    assert "eps_warmup" not in resolve("digits", "mlp", "at").settings
    assert all(TrainConfig(**row.settings) and row.source for row in BY_METHOD.values())


def test_weights_that_are_computed_from_parameters_have_gradients():
    torch.manual_seed(0)
    norm = nn.utils.parametrizations.weight_norm
    net = nn.Sequential(norm(nn.Linear(4, 6)), nn.ReLU(), norm(nn.Linear(6, 3))).double()
    x, y = torch.rand(5, 4, dtype=torch.float64), torch.arange(5) % 3
    for _ in range(2):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.3)
        plain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
        for layer, other in zip(plain, net, strict=True):
            for name in ("weight", "bias") if isinstance(layer, nn.Linear) else ():
                setattr(layer, name, nn.Parameter(getattr(other, name).detach().clone()))
        box = box_of(hb.Linf(0.1), x)
        mine, theirs = (worst_case_margins(one, x, box, y) for one in (net, plain))
        torch.testing.assert_close(mine, theirs)
        grads = torch.autograd.grad(mine.sum(), list(net.parameters()))
        assert all(bool(grad.isfinite().all()) and bool(grad.any()) for grad in grads)


def test_a_box_without_width_has_finite_gradients():
    net, _ = two_layers()
    x, y = torch.zeros(3, 4, dtype=torch.float64), torch.arange(3)
    with torch.no_grad():
        net[0].bias.zero_()
    margins = worst_case_margins(net, x, Box(x, x), y, 0.5)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(margins.sum(), list(net.parameters()), allow_unused=True))


def test_what_cannot_be_bounded_is_said_in_one_line():
    x, y = tiny_batch()
    for threat in (hb.L2(0.5), hb.L1(2.0)):
        with pytest.raises(hb.UserError, match=r"is for L∞ \(hb.Linf\), not for L"):
            hb.method("ibp", threat)(tiny_net().train(), x, y)
    gelu = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.GELU(), nn.Linear(8, 5))
    with pytest.raises(hb.UserError, match=r"layer 2 \(GELU\) cannot be certified"):
        hb.method("ibp", THREAT)(gelu, x, y)
    with pytest.raises(hb.UserError, match=r"layer 4 \(Dropout\) cannot be certified"):
        hb.method("ibp", THREAT)(tiny_net(dropout=0.5).train(), x, y)
    with pytest.raises(hb.UserError, match="subselection_ratio must be above 0"):
        hb.method("sabr", THREAT, subselection_ratio=0.0)
    with pytest.raises(hb.UserError, match="kappa must be at most 1"):
        IBP(kappa=1.5)
    with pytest.raises(hb.UserError, match="give it an attack"):
        hb.Method(THREAT, objective=SABR())(tiny_net().train(), x, y)
    with pytest.raises(hb.UserError, match="attack counts its steps"):
        hb.method("ibp", THREAT, measure="kappa", burn_in=0)(tiny_net().train(), x, y)


def test_a_network_with_residual_sums_and_batch_norm_learns_to_be_certified():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Residual(block), nn.Flatten(), nn.Linear(144, 5))
    x, y = tiny_batch(64)
    method, threat = hb.method("ibp", hb.Linf(0.02)), hb.Linf(0.02)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for step in range(60):
        out = method(net.train(), x, y, eps_scale=min(1.0, step / 30))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    with frozen_model(net) as model, torch.no_grad():
        share = method.objective.certified(model, x, y, threat).float().mean()
    assert share > 0.5


def on_digits(digits, method, epochs):
    threat = hb.Linf(0.1)
    run = hb.train("mlp", digits["train"], method=method, threat=threat, epochs=epochs, lr=0.1, threads=1, quiet=True)
    return run, hb.certify(run.model, digits["test"], threat=threat, methods=["ibp", "crown-ibp"], n=200, quiet=True)


def test_digits_learnt_by_bounds_are_certified_and_those_by_attacks_are_not(digits):
    _, attacked = on_digits(digits, "at", 6)
    assert attacked.clean_accuracy > 0.9
    assert attacked.certified_accuracy < 0.2
    for name in ("ibp", "sabr"):
        run, found = on_digits(digits, name, 16)
        assert found.certified_accuracy > 0.5
        assert found.clean_accuracy > 0.85
        if name == "ibp":
            best = max(row["val_certified_accuracy"] for row in run.metrics)
            assert run.best["metrics"]["val_certified_accuracy"] == best > 0.5


def test_what_validation_calls_certified_is_what_the_certifier_does(digits):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    x, y = digits["test"].fetch(torch.arange(50))
    y = net(x).argmax(1)
    threat = hb.Linf(0.02)
    proved = hb.certify(net, (x, y), threat=threat, methods=["ibp"], quiet=True).certified
    assert 0 < int(proved.sum()) < 50
    assert torch.equal(IBP().certified(net, x, y, threat), torch.as_tensor(proved))


@pytest.mark.parametrize("name", ["ibp", "crown-ibp+awp", "sabr"])
def test_a_training_goes_on_exactly_after_a_stop(name, tmp_path):
    data = easy_data()

    def go(at, folder, resume=False):
        changes = settings(epochs=3, val_size=0, eps_warmup=0.5)
        method = hb.method(name, THREAT, **({"awp_warmup": 1} if "awp" in name else {}))
        return hb.train("small-cnn", Signalling(data, at), method=method, out=tmp_path / folder, resume=resume, **changes)

    go(0, "whole")
    whole = read_state(tmp_path / "whole" / "state.ckpt")[0]
    assert go(120, "stopped").interrupted
    go(0, "stopped", resume=True)
    state = read_state(tmp_path / "stopped" / "state.ckpt")[0]
    assert all(torch.equal(value, state["model"][key]) for key, value in whole["model"].items())


def test_a_table_with_frozen_and_one_way_columns():
    """The encoding's rounding to valid rows is bounded too, and what nobody can change has no width."""
    net = network("round").train()
    x, y = inputs(0, 6), torch.arange(6) % 5
    threat = hb.Linf(0.4, frozen=[0, 1, 2], monotone=torch.ones(2, 6, 6))
    out = hb.method("ibp", threat)(net, x, y)
    out.loss.backward()
    region = threat.around(x)
    for k in range(20):
        point = region.random(ExampleRng(k, torch.arange(6)))
        with torch.no_grad():
            logits = net(point)
        assert (logits.gather(1, y[:, None]) - logits >= -out.logits_adv - 1e-4).all()


def test_the_graph_of_a_model_in_its_own_dtype():
    net, x = network("conv"), inputs()
    graph = present_graph(net, x)
    assert graph.evaluate(x).dtype == torch.float32
    torch.testing.assert_close(graph.evaluate(x), net(x))
    objective = replace(CrownIBP(), kappa=0.2)
    assert objective.equation.endswith("κ falls from 1 to 0.2 while ε grows")
