"""Bounds of every layer against sampling, against each other, and by hand."""

import copy
import ctypes

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hauberk as hb
from hauberk.attacks import frozen_model
from hauberk.certification.bounds import crown
from hauberk.certification.bounds.crown import (
    both_bounds,
    crown_bounds,
    interval_bound,
    interval_bounds,
    lower_bound,
)
from hauberk.certification.bounds.graph import propagate
from hauberk.certification.bounds.optimised import optimised_bound
from hauberk.certification.bounds.region import Region
from hauberk.certification.bounds.trace import trace
from hauberk.models import Normalize, StraightThroughRound
from helpers import long_or

THREATS = {
    "Linf": hb.Linf(0.05),
    "L2": hb.L2(0.4),
    "L1": hb.L1(1.5),
    "wide": hb.Linf(0.8),
    "L2-wide": hb.L2(3.0),
    "L1-wide": hb.L1(20.0),
}


class Residual(nn.Module):
    def __init__(self, inner, function=lambda x, y: x + y):
        super().__init__()
        self.inner, self.function = inner, function

    def forward(self, x):
        return self.function(x, self.inner(x))


class Of(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def conv(*args, **options):
    return nn.Conv2d(*args, **options)


def in_place_sum(x, y):
    y += x
    return y


# Each for inputs (2, 6, 6); a linear head of five classes is put behind.
LAYERS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(inplace=True)),
    "conv": lambda: nn.Sequential(conv(2, 4, 3, padding=1), nn.ReLU(), conv(4, 3, 3, stride=2), nn.ReLU()),
    "conv-options": lambda: nn.Sequential(
        conv(2, 4, 3, padding=2, dilation=2, groups=2, bias=False),
        nn.ReLU(),
        conv(4, 4, (2, 3), stride=(1, 2), groups=4),
        nn.ReLU(),
    ),
    "conv-deep": lambda: nn.Sequential(
        conv(2, 3, 3, padding=1),
        nn.ReLU(),
        conv(3, 3, 2),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        conv(3, 3, 3, padding=1),
        nn.Tanh(),
        conv(3, 2, 3),
        nn.ReLU(),
    ),
    "conv1d": lambda: nn.Sequential(
        Of(lambda x: x.flatten(2)), nn.Conv1d(2, 3, 5, stride=2), nn.BatchNorm1d(3), nn.ReLU(), nn.MaxPool1d(3), nn.AvgPool1d(2)
    ),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), nn.ReLU()),
    "batch-norm": lambda: nn.Sequential(
        conv(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU()
    ),
    "leaky": lambda: nn.Sequential(
        conv(2, 3, 3), nn.LeakyReLU(0.1), conv(3, 3, 3), Of(lambda x: F.leaky_relu(x, 0.3, inplace=True))
    ),
    "sigmoid": lambda: nn.Sequential(conv(2, 3, 3), nn.Sigmoid(), conv(3, 3, 3), nn.Sigmoid()),
    "tanh": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.Tanh(), nn.Linear(8, 8), Of(torch.tanh)),
    "max-pool": lambda: nn.Sequential(
        conv(2, 3, 3, padding=1), nn.MaxPool2d(3, 2, 1), conv(3, 3, 2), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)
    ),
    "avg-pool": lambda: nn.Sequential(conv(2, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
    "adaptive": lambda: nn.Sequential(conv(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Sigmoid()),
    "mean": lambda: nn.Sequential(conv(2, 4, 3), nn.ReLU(), Of(lambda x: x.mean((2, 3)) + x.sum(dim=(-1, -2)))),
    "residual": lambda: nn.Sequential(
        Residual(nn.Sequential(conv(2, 2, 3, padding=1), nn.ReLU(), conv(2, 2, 3, padding=1))), nn.ReLU()
    ),
    "residual-in-place": lambda: nn.Sequential(
        conv(2, 2, 3), nn.ReLU(), Residual(nn.Sequential(conv(2, 2, 1)), in_place_sum), nn.ReLU(True)
    ),
    "difference": lambda: nn.Sequential(Residual(nn.Sequential(conv(2, 2, 1), nn.Tanh()), lambda x, y: 2 - (x - y) / 3)),
    "cat": lambda: nn.Sequential(
        Residual(nn.Sequential(conv(2, 3, 1), nn.ReLU()), lambda x, y: torch.cat([y, torch.ones_like(x), x * 0.5], 1)),
        conv(7, 2, 3),
    ),
    "normalize": lambda: nn.Sequential(
        Normalize((0.4, 0.5), (0.2, 0.3)), conv(2, 3, 3), nn.ReLU(), nn.Dropout(0.5), nn.Identity()
    ),
    "slices": lambda: nn.Sequential(
        Of(lambda x: torch.cat([x[:, :1, 1:5], -x[:, 1:, ::2][:, :, [0, 2, 1, 1]]], 2)),
        nn.Flatten(),
        nn.Linear(48, 7),
        nn.ReLU(),
        Of(lambda x: x[:, 2:6] + x[..., 1:5]),
    ),
    "moves": lambda: nn.Sequential(
        Of(lambda x: x.permute(0, 2, 3, 1)),
        nn.Linear(2, 3),
        nn.ReLU(),
        Of(lambda x: x.transpose(1, 3).reshape(len(x), -1)),
        nn.Linear(108, 6),
        Of(lambda x: torch.clamp(x, min=0).unsqueeze(2).squeeze(-1)),
    ),
    "pad": lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), conv(2, 2, 3), Of(lambda x: torch.relu(x.view(x.size(0), -1)))),
    "round": lambda: nn.Sequential(
        nn.Flatten(), Of(lambda x: x * 3), StraightThroughRound([0, 3, 5], [[7, 8, 9], [10, 12]]), nn.Linear(72, 8), nn.ReLU()
    ),
}


