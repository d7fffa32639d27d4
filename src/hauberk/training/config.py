"""How to train: every knob with its default, free of torch so that the command line can show it at once."""

import math
from dataclasses import dataclass
from typing import Literal

from hauberk.core.errors import UserError


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the training loop. The method's own settings (attack, β) belong to the method."""

    epochs: int = 30
    """Number of passes over the training data."""
    batch_size: int = 128
    """Number of examples per step, over all processes."""
    lr: float = 0.1
    """Peak learning rate of SGD."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty of SGD."""
    schedule: Literal["steps", "cosine", "one-cycle"] = "one-cycle"
    """How the learning rate changes: divided by 10 at milestones, half a cosine, or up for 30 % and down (one-cycle)."""
    milestones: tuple[float, ...] = (75.0, 90.0)
    """Where "steps" divides by 10: the first epochs with the lower rate, from 1, or shares of the training where below 1."""
    eps_warmup: float = 0.0
    """Share of the training during which ε grows from 0. MNIST at 0.3 does not start to learn without it."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights, e.g. 0.999; 0 for none; -1 for 1 - 10 / steps, which
    averages over a tenth of the training. If on, the average is what is validated."""
    augment: Literal["auto", "none", "crop", "crop-flip"] = "auto"
    """Augmentation of images; "auto" is the usual one of a named data set, and none for other data."""
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = "none"
    """Weight of each class in the loss: none, inversely proportional to its frequency, or one number per class."""
    val_size: int = -1
    """Number of training examples held out to choose the best checkpoint; -1 for a tenth, at most 1000; 0 for none."""
    val_steps: int = 10
    """Number of steps of the PGD (ε/4, cross-entropy) that validation measures robust accuracy with."""
    unlabelled_share: float = 0.7
    """Share of each batch taken from unlabelled examples, where there are some (RST's and MART's practice: 0.7)."""
    patience: int = 0
    """Stop after this many epochs without a better validation result; 0 to never stop early."""
    seed: int = 0
    """Seed of the weights, the order of the data, augmentation and random starts."""
    threads: int = 0
    """Number of CPU threads; 0 leaves torch's choice. Results repeat bit for bit only with the same number."""
    device: str = "auto"
    """Device to run on: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1", ..."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Precision: fp32, or bf16 for attack and passes of the loss (losses and weights stay in float32); "auto" measures
    whether bf16 is faster here and agrees with float32, and the run records which it took."""
    compile: Literal["auto", "on", "off"] = "off"
    """Run the passes of the attack by torch.compile; "auto" measures whether that is faster here, and the run records it.
    Compiling costs seconds to minutes when the run starts."""
    on_divergence: Literal["stop", "rollback", "ignore"] = "stop"
    """When the loss is no longer finite, or robust accuracy collapses (catastrophic overfitting): stop; return to the best
    weights so far and go on with half the learning rate, three times at most; or ignore a collapse (never a loss)."""
    sync_batchnorm: bool = False
    """On several GPUs, normalise by the statistics of the whole batch instead of each GPU's part (SyncBatchNorm)."""
    save_minutes: float = 10.0
    """Minutes between checkpoints within an epoch; one is always saved at its end."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "val_size", "val_steps", "patience", "seed", "threads"):
            if not isinstance(getattr(self, name), int):
                raise UserError(f"{name} must be a whole number, got {getattr(self, name)!r}")
        positive = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr, "val_steps": self.val_steps}
        for name, value in positive.items():
            if not (value > 0 and math.isfinite(value)):
                raise UserError(f"{name} must be positive, got {value}")
        shares = {"momentum": self.momentum, "ema": 0.0 if self.ema == -1 else self.ema, "eps_warmup": self.eps_warmup}
        shares["unlabelled_share"] = self.unlabelled_share
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise UserError(f"{name} must be at least 0 and below 1, got {value}")
        others = {"weight_decay": self.weight_decay, "patience": self.patience, "threads": self.threads}
        for name, value in others.items():
            if not (value >= 0 and math.isfinite(value)):
                raise UserError(f"{name} must not be negative, got {value}")
        if any(not m > 0 for m in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise UserError(f"milestones must be positive and rising, got {self.milestones}")
        choices = {
            "schedule": ("steps", "cosine", "one-cycle"),
            "augment": ("auto", "none", "crop", "crop-flip"),
            "precision": ("auto", "fp32", "bf16"),
            "compile": ("auto", "on", "off"),
            "on_divergence": ("stop", "rollback", "ignore"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")
