"""A package of somebody who imports ``hauberk`` and nothing in it: her own parts of a training and an evaluation."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

import hauberk as hb


def pairs(split, folder):
    """A data set: images whose class is plain to see."""
    generator = torch.Generator().manual_seed(0 if split == "train" else 1)
    y = torch.arange(60) % 5
    return torch.rand(60, 3, 8, 8, generator=generator) * 0.3 + 0.12 * y.view(-1, 1, 1, 1), y


def shifted(x, rng):
    """An augmentation: each image is a little darker or brighter, always the same at the same step."""
    shift = 0.05 * (rng.uniform(x.new_empty(len(x), 1), 77) - 0.5)
    return (x + shift.view(-1, 1, 1, 1)).clamp(0, 1)


def adam(parameters):
    """An optimiser."""
    return torch.optim.Adam(parameters, lr=2e-3)


def halved(optimizer):
    """A scheduler."""
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


class Best:
    """A callback with a state: the highest validation accuracy so far, and the epochs it has seen."""

    def __init__(self):
        self.best, self.epochs = 0.0, []

    def on_epoch_end(self, trainer, metrics):
        self.best = max(self.best, metrics["val_robust_accuracy"])
        self.epochs.append(metrics["epoch"])

    def state_dict(self):
        return {"best": self.best, "epochs": list(self.epochs)}

    def load_state_dict(self, state):
        self.best, self.epochs = state["best"], list(state["epochs"])


def entropy(context):
    """A weighting: the less sure the network is of the adversarial input, the more it counts; mean 1 over the whole batch."""
    p = context.logits_adv.softmax(1)
    return context.mean_one(-(p * p.clamp_min(1e-12).log()).sum(1))


def sign_of_noise(context):
    """An inner attack: one step of the sign of noise, and of the gradient from there."""
    region = context.threat.around(context.x)
    point = region.random(context.rng).requires_grad_()
    loss = F.cross_entropy(context.model(point), context.y)
    (grad,) = torch.autograd.grad(loss, point)
    return region.step(point.detach(), grad, context.threat.eps)


def hinge(logits, y):
    """A loss of the inner attack."""
    return 1 - logits.gather(1, y[:, None]).squeeze(1) + logits.scatter(1, y[:, None], -torch.inf).amax(1)


def teacher():
    """A frozen network whose answers another one should keep."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    return net.eval().requires_grad_(False)


class Distilled(nn.Module):
    """An objective with a frozen teacher: CE at x', and KL from the teacher's answer at x."""

    needs = frozenset({"clean", "adversarial"})

    def __init__(self):
        super().__init__()
        self.teacher = teacher()

    def forward(self, context):
        soft = self.teacher(context.x).softmax(1)
        robust = F.cross_entropy(context.logits_adv, context.y, reduction="none")
        return robust, F.kl_div(context.logits.log_softmax(1), soft, reduction="none").sum(1)


class Averaged(nn.Module):
    """An objective that pulls the network towards a moving average of its own weights, kept by ``after_step``."""

    needs = frozenset({"adversarial"})

    def __init__(self, decay=0.9):
        super().__init__()
        self.decay, self.average = decay, None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, context):
        robust = F.cross_entropy(context.logits_adv, context.y, reduction="none")
        if self.average is None:
            return robust, torch.zeros_like(robust)
        with torch.no_grad():
            soft = self.average(context.x_adv).softmax(1)
        return robust, F.kl_div(context.logits_adv.log_softmax(1), soft, reduction="none").sum(1)

    @torch.no_grad()
    def after_step(self, model):
        if self.average is None:
            self.average = copy.deepcopy(model).eval().requires_grad_(False)
        for mine, theirs in zip(self.average.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs, 1 - self.decay)
        for mine, theirs in zip(self.average.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
        self.steps += 1

    def _load_from_state_dict(self, state_dict, prefix, *more):
        if self.average is None and any(key.startswith(f"{prefix}average.") for key in state_dict):
            self.average = network().eval().requires_grad_(False)
        super()._load_from_state_dict(state_dict, prefix, *more)


def network(input_shape=(3, 8, 8), classes=5):
    """A network."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(6 * 64, classes)
    )


def distilled(threat, steps=2, seed=0):
    """A method: distillation with weights by entropy, attacked by PGD on a hinge."""
    attack = hb.attacks.PGD(steps=steps, loss=hinge)
    return hb.Method(threat, attack=attack, objective=Distilled(), weighting=entropy, seed=seed)


def averaged(threat, seed=0):
    """A method: towards a moving average, at the inputs of an attack of her own."""
    return hb.Method(threat, attack=sign_of_noise, objective=Averaged(), weighting=entropy, seed=seed)


def straight(model, x, y, threat):
    """An attack of an evaluation: one step along the gradient."""
    point = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(point), y), point)
    return threat.around(x).step(x, grad, threat.eps)


def cheat(model, x, y, threat):
    """An attack that leaves the ball: it hands in another image."""
    return torch.rand_like(x)