def network(name, seed=0):
    torch.manual_seed(seed)
    body = LAYERS[name]()
    net = nn.Sequential(body, nn.Flatten(), nn.LazyLinear(5)).eval()
    with torch.no_grad():
        net(torch.rand(2, 2, 6, 6))
        for parameter in net.parameters():
            parameter.mul_(2)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.3, 2)
                module.weight.normal_()
                module.bias.normal_()
    return net


def inputs(seed=0, n=3):
    return torch.rand(n, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def points(region, count, seed=0):
    """Points of the sets, inside and at the border, (count, B, ...)."""
    generator = torch.Generator().manual_seed(seed)
    x, found = region.x, []
    for k in range(count):
        if k % 2:
            moved = x + region.radius * torch.randn(x.shape, generator=generator) * (0.3 if k % 4 == 1 else 30)
        else:
            moved = torch.where(torch.rand(x.shape, generator=generator) < 0.5, region.lower, region.upper)
        found.append(region.project(moved))
    return torch.stack(found)


def margins(classes=5, n=3):
    eye = torch.eye(classes, dtype=torch.float64)
    return (eye[:1] - eye[1:])[None].expand(n, -1, -1).contiguous()


def all_bounds(net, x, threat, steps=6):
    region = threat.around(x)
    with frozen_model(net) as model, torch.no_grad():
        graph, sets, c = trace(model, x), Region(region), margins(n=len(x))
        by_interval = interval_bounds(graph, sets)
        by_crown = crown_bounds(graph, sets)
        return graph, region, by_interval, by_crown, {
            "ibp": interval_bound(graph, by_interval, c),
            "crown-ibp": lower_bound(graph, by_interval, sets, graph.output, c),
            "crown": lower_bound(graph, by_crown, sets, graph.output, c),
            "alpha-crown": optimised_bound(graph, by_crown, sets, c, steps),
        }  # fmt: skip


@pytest.mark.parametrize("kind", THREATS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_value_of_every_point_lies_within_the_bounds(name, kind):
    for seed in range(long_or(1, 6)):
        net, x = network(name, seed), inputs(seed)
        graph, region, by_interval, by_crown, found = all_bounds(net, x, THREATS[kind])
        for point in points(region, long_or(14, 200), seed):
            values = [point.double()]
            for node in graph.nodes[1:]:
                values.append(node.evaluate(*(values[i] for i in node.inputs)))
            with torch.no_grad():
                logits = net(point).double()
            if name != "round":  # where float32 may round a tie the other way
                torch.testing.assert_close(values[graph.output], logits, atol=1e-4, rtol=1e-4)
            for bounds in (by_interval, by_crown):
                for value, (low, high) in zip(values, bounds.intervals, strict=True):
                    assert bool((low <= value).all() & (value <= high).all())
                low, high = bounds.intervals[graph.output]
                assert bool((low <= logits).all() & (logits <= high).all())
            margin = (margins() @ logits[:, :, None]).squeeze(2)
            for how, bound in found.items():
                assert bool((bound <= margin).all()), how


@pytest.mark.parametrize("name", LAYERS)
def test_dearer_bounds_are_no_looser_and_on_a_point_all_are_tight(name):
    net, x = network(name), inputs()
    *_, by_interval, by_crown, found = all_bounds(net, x, THREATS["Linf"], steps=20)
    assert bool((found["alpha-crown"] >= found["crown"]).all())
    for (low, high), (least, most) in zip(by_crown.intervals, by_interval.intervals, strict=True):
        assert bool((low >= least - 1e-9).all() & (high <= most + 1e-9).all())
    with torch.no_grad():
        margin = (margins() @ net(x).double()[:, :, None]).squeeze(2)
    *_, found = all_bounds(net, x, hb.Linf(0.0))
    for how, bound in found.items():
        assert float((margin - bound).abs().max()) < 1e-2, how


@pytest.mark.parametrize("make", [hb.Linf, hb.L2, hb.L1])
def test_a_region_covers_what_counts_as_inside_and_moves_no_frozen_feature(make):
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 1e-3, 1e6, 0.0, 1.0, 30.0])
    x = torch.rand(2000, 6, generator=generator) * scales + torch.tensor([0.0, 0.0, 1e6, 1e6, 0.0, 0.0])
    x[:2, 4:] = -1e-7  # outside of the box by rounding
    sets = make(0.03 * scales, low=0.0, high=3e6).around(x)
    point = sets.project(x + sets.radius * torch.randn(x.shape, generator=generator))
    outwards = torch.finfo(torch.float32).eps * (point - x).sign() * torch.rand(x.shape, generator=generator)
    point = torch.where(sets.radius > 0, point + 2 * outwards * point.abs(), x)
    inside, region, change = sets.contains(point), Region(sets), (point - x).double()
    assert inside.float().mean() > 0.5
    low, high = region.interval
    assert ((low <= point) & (point <= high))[inside].all()
    worst = torch.stack([-change / region.scale**2, -change.sign() / region.scale, -change], 1)
    assert (region.lowest(worst) <= (worst * point.double()[:, None]).sum(2))[inside].all()
    assert not region.slack[:, 3].any()


