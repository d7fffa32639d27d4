import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hauberk.attacks import frozen_model
from hauberk.fastpath.frozen_copy import InferenceCopy, make_inference_copy
from hauberk.models import ModelSpec
from helpers import tiny_batch, tiny_net


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics of BatchNorm, scales and shifts as after some training, so that folding has something to fold."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_var, module.weight.data):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            for tensor in (module.running_mean, module.bias.data):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def look(model, x):
    x = x.clone().requires_grad_()
    logits = model(x)
    return logits.detach(), torch.autograd.grad(
        logits.float().logsumexp(1).sum(), x, allow_unused=True, materialize_grads=True
    )[0]


def operations(copy: nn.Module) -> list[str]:
    return [type(m).__name__ for m in copy.modules()]


@pytest.mark.parametrize("name", ["resnet18", "preact-resnet18", "wrn-10-1"])
def test_a_copy_in_the_models_precision_computes_the_same(name):
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    model = settled(ModelSpec(name, (3, 16, 16), 10).build().double())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    copy = InferenceCopy(model)
    for mine, theirs in zip(look(copy, x), look(model, x), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)
    if name == "resnet18":
        assert "BatchNorm2d" not in operations(copy)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_copy_in_bfloat16_is_near_and_gives_float32():
    torch.manual_seed(0)
    x = torch.rand(4, 3, 16, 16)
    model = settled(ModelSpec("resnet18", (3, 16, 16), 10).build())
    copy = make_inference_copy(model, x, "bf16")
    assert isinstance(copy, InferenceCopy)
    (logits, grad), (near, close) = look(model, x), look(copy, x)
    assert near.dtype == close.dtype == torch.float32
    assert 0 < (near - logits).norm() < 0.05 * logits.norm()
    assert 0 < (close - grad).norm() < 0.3 * grad.norm()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_refreshing_takes_over_weights_and_statistics(dtype):
    torch.manual_seed(0)
    x = torch.rand(2, 3, 8, 8)
    model = settled(ModelSpec("resnet18", (3, 8, 8), 10).build())
    copy = InferenceCopy(model, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        settled(model, seed=1)
    copy.refresh(model)
    assert torch.equal(look(copy, x)[0], look(InferenceCopy(model, dtype), x)[0])
    with frozen_model(model) as view:  # which keeps the buffers in copies
        copy.refresh(view)
    assert torch.equal(look(copy, x)[0], look(InferenceCopy(model, dtype), x)[0])


class Hiding(nn.Module):
    """Its gradient is not that of what it computes, by a function of its own or by switching gradients off."""

    def __init__(self, how: str):
        super().__init__()
        self.net, self.how = tiny_net(), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "straight through":
            x = Rounded.apply(x)
        elif self.how == "switched off":
            with torch.no_grad():
                x = 0.5 * x
        elif self.how == "noisy":
            x = x + 0.01 * torch.randn(x.shape[1:])
        elif self.how == "branching" and x.mean() > 2:
            x = x / 2
        elif self.how == "constant noise when traced":
            x = x + 0.1 * torch.randn(1)
        return self.net(x)


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x * 8).round() / 8

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.mark.parametrize("how", ["straight through", "switched off", "noisy", "branching", "constant noise when traced"])
def test_the_form_for_attacks_has_the_models_logits_and_gradients_or_is_the_model(how):
    torch.manual_seed(0)
    model, (x, _) = Hiding(how).eval(), tiny_batch()
    form = make_inference_copy(model, x)
    if "nois" in how:
        assert form is model
        return
    logits, grad = look(model, x)
    mine, close = look(form, x)
    assert torch.allclose(mine, logits, atol=1e-5)
    assert torch.allclose(close, grad, atol=1e-5)


class Reused(nn.Module):
    """One convolution and one ReLU used twice, an output that goes two ways, a parameter of its own, a functional ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.last = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        out = self.relu(self.bn(out)) + out
        out = self.relu(self.conv(out)) * self.scale
        total = out + x
        logits: Tensor = self.last((F.relu(total) - total).mean((2, 3)))
        return logits


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_shared_is_not_overwritten(precision):
    torch.manual_seed(0)
    model, x = settled(Reused()), torch.rand(2, 3, 8, 8)
    (logits, grad), (mine, close) = look(model, x), look(make_inference_copy(model, x, precision), x)
    rough = 0.05 if precision == "bf16" else 1e-5
    assert torch.allclose(mine, logits, atol=rough)
    assert (close - grad).norm() <= rough * 6 * grad.norm()
