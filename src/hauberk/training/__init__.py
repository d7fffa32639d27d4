"""The training loop, its schedules, checkpoints and exported models."""

from hauberk.training.card import load, read_card
from hauberk.training.export import export_model
from hauberk.training.run import Run, pick_device, resume, train

__all__ = ["Run", "export_model", "load", "pick_device", "read_card", "resume", "train"]