@pytest.mark.parametrize("threat", [hb.Linf(0.05), hb.L2(0.5), hb.L1(2.0)], ids=str)
@pytest.mark.parametrize("name", ["conv", "conv-options", "conv-deep", "normalize", "leaky", "batch-norm"])
def test_windows_are_what_whole_images_are(name, threat, monkeypatch):
    net, x = network(name), inputs()
    region = Region(threat.around(x))
    with torch.no_grad():
        graph = trace(net, x)
        fast = crown_bounds(graph, region)
        monkeypatch.setattr(crown, "plan", lambda graph, number: [])
        slow = crown_bounds(graph, region)
    for one, other in zip(fast.intervals, slow.intervals, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_bounds_of_a_linear_network_are_its_least_values():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(72, 6), nn.Linear(6, 5)), inputs()
    with torch.no_grad():
        matrix = (net[2].weight @ net[1].weight).double()
        slope = matrix[:1] - matrix[1:]
        margin = (net(x)[:, :1] - net(x)[:, 1:]).double()
        for threat, dual in ((hb.Linf(0.1, -9.0, 9.0), 1), (hb.L2(0.1, -9.0, 9.0), 2), (hb.L1(0.1, -9.0, 9.0), torch.inf)):
            *_, found = all_bounds(net, x, threat)
            expected = margin - 0.1 * slope.norm(dual, dim=1)
            assert bool((found["crown"] <= expected + 1e-6).all())
            torch.testing.assert_close(found["crown"], expected, atol=3e-4, rtol=0)


