"""Defences that only hide: functions of a network and its inputs, which look robust to some attack and are not."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rule = Callable[["Defence", Tensor], Tensor]


class Defence(nn.Module):
    """A network behind a rule that answers for it.

    Args:
        net: the network that is hidden.
        rule: returns logits of inputs; given this module, whose ``memory`` and ``calls`` are the rule's own.
    """

    def __init__(self, net: nn.Module, rule: Rule):
        super().__init__()
        self.net, self.rule = net, rule
        self.memory: dict[Any, Any] = {}
        self.calls = 0
        with torch.random.fork_rng():
            torch.manual_seed(7)
            size = 784
            self.lure = nn.Sequential(nn.Flatten(), nn.Linear(size, 64), nn.Tanh(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 28, 28) -> (B, 10), or (B, 11) with a class of adversarial inputs."""
        return self.rule(self, x)


def _levels(x: Tensor, levels: int) -> Tensor:
    return (x * levels).round() / levels


def _off_grid(x: Tensor) -> Tensor:
    """Which inputs are no images of whole grey values, (B, 1) bool."""
    grey = 255 * x
    return ((grey - grey.round()).abs() > 1e-2).flatten(1).any(1, keepdim=True)


def _jpeg(x: Tensor) -> Tensor:
    """Blocks of 7×7 as cosines, in coarse steps."""
    k = torch.arange(7, dtype=x.dtype)
    basis = torch.cos(torch.pi * (k[None] + 0.5) * k[:, None] / 7) * (2 / 7) ** 0.5
    basis[0] /= 2**0.5
    blocks = x.unfold(2, 7, 7).unfold(3, 7, 7)
    cosines = ((basis @ blocks @ basis.T) / 0.3).round() * 0.3
    back = (basis.T @ cosines @ basis).permute(0, 1, 2, 4, 3, 5)
    return back.reshape(x.shape)


def _key(x: Tensor) -> list[bytes]:
    return [one.numpy().tobytes() for one in x.detach()]


def memory(self: Defence, x: Tensor) -> Tensor:
    """Answer for the nearest of the inputs that were seen first."""
    seen = self.memory.setdefault("seen", x.detach()[:64].clone())
    return self.net(seen[torch.cdist(x.detach().flatten(1), seen.flatten(1)).argmin(1)])


def memory_with_gradient(self: Defence, x: Tensor) -> Tensor:
    """The same with the gradient of the network."""
    z = self.net(x)
    return memory(self, x) + z - z.detach()


def tired(self: Defence, x: Tensor) -> Tensor:
    """After fifty passes answer for the nearest of the inputs that were seen first."""
    self.calls += 1
    return memory(self, x) if self.calls > 50 else self.net(x)


def decoy(self: Defence, x: Tensor) -> Tensor:
    """The gradient of another network."""
    lured = self.lure(x)
    return self.net(x).detach() + lured - lured.detach()


def weak_decoy(self: Defence, x: Tensor) -> Tensor:
    """The gradient of another network, and a hundredth of its own."""
    z, lured = self.net(x), self.lure(x)
    return z.detach() + 0.01 * (z - z.detach()) + lured - lured.detach()


def two_faced(self: Defence, x: Tensor) -> Tensor:
    """Another answer to those who want a gradient."""
    return self.lure(x) + 5 * self.net(x).detach().sign() if torch.is_grad_enabled() else self.net(x)


def flipped(self: Defence, x: Tensor) -> Tensor:
    """The gradient points the other way."""
    z = self.net(x)
    return 2 * z.detach() - z


def noisy_gradient(self: Defence, x: Tensor) -> Tensor:
    """The gradient has noise of three times its size."""
    if not x.requires_grad:
        return self.net(x)
    x = x.view_as(x)
    x.register_hook(lambda g: g + 3 * g.abs().mean() * torch.randn(g.shape, generator=torch.Generator().manual_seed(1)))
    return self.net(x)


def nan_gradient(self: Defence, x: Tensor) -> Tensor:
    """The gradient of one pixel is no number."""
    if not x.requires_grad:
        return self.net(x)
    x = x.view_as(x)
    x.register_hook(lambda g: g + F.pad(g.new_full((len(g), 1, 1, 1), torch.nan), (0, 27, 0, 27)))
    return self.net(x)


