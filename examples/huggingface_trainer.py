"""A method of Hauberk in Hugging Face's Trainer: compute_loss is the one line.

pip install transformers accelerate
python examples/huggingface_trainer.py
"""

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import hauberk as hb

EPOCHS = 5


class Examples(torch.utils.data.Dataset):
    """Pairs as the dictionaries that the Trainer wants."""

    def __init__(self, source: Any):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": self.source.x[i], "labels": self.source.y[i]}


class Net(nn.Module):
    """From continuous inputs to logits; the Trainer calls it by keyword, attacks by position."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, 1, 8, 8) -> (B, 10)."""
        logits: Tensor = self.layers(x)
        return logits


class RobustTrainer(Trainer):
    """Trainer whose loss is that of a method."""

    def __init__(self, *args: Any, method: hb.Method, **more: Any):
        super().__init__(*args, **more)
        self.method = method

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """Attack, objective and weights are one call."""
        out = self.method(model, inputs["x"], inputs["labels"], epoch=int(self.state.epoch or 0))
        return (out.loss, {"logits": out.logits_adv}) if return_outputs else out.loss


def main() -> None:
    """Train for a few epochs on digits."""
    torch.set_num_threads(1)
    train, test = (hb.data.load_data("digits", split) for split in ("train", "test"))
    net, threat = Net(), hb.Linf(0.05)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=64,
            learning_rate=2e-3,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            remove_unused_columns=False,
            seed=0,
        )
        method = hb.method("mart", threat)
        RobustTrainer(net, settings, train_dataset=Examples(train), method=method).train()
    print(hb.evaluate(net.eval(), test, threat=threat, n=100, quiet=True))


if __name__ == "__main__":
    main()
