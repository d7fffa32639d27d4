"""What training on several processes adds: a wrapper that averages gradients, and BatchNorm that agrees."""

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hauberk.core.distributed import World
from hauberk.core.errors import UserError
from hauberk.methods import Method, Step


def in_parallel(model: nn.Module, method: Method, world: World) -> nn.Module:
    """Return the step to call, whose backward pass averages gradients where there are several processes."""
    step = Step(model, method)
    return step if world.size == 1 else DistributedDataParallel(step, gradient_as_bucket_view=True)


def synchronise_batchnorm(model: nn.Module, method: Method, device: torch.device) -> nn.Module:
    """Let every BatchNorm layer normalise by the statistics of the whole batch, over all processes.

    Raises:
        UserError: where torch cannot, and where attacks would have to wait for those of other processes.
    """
    if device.type != "cuda":
        raise UserError("synchronised BatchNorm needs GPUs: torch has none for CPUs; leave out --sync-batchnorm")
    if method.attack is not None and method.attack.mode == "train":
        raise UserError("an attack in training mode cannot run with synchronised BatchNorm; leave out one of them")
    synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return synchronised


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return the running means and variances of BatchNorm layers, which each process moves by its own part of a batch.

    Averaged after each step, they are equal everywhere: means are those of the whole batch (for parts of equal size), variances
    the average of those within the parts.
    """
    found = [getattr(module, name, None) for module in model.modules() for name in ("running_mean", "running_var")]
    return [value for value in found if isinstance(value, Tensor)]
