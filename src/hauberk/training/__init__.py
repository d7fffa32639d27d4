"""The training loop, its schedules, checkpoints and exported models."""

from typing import TYPE_CHECKING

from lazy_loader import attach

if TYPE_CHECKING:
    from hauberk.training.callbacks import MetricsLog as MetricsLog
    from hauberk.training.callbacks import TensorBoardLog as TensorBoardLog
    from hauberk.training.export import export_model as export_model
    from hauberk.training.export import load as load
    from hauberk.training.export import read_card as read_card
    from hauberk.training.resume import resume as resume
    from hauberk.training.train import Run as Run
    from hauberk.training.train import pick_device as pick_device
    from hauberk.training.trainer import Trainer as Trainer

# Loaded when first used: the command line reads the defaults of ``config`` before there is any need of torch.
__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "callbacks": ["MetricsLog", "TensorBoardLog"],
        "export": ["export_model", "load", "read_card"],
        "resume": ["resume"],
        "train": ["Run", "pick_device"],
        "trainer": ["Trainer"],
    },
)