def test_both_bounds_are_two_lower_ones():
    net, x = network("residual"), inputs()
    region, c = Region(THREATS["L2"].around(x)), margins()
    with torch.no_grad():
        graph = trace(net, x)
        bounds = crown_bounds(graph, region)
        low, high = both_bounds(graph, bounds, region, graph.output, c)
        torch.testing.assert_close(low, lower_bound(graph, bounds, region, graph.output, c))
        torch.testing.assert_close(high, -lower_bound(graph, bounds, region, graph.output, -c))


class Scores(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(72, 5), function

    def forward(self, x):
        return self.function(self.layer(x.flatten(1)))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (F.gelu, "gelu"),
        (lambda z: z.softmax(1), "softmax"),
        (lambda z: z * z, "multiplies"),
        (lambda z: z.view(-1, 1).view(-1, 5), "batch"),
        (lambda z: z - z.mean(0), "batch"),
        (lambda z: z if z.sum() > -1e9 else -z, "sum"),
        (lambda z: F.max_pool2d(z.view(-1, 1, 1, 5), (1, 5), return_indices=True)[1].view(-1, 1).float() * z, "places"),
        (lambda z: F.relu_(z.view(-1, 5, 1)).flatten(1) + z, "in place"),
        (lambda z: z + torch.arange(len(z))[:, None], "place in the batch"),
        (lambda z: z.bfloat16().float(), "bfloat16"),
        (lambda z: z * float(z.detach().numpy().mean()), "numpy has no bounds"),
        (lambda z: z + float(np.asarray(z.data)[0, 0]), "array has no bounds"),
        (lambda z: z + np.from_dlpack(z)[0, 0].item(), "dlpack has no bounds"),
        (lambda z: z + max(z.tolist()[0]), "tolist has no bounds"),
        (lambda z: z + z.untyped_storage()[0], "untyped_storage has no bounds"),
        (lambda z: z + ctypes.c_float.from_address(z.data_ptr()).value, "data_ptr has no bounds"),
        (lambda z: z.apply_(lambda value: value**2), "apply has no bounds"),
        (lambda z: z @ nn.Parameter(z)[:, :1].expand(-1, 4).t().contiguous(), "cannot be followed"),
        (lambda z: z * float(nn.Parameter(z).detach().numpy().mean()), "cannot be followed"),
        (lambda z: z + copy.deepcopy(z)[0], "cannot be followed"),
        (lambda z: z @ z.t() @ z, "operation t has no bounds"),
    ],
)
def test_what_has_no_bounds_is_named_in_one_line(function, said):
    model = Scores(function)
    with pytest.raises(hb.UserError, match=said) as caught, torch.no_grad():
        trace(model, inputs())
    assert "\n" not in str(caught.value)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    "function",
    [lambda z, c: z + c, lambda z, c: c + z, lambda z, c: z - c, lambda z, c: c - z, lambda z, c: z + torch.tensor(c)],
)
def test_a_constant_that_is_rounded_before_it_is_added_is_within_the_bounds(function):
    for c in (1 + 2**-24 + 2**-28, 1 + 2**-24 + 2**-25, -1 - 3 * 2**-24 - 2**-29, 0.1, 2**24 + 1, 0.5):
        constant = torch.tensor(c, dtype=torch.float64).item()
        # On both sides of the middle between two numbers, where the roundings of constant and sum add up.
        x = torch.tensor([[2.0**-24 * (1 + s * t) for s in (-1, 1) for t in (0.5, 0.1, 2**-5, 2**-20)]])
        model = Of(lambda z, constant=constant: function(z, constant))
        with torch.no_grad():
            graph = trace(model, torch.cat([x, x + 1]))
        low, high = propagate(graph, (x.double(), x.double())).intervals[graph.output]
        assert ((low <= model(x)) & (model(x) <= high)).all()
        assert (high - low).max() < 1e-6 * max(abs(c), 1)


def test_layers_are_named_by_their_place():
    net = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(72, 5), nn.GELU()))
    with pytest.raises(hb.UserError, match=r"layer 1.1 \(GELU\) cannot be certified: the operation gelu has no bounds"):
        trace(net, inputs())
