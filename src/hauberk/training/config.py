"""How to train: every setting with its default. Free of torch, so that the command line shows it at once."""

from dataclasses import dataclass
from typing import Literal

from hauberk.core.arguments import check_fields
from hauberk.core.errors import UserError

_MOST_THREADS = 1024


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the training loop. The method's own settings (attack, β) belong to the method.

    Where a name may be ``package.module:attribute``, that object is imported. What is passed to ``hb.train`` as an object is
    recorded here as ``python:`` and its qualified name.
    """

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
    """Where "steps" divides by 10: the first epochs with the lower rate, from 1, or parts of the training where below 1."""
    optimizer: str = ""
    """Your own optimizer in place of SGD: package.module:attribute, a callable from parameters to a torch optimizer."""
    scheduler: str = ""
    """Your own schedule: package.module:attribute, a callable from an optimizer to a torch learning-rate scheduler."""
    scheduler_interval: Literal["epoch", "step"] = "epoch"
    """Step your own scheduler after each epoch or after each step."""
    eps_warmup: float = 0.0
    """Part of the training during which ε grows from 0. MNIST at 0.3 does not start to learn without it."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights, e.g. 0.999; 0 for none; -1 for 1 - 10 / steps, which
    averages over a tenth of the training. If on, the average is what is validated."""
    augment: str = "auto"
    """Augmentation: crop, crop-flip, none, or package.module:attribute for your own; auto is the usual one of a named data
    set, and none for other data."""
    callbacks: tuple[str, ...] = ()
    """Called with the metrics of each epoch: package.module:attribute of each callback."""
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = "none"
    """Weight of each class in the loss: none, inversely proportional to its frequency, or one number per class."""
    val_size: int = -1
    """Number of training examples held out to choose the best checkpoint; -1 for a tenth, at most 1000; 0 for none."""
    val_steps: int = 10
    """Number of steps of the PGD (ε/4, cross-entropy, its last point) that validation measures robust accuracy with."""
    unlabelled_share: float = 0.7
    """Part of each batch taken from unlabelled examples, where there are some (RST's and MART's practice: 0.7)."""
    patience: int = 0
    """Stop after this many epochs without a better validation result; 0 to never stop early."""
    seed: int = 0
    """Seed of the weights, the order of the data, augmentation and random starts."""
    threads: int = 0
    """Number of CPU threads; 0 leaves torch's choice. Results repeat bit for bit only with the same number."""
    device: str = "auto"
    """Device to run on: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1", ..."""
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "fp32"
    """Precision: fp32, true float32; tf32, the same with TF32 allowed on CUDA; or bf16 for attack and passes of the loss
    (losses and weights stay in float32). "auto" measures which is faster here and agrees with float32, and the run records
    which it took."""
    compile: Literal["auto", "on", "off"] = "off"
    """Run the passes of the attack by torch.compile; "auto" measures whether that is faster here, and the run records it.
    Compiling costs 20 to 60 s when the run starts, and as much again where passes without gradients are needed too."""
    deterministic: bool = True
    """On CUDA, choose kernels that compute the same bits each time, so that the same seed gives the same weights, after any
    interruption, too; they can be slower. Off is faster and repeats up to rounding only. On a CPU it changes nothing."""
    on_divergence: Literal["stop", "rollback", "ignore"] = "stop"
    """When the loss is no longer finite, or robust accuracy collapses (catastrophic overfitting): stop; return to the best
    weights so far and go on with half the learning rate, three times at most; or ignore a collapse (never a loss)."""
    sync_batchnorm: bool = False
    """On several GPUs, normalise by the statistics of the whole batch instead of each GPU's part (SyncBatchNorm)."""
    save_minutes: float = 10.0
    """Minutes between checkpoints within an epoch; one is always saved at its end."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("epochs", "batch_size", "lr", "val_steps", "save_minutes"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("momentum", "ema", "eps_warmup", "unlabelled_share"):
            if not 0 <= getattr(self, name) < 1 and (name, getattr(self, name)) != ("ema", -1):
                raise UserError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        for name in ("weight_decay", "patience", "threads"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.val_size < -1:
            raise UserError(f"val_size must be -1 (a tenth), 0 (none) or a number of examples, got {self.val_size}")
        if self.threads > _MOST_THREADS:
            raise UserError(f"threads must be at most {_MOST_THREADS}, got {self.threads}")
        if any(not m > 0 for m in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise UserError(f"milestones must be positive and rising, got {self.milestones}")

    @property
    def replaced(self) -> dict[str, str]:
        """The fields that an own optimizer or scheduler makes meaningless, and which of the two."""
        by_optimizer = dict.fromkeys(("lr", "momentum", "weight_decay") if self.optimizer else (), "optimizer")
        own = "scheduler" if self.scheduler else "optimizer"
        return by_optimizer | dict.fromkeys(("schedule", "milestones") if self.scheduler or self.optimizer else (), own)