def border_gradient(self: Defence, x: Tensor) -> Tensor:
    """A gradient at the border of the image only, where it does least."""
    inner = torch.zeros_like(x)
    inner[..., 3:-3, 3:-3] = 1
    return self.net(inner * x.detach() + (1 - inner) * x)


def late_gradient(self: Defence, x: Tensor) -> Tensor:
    """The right gradient at images of whole grey values, and none elsewhere."""
    return self.net(torch.where(_off_grid(x)[..., None, None], x.detach(), x))


def detector(self: Defence, x: Tensor) -> Tensor:
    """Recognise all that is no image of whole grey values."""
    z = self.net(x)
    high, low = z.detach().amax(1, keepdim=True) + 10, z.detach().amin(1, keepdim=True)
    return torch.cat([z, torch.where(_off_grid(x), high, low)], 1)


def detector_that_answers(self: Defence, x: Tensor) -> Tensor:
    """Round to whole grey values of eight levels where something was changed."""
    return self.net(torch.where(_off_grid(x)[..., None, None], _levels(x, 4).detach() + 1e-3 * x, x))


def random_resize(self: Defence, x: Tensor) -> Tensor:
    """A random size and place."""
    size = int(torch.randint(22, 29, ()))
    left, top = (int(torch.randint(0, 29 - size, ())) for _ in range(2))
    small = F.interpolate(x, size=(size, size), mode="nearest")
    return self.net(F.pad(small, (left, 28 - size - left, top, 28 - size - top)))


def random_ensemble(self: Defence, x: Tensor) -> Tensor:
    """A random one of ten masks."""
    mask = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(int(torch.randint(0, 10, ())))) < 0.8
    return self.net(x * mask)


def hash_noise(self: Defence, x: Tensor) -> Tensor:
    """Noise that is a function of the input."""
    z = self.net(x)
    noise = torch.stack([torch.randn(10, generator=torch.Generator().manual_seed(hash(key) % 2**60)) for key in _key(x)])
    return z + noise * z.detach().std()


BROKEN: dict[str, tuple[Rule, dict[str, Any]]] = {
    "jpeg": (lambda self, x: self.net(_jpeg(x)), {}),
    "jpeg that leaks": (lambda self, x: self.net(0.98 * _jpeg(x) + 0.02 * x), {}),
    "logits x 1000": (lambda self, x: 1000 * self.net(x), {}),
    "logits + 1e7": (lambda self, x: self.net(x) + 1e7, {}),
    "staircase": (lambda self, x: self.net(_levels(x, 8).detach() + 0.1 * (x - x.detach())), {}),
    "thermometer": (lambda self, x: self.net(0.3 * x + 0.7 * _levels(x, 3).detach()), {}),
    "clamped log-probabilities": (lambda self, x: self.net(x).log_softmax(1).clamp_min(-4), {}),
    "tanh of logits": (lambda self, x: torch.tanh(10 * self.net(x)), {}),
    "sine": (lambda self, x: self.net(x + 0.02 * torch.sin(500 * x)), {}),
    "batch-normed logits": (lambda self, x: F.normalize(self.net(x) - self.net(x).mean(0), dim=0), {}),
    "mean of the batch": (lambda self, x: self.net(0.95 * x + 0.05 * x.mean(0)), {}),
    "random resize and pad": (random_resize, {}),
    "random ensemble": (random_ensemble, {}),
    "hash noise": (hash_noise, {}),
    "memory": (memory, {}),
    "memory with a gradient": (memory_with_gradient, {}),
    "tired": (tired, {}),
    "decoy": (decoy, {}),
    "weak decoy": (weak_decoy, {}),
    "two-faced": (two_faced, {}),
    "flipped gradient": (flipped, {}),
    "noisy gradient": (noisy_gradient, {}),
    "NaN gradient": (nan_gradient, {}),
    "gradient at the border only": (border_gradient, {}),
    "gradient at the data only": (late_gradient, {}),
    "detector of grey values": (detector, {"has_reject_class": True}),
    "detector that answers": (detector_that_answers, {}),
    "quantised": (lambda self, x: self.net(_levels(x, 8)), {}),
}
