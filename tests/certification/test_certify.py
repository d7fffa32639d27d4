"""hb.certify over a data set: its verdicts, its result, its folder, and what it refuses."""

import itertools
import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import hauberk as hb
from hauberk.certification.records import CertificateRecords
from hauberk.core.distributed import World
from hauberk.data import load_data
from hauberk.threat import Norm
from helpers import (
    CHECKPOINTS,
    MNIST,
    TORCHRUN,
    fingerprint,
    long_or,
    require_success,
    same,
    small_mnist_net,
    tiny_batch,
    tiny_net,
)


def data(n=40, model=None):
    x, y = tiny_batch(n)
    model = model or tiny_net().eval()
    with torch.no_grad():
        y = torch.where(torch.arange(n) % 5 > 0, model(x).argmax(1), y)
    return model, x, y


def test_certified_examples_withstand_attacks_and_the_model_is_as_before():
    model, x, y = data()
    model.train()
    before = fingerprint(model)
    threat = hb.Linf("2/255")
    result = hb.certify(model, (x, y), threat=threat, quiet=True)
    assert same(before, fingerprint(model))
    assert 0.2 < result.certified_accuracy <= result.clean_accuracy < 1
    assert result.certified_accuracy + result.undecided == pytest.approx(result.clean_accuracy)
    assert set(result.proved_by) >= {None, "ibp"}
    assert ((result.bound > 0) == result.certified).all()
    right = result.label == result.predicted
    assert (np.isnan(result.bound) == ~right).all()
    assert (result.bound[right] <= result.margin[right]).all()
    attacked = hb.evaluate(model, (x, y), threat=threat, attacks=["pgd-100", "cw-30"], quiet=True)
    broken = np.array([name is not None for name in attacked.broken_by])
    assert not (broken & result.certified).any()
    assert result.certified_accuracy <= attacked.robust_accuracy
    assert str(result).startswith(f"robust accuracy at least {100 * result.certified_accuracy:.1f} %")
    assert "undecided" in repr(result)


@pytest.mark.parametrize("threat", [hb.Linf("1/255"), hb.L2(0.05), hb.L1(0.3)], ids=str)
def test_dearer_bounds_certify_what_cheaper_ones_do_and_more(threat):
    model, x, y = data(16)
    names = ("ibp", "crown-ibp", "crown", "alpha-crown")
    counts = [hb.certify(model, (x, y), threat=threat, methods=names[:k], quiet=True).certified for k in range(1, 5)]
    for less, more in itertools.pairwise(counts):
        assert not (less & ~more).any()
    alone = hb.certify(model, (x, y), threat=threat, methods=["crown"], quiet=True)
    assert alone.methods == ("crown",)
    assert set(alone.proved_by) <= {"crown", None}
    assert counts[-1].any()


def test_verdicts_repeat_and_do_not_depend_on_the_batch():
    model, x, y = data()
    first, second, third = (hb.certify(model, (x, y), threat=hb.L2(0.1), batch_size=size, quiet=True) for size in (32, 32, 7))
    assert first.examples == second.examples
    assert first.proved_by == third.proved_by
    np.testing.assert_allclose(first.bound, third.bound, atol=1e-9)


