"""What only a GPU shows: the same bits again, true float32 where float32 is said, and graphs that compute the same."""

import pytest
import torch
from torch import nn

import hauberk as hb
from hauberk.attacks.model.frozen_model import frozen_model
from hauberk.core.numerics import float32_mode
from hauberk.fastpath.precision import PrecisionPolicy
from helpers import Signalling, settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
THREAT = hb.Linf("8/255")
needs_tf32 = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0), reason="this GPU has no TF32"
)


def images(n=80, classes=5):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    return torch.rand(n, 3, 32, 32, generator=generator) * 0.3 + 0.12 * y.view(-1, 1, 1, 1), y


def wide_net():
    """Convolutions that cuDNN has several kernels for, with and without atomic additions."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 128, 3, 2, 1), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 5),
    ).cuda()  # fmt: skip


def trained(data=None, **how):
    how = settings(device="cuda", batch_size=32, epochs=2, ema=0.9, **how)
    return hb.train(wide_net(), images() if data is None else data, threat=THREAT, **how)


def same_weights(one, other):
    return all(torch.equal(value, other.model.state_dict()[name]) for name, value in one.model.state_dict().items())


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("method", ["at", "mail-trades", "at+awp"])
def test_the_same_seed_gives_the_same_bits(method, precision):
    runs = [trained(method=method, precision=precision) for _ in range(2)]
    assert same_weights(*runs)
    assert runs[0].metrics[-1]["val_robust_accuracy"] == runs[1].metrics[-1]["val_robust_accuracy"]


@pytest.mark.parametrize("how", [{}, {"precision": "bf16"}, {"compile": "on"}], ids=["fp32", "bf16", "compiled"])
def test_a_resumed_run_ends_with_the_same_bits(how, tmp_path):
    whole = trained(Signalling(images(), 0), out=tmp_path / "a", **how)
    assert trained(Signalling(images(), 110), out=tmp_path / "b", **how).interrupted
    again = trained(Signalling(images(), 0), out=tmp_path / "b", resume=True, **how)
    assert same_weights(whole, again)


@pytest.mark.parametrize("precision", ["model", "fp32", "tf32", "bf16"])
def test_an_evaluation_finds_the_same_bits_again(precision):
    model, (x, _) = wide_net().eval(), images()
    y = model(x.cuda()).argmax(1).cpu()
    how = {"threat": THREAT, "attacks": ["pgd-20", "apgd-ce"], "batch_size": 32, "quiet": True, "diagnostics": "cheap"}
    one, other = (hb.evaluate(model, (x, y), precision=precision, **how) for _ in range(2))
    assert one.examples == other.examples


@needs_tf32
def test_tf32_is_not_float32_and_float32_is():
    model, x = wide_net().eval(), images()[0].cuda()
    exact, found = model.double()(x.double()), {}
    model.float()
    for precision in ("fp32", "tf32"):
        with float32_mode(precision), torch.no_grad():
            found[precision] = float((model(x) - exact).norm() / exact.norm())
    assert found["fp32"] < 1e-5 < found["tf32"]
    attack = hb.attacks.PGD(steps=3, start="clean")
    moved = {}
    for precision in ("fp32", "tf32"):
        with PrecisionPolicy(precision).attack_model(model, x, "eval") as form:
            moved[precision] = attack(form, x, images()[1].cuda(), THREAT).logits
    assert not torch.equal(moved["fp32"], moved["tf32"])


@needs_tf32
@pytest.mark.parametrize("precision", ["model", "tf32"])
def test_verdicts_are_true_float32_whatever_the_caller_allows(precision):
    model, (x, _) = wide_net().eval(), images()
    logits = model.double()(x.cuda().double())
    model.float()
    y = logits.argmax(1)
    rest = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    margin = (logits.gather(1, y[:, None])[:, 0] - rest).cpu()
    torch.set_float32_matmul_precision("high")
    try:
        how = {"threat": THREAT, "attacks": ["fgsm"], "quiet": True, "diagnostics": []}
        seen = hb.evaluate(model, (x, y.cpu()), precision=precision, **how).records["clean"]["margin"]
        assert torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert float((torch.from_numpy(seen.copy()) - margin).abs().max()) < 1e-5 * float(logits.norm(dim=1).max())


def test_graphs_compute_the_same_also_for_a_last_batch_and_after_an_attack_that_failed():
    model, x = wide_net().eval(), images()[0].cuda()
    policy, plain = PrecisionPolicy("fp32", compiled=True), PrecisionPolicy("fp32")
    for rows in (32, 20, 32, 8):
        point = x[:rows].clone().requires_grad_()
        with policy.attack_model(model, point, "eval") as form, plain.attack_model(model, point, "eval") as copy:
            for _ in range(3):
                one, other = (torch.autograd.grad(net(point).logsumexp(1).sum(), point)[0] for net in (form, copy))
                assert (one - other).norm() < 1e-3 * other.norm()
        try:
            with policy.attack_model(model, point, "eval") as form:
                form(point)
                raise KeyError
        except KeyError:
            pass
    assert policy.shapes == [[32, 3, 32, 32]]
    before = torch.cuda.memory_reserved()
    for _ in range(3):  # copies of other models do not pile up
        other = wide_net().eval()
        with policy.attack_model(other, x[:32], "eval") as form, frozen_model(other), torch.no_grad():
            form(x[:32])
    policy.release()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before
