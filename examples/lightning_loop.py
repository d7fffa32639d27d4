"""A method of Hauberk in a Lightning module: one line in training_step, an attack in validation_step.

pip install lightning        # 2.6.4 or newer
python examples/lightning_loop.py
"""

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hauberk as hb


class Robust(lightning.LightningModule):
    """A classifier trained by MAIL-TRADES, validated under PGD."""

    def __init__(self, net: nn.Module, threat: hb.ThreatModel, epochs: int):
        super().__init__()
        self.net, self.threat = net, threat
        self.method = hb.method("mail-trades", threat, burn_in=1).with_schedule(epochs, first_drop=1)

    def training_step(self, batch: Any, place: int) -> Tensor:
        """Attack, objective and weights are one call; ``out.loss`` has the graph."""
        x, y = batch
        out = self.method(self.net, x, y, epoch=self.current_epoch)
        self.log_dict({f"train_{name}": value for name, value in out.report.items()})
        return out.loss

    def validation_step(self, batch: Any, place: int) -> None:
        """Measure PGD-10 accuracy. Lightning switches gradients off here, and attacks need them: inference_mode=False below."""
        x, y = batch
        found = hb.attacks.pgd(self.net, x, y, self.threat, seed=place)
        self.log("val_robust_accuracy", (~found.success).float().mean(), prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what fixes the random starts, so that a resumed training goes on as it would have."""
        checkpoint["method"] = self.method.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there."""
        self.method.load_state_dict(checkpoint["method"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main() -> None:
    """Train for a few epochs on digits."""
    torch.set_num_threads(1)
    lightning.seed_everything(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    train, test = (hb.data.load_data("digits", split) for split in ("train", "test"))
    loaders = [DataLoader(TensorDataset(part.x, part.y), 128, shuffle=part is train) for part in (train, test)]
    trainer = lightning.Trainer(
        max_epochs=5, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, inference_mode=False
    )
    trainer.fit(Robust(net, hb.Linf(0.05), epochs=5), *loaders)
    print(f"PGD-10 accuracy {float(trainer.callback_metrics['val_robust_accuracy']):.1%}")
    print(hb.evaluate(net, test, threat=hb.Linf(0.05), n=100, quiet=True))


if __name__ == "__main__":
    main()