def test_frozen_and_one_way_features_of_a_table():
    """Three features of which one is frozen and one can only rise, against all corners."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    x = torch.rand(200, 3) * 10
    with torch.no_grad():
        y = model(x).argmax(1)
    threat = hb.Linf([0.5, 2.0, 1.0], low=0.0, high=[10.0, 10.0, 12.0], frozen=[0], monotone=[0, 1, 0])
    region = threat.around(x)
    result = hb.certify(model, (x, y), threat=threat, quiet=True)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(0, 1, 9)] * 3, indexing="ij"), -1).view(-1, 3)
    with torch.no_grad():
        truth = torch.stack([model(region.lower + g * (region.upper - region.lower)).argmax(1) == y for g in grid]).all(0)
    assert not (result.certified & ~truth.numpy()).any()
    assert result.certified.sum() > 0.9 * truth.sum()
    assert truth.sum() < 200
    wider = hb.certify(model, (x, y), threat=hb.Linf([0.5, 2.0, 1.0], 0.0, [10.0, 10.0, 12.0]), quiet=True)
    assert wider.certified.sum() < result.certified.sum()


def test_goes_on_where_it_stopped(tmp_path, monkeypatch):
    model, x, y = data()
    whole = hb.certify(model, (x, y), threat=hb.Linf("2/255"), quiet=True, batch_size=8)
    write, written = CertificateRecords.write, []

    def stop(self, examples, **columns):
        if len(written) == 2:
            raise KeyboardInterrupt
        write(self, examples, **columns)
        written.append(examples)

    monkeypatch.setattr(CertificateRecords, "write", stop)
    call = {"threat": hb.Linf("2/255"), "quiet": True, "batch_size": 8, "out": tmp_path / "c"}
    with pytest.raises(KeyboardInterrupt):
        hb.certify(model, (x, y), **call)
    monkeypatch.setattr(CertificateRecords, "write", write)
    lines = tmp_path / "c" / "certificates-0.jsonl"
    lines.write_text(lines.read_text() + '{"i": 20, "lab')  # as a crash leaves it
    fetched = []
    monkeypatch.setattr(CertificateRecords, "write", lambda self, i, **c: (fetched.extend(i.tolist()), write(self, i, **c)))
    again = hb.certify(model, (x, y), **call)
    assert fetched == list(range(16, 40))
    assert again.examples == whole.examples
    assert hb.certify(model, (x, y), **call).examples == whole.examples  # with nothing left to do
    saved = json.loads((tmp_path / "c" / "certificates.json").read_text())
    assert saved["examples"] == again.examples
    assert saved["certified_accuracy"] == whole.certified_accuracy
    with pytest.raises(hb.UserError, match="threat"):
        hb.certify(model, (x, y), **{**call, "threat": hb.Linf("3/255")})
    with pytest.raises(hb.UserError, match="model_id"):
        hb.certify(tiny_net(seed=5), (x, y), **call)
    lines.write_text('{"i": 99, "label": 0}\n')
    with pytest.raises(hb.UserError, match="is not a record of these certificates"):
        hb.certify(model, (x, y), **call)


@pytest.mark.parametrize(
    "line",
    [
        '{"i": true}', '{"i": 1, "label": 1.5}', '{"cost": "x"}', "[1]", '{"i": 0, "label": 1e400}',
        '{"i": 0, "label": 99999999999999999999}',
    ],
)  # fmt: skip
def test_a_damaged_record_is_named(line, tmp_path):
    plan, columns = {"n": 2}, {"label": np.int64, "bound": np.float64}
    records = CertificateRecords(tmp_path, plan, columns, World())
    records.write(np.array([1]), label=np.array([3]), bound=np.array([math.nan]))
    records.close()
    with (tmp_path / "certificates-0.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(hb.UserError, match="line 2"):
        CertificateRecords(tmp_path, plan, columns, World())


class OwnNorm(Norm):
    name, p = "mine", 3.0


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) + torch.randn(3)


class Listed(nn.Module):
    """It hides from torch what it does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) + torch.tensor(x.detach().numpy()[:, :3] ** 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threat": hb.L0(2)}, "L0"),
        ({"threat": hb.ThreatModel(OwnNorm(), 0.1, 0.0, 1.0, None, "0.1")}, "mine"),
        ({"methods": ["crowns"]}, "crowns"),
        ({"methods": []}, "empty"),
        ({"n": 0}, "n must be"),
        ({"n": 7}, "n must be"),
        ({"batch_size": 0}, "positive"),
        ({"steps": 0}, "positive"),
        ({"model": nn.Sequential(nn.Linear(4, 3), nn.Softplus())}, r"layer 1 \(Softplus\)"),
        ({"model": Noisy()}, "random"),
        ({"model": Listed()}, "numpy has no bounds"),
        ({"model": nn.Linear(4, 3).half()}, "float16"),
    ],
)  # fmt: skip
def test_what_is_refused_is_said_in_one_line(change, said):
    x = torch.rand(6, 4)
    call = {"model": nn.Linear(4, 3), "threat": hb.Linf(0.01), "quiet": True, **change}
    with pytest.raises(hb.UserError, match=said) as caught:
        hb.certify(call.pop("model"), (x, torch.zeros(6, dtype=torch.int64)), **call)
    assert "\n" not in str(caught.value)


class Threaded(nn.Module):
    """It computes in a thread, where nobody watches, what depends on some of the features."""

    def __init__(self, part):
        super().__init__()
        self.layer, self.part = nn.Linear(4, 3), part

    def forward(self, x):
        with ThreadPoolExecutor(1) as pool:
            return self.layer(x) + pool.submit(lambda: x[:, self.part] ** 2).result()


@pytest.mark.parametrize("part", [slice(3), slice(1)], ids=["free", "frozen"])
@pytest.mark.parametrize("n", [1, 2])
def test_a_hidden_dependence_is_seen_where_all_examples_are_alike(n, part):
    x = torch.rand(1, 4).expand(n, 4)
    with pytest.raises(hb.UserError, match="constant that depends on the input"):
        hb.certify(Threaded(part), (x, torch.zeros(n, dtype=torch.int64)), threat=hb.Linf(0.01, frozen=[0]), quiet=True)


