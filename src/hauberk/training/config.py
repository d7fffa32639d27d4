"""How to train: every setting with its default. Free of torch, so that the command line shows it at once."""

from dataclasses import dataclass
from typing import Literal

from hauberk.core.arguments import check_fields
from hauberk.core.errors import UserError

OPTIMIZERS = ("sgd", "adamw")
_OF_SGD = ("momentum", "nesterov")
_OF_SCHEDULE = ("schedule", "milestones", "decay_rate", "pct_start", "warmup_epochs")
_MOST_THREADS = 1024
_POSITIVE = "epochs", "batch_size", "lr", "val_steps", "save_minutes", "again_tries"
_MAY_BE_0 = "weight_decay", "patience", "threads", "clip_grad", "swa_start", "save_every", "mixup", "cutmix", "again_threshold"


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
    optimizer: str = "sgd"
    """Optimizer: sgd, adamw, or your own: package.module:attribute, a callable from parameters to a torch optimizer."""
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov's form of the momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay: with SGD an L2 penalty, with AdamW decoupled."""
    filter_bias_and_bn: bool = False
    """Leave out biases and the parameters of normalisation layers from weight decay."""
    clip_grad: float = 0.0
    """Scale the gradient of a step down to this L2 norm where it is larger; 0 for never."""
    schedule: Literal["steps", "cosine", "one-cycle", "linear", "triangular"] = "one-cycle"
    """How the learning rate changes: times decay-rate at milestones; down to 0 by half a cosine, or in a straight line; up and
    down in cosines (one-cycle), or in straight lines from 0 to 0 (triangular)."""
    milestones: tuple[float, ...] = (75.0, 90.0)
    """Where "steps" lowers the rate: the first epochs with the lower rate, from 1, or parts of the training where below 1."""
    decay_rate: float | tuple[float, ...] = 0.1
    """What "steps" multiplies the rate by at milestones: one number, or one for each."""
    pct_start: float = -1.0
    """Part of "one-cycle" and "triangular" in which the rate rises; -1 for the usual 0.3 of the one and 0.5 of the other."""
    warmup_epochs: float = 0.0
    """Epochs in which the rate grows to its peak in a straight line before the schedule; "steps" counts them among its own."""
    scheduler: str = ""
    """Your own schedule: package.module:attribute, a callable from an optimizer to a torch learning-rate scheduler."""
    scheduler_interval: Literal["epoch", "step"] = "epoch"
    """Step your own scheduler after each epoch or after each step."""
    eps_warmup: float = 0.0
    """Part of the training during which ε grows from 0. MNIST at 0.3 does not start to learn without it."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights, e.g. 0.999; 0 for none; -1 for 1 - 10 / steps, which
    averages over a tenth of the training. If on, the average is what is validated."""
    ema_warmup: bool = False
    """Let that decay grow with the number n of steps, as min(ema, (1 + n) / (10 + n))."""
    swa_start: float = 0.0
    """First epoch, from 1, or part of the training where below 1, from which on the weights at the ends of epochs are averaged
    equally (SWA); 0 for none. The average is what is validated."""
    fawa: float = 0.0
    """Decay of the moving average of the weights at the ends of those epochs in which the network is robust enough on every
    class of the held-out examples (FAWA of CFA: 0.88); 0 for none. The average is what is validated."""
    fawa_threshold: float = 0.2
    """How robust that is: the least robust accuracy of the worst class of held-out examples, a part of 1."""
    augment: str = "auto"
    """Augmentation: none, crop, crop-flip, crop-flip-reflect, flip, crop-shift, cutout, random-erasing, autoaugment,
    randaugment, idbh-weak, idbh-strong, idbh-svhn, or several such as crop-flip+cutout; or package.module:attribute for your
    own. auto is the usual one of a named data set, and none for other data."""
    augment_again: str = "none"
    """Augmentation, one of the names of augment, by which examples that are learned by heart are augmented again, in the second
    half of the training, until their loss is large (DOM-DA; randaugment in its paper)."""
    again_threshold: float = 1.5
    """The cross-entropy, in training mode, from which on augment-again leaves an example as it is."""
    again_tries: int = 2
    """How often augment-again tries at most; the last try is taken in any case."""
    again_share: float = 0.0
    """How far augment-again moves an example to a try that is not the last, and not hard enough: a part of the way."""
    mixup: float = 0.0
    """α of MixUp, which mixes each example and its label with another one of its batch; 0 for none."""
    cutmix: float = 0.0
    """α of CutMix, likewise by a rectangle; 0 for none. With both, every other example is mixed in the one way."""
    mixup_prob: float = 1.0
    """Part of the examples that MixUp and CutMix mix at all."""
    callbacks: tuple[str, ...] = ()
    """Called with the metrics of each epoch: package.module:attribute of each callback."""
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = "none"
    """Weight of each class in the loss: none, inversely proportional to its frequency in the training part (extra examples are
    not counted), or one number per class."""
    val_size: int = -1
    """Number of training examples held out to choose the best checkpoint; -1 for a tenth, at most 1000; 0 for none."""
    val_steps: int = 10
    """Number of steps of the PGD (ε/4, cross-entropy, its last point) that validation measures robust accuracy with."""
    extra_share: float = 0.7
    """Part of each batch taken from extra examples, where there are some (0.7: RST's and MART's practice)."""
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
    save_every: int = 0
    """Keep the weights of every so many epochs, too, as epoch-N; 0 for none."""
    save_minutes: float = 10.0
    """Minutes between checkpoints within an epoch; one is always saved at its end."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.eps_warmup <= 1:
            raise UserError(f"eps_warmup is a part of the training, from 0 to 1, not {self.eps_warmup}")
        for name in ("momentum", "ema", "fawa", "extra_share", "pct_start"):
            if not 0 <= getattr(self, name) < 1 and (name, getattr(self, name)) not in (("ema", -1), ("pct_start", -1)):
                raise UserError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        for name in _MAY_BE_0:
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.again_share <= 1:
            raise UserError(f"again_share is a part, from 0 to 1, not {self.again_share}")
        if not 0 < self.mixup_prob <= 1:
            raise UserError(f"mixup_prob must be above 0 and at most 1, got {self.mixup_prob}")
        if self.val_size < -1:
            raise UserError(f"val_size must be -1 (a tenth), 0 (none) or a number of examples, got {self.val_size}")
        if self.threads > _MOST_THREADS:
            raise UserError(f"threads must be at most {_MOST_THREADS}, got {self.threads}")
        if any(not m > 0 for m in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise UserError(f"milestones must be positive and rising, got {self.milestones}")
        if not all(rate > 0 for rate in self.decay_rates):
            raise UserError(f"decay_rate must be positive, got {self.decay_rate}")
        if self.schedule == "steps" and len(self.decay_rates) != len(self.milestones):
            raise UserError(
                f"decay_rate is one number, or one for each of {len(self.milestones)} milestones, got {self.decay_rate}"
            )
        if not 0 <= self.warmup_epochs < self.epochs:
            raise UserError(f"warmup_epochs must be at least 0 and less than epochs ({self.epochs}), got {self.warmup_epochs}")
        if self.nesterov and self.optimizer == "sgd" and not self.momentum:
            raise UserError("nesterov is a form of momentum, which is 0; leave out one of them")
        averages = [name for name in ("ema", "swa_start", "fawa") if getattr(self, name)]
        if len(averages) > 1:
            raise UserError(f"{averages[0]} and {averages[1]} are two averages of the weights; leave out one of them")
        if not 0 <= self.fawa_threshold <= 1:
            raise UserError(f"fawa_threshold is an accuracy, from 0 to 1, not {self.fawa_threshold}")
        if self.ema_warmup and not self.ema:
            raise UserError("ema_warmup is of the moving average of the weights; set ema, too")
        if self.swa_start >= self.epochs + 1:
            raise UserError(f"swa_start = {self.swa_start:g} is after the last epoch, {self.epochs}: nothing would be averaged")

    @property
    def decay_rates(self) -> tuple[float, ...]:
        """What the rate is multiplied by at each milestone."""
        return self.decay_rate if isinstance(self.decay_rate, tuple) else (self.decay_rate,) * len(self.milestones)

    @property
    def has_own_optimizer(self) -> bool:
        """Whether the optimizer is somebody's own."""
        return self.optimizer not in OPTIMIZERS

    @property
    def replaced(self) -> dict[str, str]:
        """The fields that the choice of optimizer and scheduler makes meaningless, and by what."""
        own = "an own scheduler" if self.scheduler else "an own optimizer" if self.has_own_optimizer else ""
        found = dict.fromkeys(_OF_SCHEDULE if own else (), own)
        if self.has_own_optimizer:
            found |= dict.fromkeys(("lr", *_OF_SGD, "weight_decay", "filter_bias_and_bn"), "an own optimizer")
        elif self.optimizer != "sgd":
            found |= dict.fromkeys(_OF_SGD, self.optimizer)
        return found
