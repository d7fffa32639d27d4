"""One training step as the methods' public code makes it: float32, contiguous, every pass that the code makes.

Written from the published counts of passes (docs/performance.md); nothing of theirs is copied.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS, SIZE, STEPS = 8 / 255, 2 / 255, 10
Step = Callable[[Tensor, Tensor], None]


def attack(model: nn.Module, x: Tensor, y: Tensor, loss: str = "ce", weights_too: bool = False, train: bool = False) -> Tensor:
    """PGD-10; ``weights_too``: by ``backward``, which fills the weights' gradients; "kl" sees the clean inputs each step."""
    model.train(train)
    point = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(STEPS):
        point = point.detach().requires_grad_()
        if loss == "ce":
            value = F.cross_entropy(model(point), y)
        else:
            clean = F.softmax(model(x), 1)
            value = F.kl_div(F.log_softmax(model(point), 1), clean, reduction="sum")
        if weights_too:
            value.backward()
            grad = point.grad
        else:
            (grad,) = torch.autograd.grad(value, point)
        assert grad is not None
        point = point.detach() + SIZE * grad.sign()
        point = torch.minimum(torch.maximum(point, x - EPS), x + EPS).clamp(0, 1)
    model.train()
    return point.detach()


def margin_weights(logits: Tensor, y: Tensor) -> Tensor:
    """MAIL's weights."""
    p = logits.detach().softmax(1)
    other = p.scatter(1, y[:, None], 0.0).amax(1)
    w = torch.sigmoid(-10 * (p.gather(1, y[:, None]).squeeze(1) - other + 0.5))
    return w / w.sum() * len(w)


def bce(logits: Tensor, y: Tensor) -> Tensor:
    """MART's boosted cross-entropy, (B,)."""
    p = logits.softmax(1)
    other = p.scatter(1, y[:, None], 0.0).amax(1)
    return F.cross_entropy(logits, y, reduction="none") - torch.log(1.0001 - other + 1e-12)


def steps(model: nn.Module) -> dict[str, Step]:
    """The step of each method, on this model and an optimiser of its own."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    proxy = copy.deepcopy(model)
    proxy_optimizer = torch.optim.SGD(proxy.parameters(), lr=0.01)

    def finish(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def at(x: Tensor, y: Tensor) -> None:
        finish(F.cross_entropy(model(attack(model, x, y)), y))

    def mail_at(x: Tensor, y: Tensor) -> None:
        logits = model(attack(model, x, y))
        finish((margin_weights(logits, y) * F.cross_entropy(logits, y, reduction="none")).mean())

    def gairat(x: Tensor, y: Tensor) -> None:
        logits = model(attack(model, x, y, weights_too=True))
        weights = (1 + torch.tanh(torch.ones_like(y))) / 2  # what they are from does not matter here
        finish((weights * F.cross_entropy(logits, y, reduction="none")).mean())

    def mart(x: Tensor, y: Tensor) -> None:
        point = attack(model, x, y)
        logits, logits_adv = model(x), model(point)
        p = logits.softmax(1)
        kl = F.kl_div(torch.log(logits_adv.softmax(1) + 1e-12), p, reduction="none").sum(1)
        finish(bce(logits_adv, y).mean() + 5 * (kl * (1.0000001 - p.gather(1, y[:, None]).squeeze(1))).mean())

    def trades(x: Tensor, y: Tensor) -> None:
        point = attack(model, x, y, "kl")
        natural = F.cross_entropy(model(x), y)
        robust = F.kl_div(F.log_softmax(model(point), 1), model(x).softmax(1), reduction="sum") / len(x)
        finish(natural + 6 * robust)

    def mail_trades(x: Tensor, y: Tensor) -> None:
        point = attack(model, x, y, "kl")
        logits, logits_adv = model(x), model(point)
        kl = F.kl_div(F.log_softmax(logits_adv, 1), logits.softmax(1), reduction="none").sum(1)
        finish(F.cross_entropy(logits, y) + 6 * (margin_weights(logits_adv, y) * kl).mean())

    def at_awp(x: Tensor, y: Tensor) -> None:
        point = attack(model, x, y, weights_too=True, train=True)
        with torch.no_grad():
            F.cross_entropy(model(point), y)  # of the last iterate, to choose among restarts
        proxy.load_state_dict(model.state_dict())
        proxy.train()
        proxy_optimizer.zero_grad()
        (-F.cross_entropy(proxy(point), y)).backward()
        proxy_optimizer.step()
        changes = []
        for mine, theirs in zip(model.parameters(), proxy.parameters(), strict=True):
            change = (theirs - mine).detach() if mine.ndim > 1 else torch.zeros_like(mine)
            changes.append(0.01 * mine.detach().norm() / (change.norm() + 1e-20) * change)
        with torch.no_grad():
            for parameter, change in zip(model.parameters(), changes, strict=True):
                parameter.add_(change)
        finish(F.cross_entropy(model(point), y))
        with torch.no_grad():
            for parameter, change in zip(model.parameters(), changes, strict=True):
                parameter.sub_(change)
            model(x)  # for the log

    named = (at, mart, mail_at, trades, mail_trades, gairat)
    return {step.__name__.replace("_", "-"): step for step in named} | {"at+awp": at_awp}