def test_a_float64_model_and_one_class_more_than_a_chunk():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 300)).double()
    x = torch.rand(12, 5)
    with torch.no_grad():
        y = model(x.double()).argmax(1)
    result = hb.certify(model, (x, y), threat=hb.Linf(0.002), quiet=True)
    assert result.provenance["dtype"] == "torch.float64"
    assert result.certified.any()


def test_a_network_that_float32_breaks_is_not_certified():
    """Weights of 1e6 that cancel: the real margin is 0.01, what float32 computes of it is noise."""
    big = torch.full((1, 40), 1e6)
    net = nn.Sequential(nn.Linear(40, 2), nn.Identity())
    with torch.no_grad():
        net[0].weight.copy_(torch.cat([big * (1 - 2 * (torch.arange(40) % 2)), torch.zeros(1, 40)]))
        net[0].bias.copy_(torch.tensor([0.01, 0.0]))
    x = torch.rand(20, 1).expand(20, 40).contiguous()
    with torch.no_grad():
        y = net(x).argmax(1)
    result = hb.certify(net, (x, y), threat=hb.Linf(0.0), quiet=True)
    assert not result.certified.any()


def test_random_networks_and_points_are_never_wrong():
    """Points of sets of random networks, near the border, pushed by gradients; a certificate must hold for each."""
    generator = torch.Generator().manual_seed(0)
    checked, certified = 0, 0
    for seed in range(long_or(12, 1000)):
        torch.manual_seed(seed)
        width, kind = int(torch.randint(3, 12, (1,))), seed % 4
        act = (nn.ReLU, nn.Tanh, nn.Sigmoid, lambda: nn.LeakyReLU(0.2))[kind]
        net = nn.Sequential(nn.Linear(4, width), act(), nn.Linear(width, width), act(), nn.Linear(width, 3))
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(float(torch.rand(())) * 4)
        x = torch.rand(40, 4)
        with torch.no_grad():
            y = net(x).argmax(1)
        threat = (hb.Linf(0.05), hb.L2(0.1), hb.L1(0.2))[seed % 3]
        proved = hb.certify(net, (x, y), threat=threat, quiet=True, steps=5).certified
        found = hb.attacks.pgd(net, x, y, threat, steps=20, seed=seed)
        assert not (found.success.numpy() & proved).any()
        region = threat.around(x)
        for _ in range(20):
            moved = x + region.radius * 3 * torch.randn(x.shape, generator=generator)
            with torch.no_grad():
                wrong = (net(region.project(moved)).argmax(1) != y).numpy()
            assert not (wrong & proved).any()
        checked, certified = checked + len(x), certified + int(proved.sum())
    assert 0.2 < certified / checked < 0.95


@pytest.mark.skipif(
    not (CHECKPOINTS / "convex_adversarial_models_mnist.pth").exists() or not MNIST.exists(),
    reason="no checkpoint, or no MNIST",
)
def test_the_network_of_wong_and_kolter():
    net = small_mnist_net()
    weights = torch.load(CHECKPOINTS / "convex_adversarial_models_mnist.pth", map_location="cpu", weights_only=True)
    net.load_state_dict(weights.get("state_dict", weights))
    test = load_data("mnist", "test", folder=MNIST)
    result = hb.certify(net, test, threat=hb.Linf(0.1), n=long_or(64, 10_000), quiet=True)
    assert result.certified_accuracy >= long_or(0.95, 0.942)


WORK = """
import sys
from concurrent.futures import ThreadPoolExecutor
import torch
import hauberk as hb
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
x = torch.rand(21, 6)
with torch.no_grad(), hb.init_distributed() as world:
    y = net(x).argmax(1)
    result = hb.certify(net, (x, y), threat=hb.L2(0.2), batch_size=4, out=sys.argv[1], quiet=True)
    for rank, other in enumerate(world.all_gather_object((result.examples, result.provenance["seconds"]))):
        assert other[0] == result.examples, rank
"""


def test_several_processes_share_the_examples(tmp_path):
    command = [sys.executable, *TORCHRUN, "2", "work.py", str(tmp_path / "both")]
    (tmp_path / "work.py").write_text(WORK)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    require_success(done.returncode, done.stderr)
    files = [tmp_path / "both" / f"certificates-{rank}.jsonl" for rank in (0, 1)]
    assert [len(path.read_text().splitlines()) for path in files] == [12, 11]  # and what it took
    done = subprocess.run([sys.executable, "work.py", str(tmp_path / "one")], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    both, one = (json.loads((tmp_path / name / "certificates.json").read_text()) for name in ("both", "one"))
    assert [row["proved_by"] for row in both["examples"]] == [row["proved_by"] for row in one["examples"]]
    assert 0 < one["certified_accuracy"] < 1
    assert both["provenance"]["processes"] == 2
