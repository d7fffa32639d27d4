"""The README's Python is run as it stands."""

import re
from pathlib import Path

import torch

import hauberk as hb

ROOT = Path(__file__).resolve().parents[1]


def test_the_readme_runs(tmp_path, monkeypatch, digits, capsys):
    monkeypatch.chdir(tmp_path)
    x, y = digits["train"].fetch(torch.arange(8))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    names = {"model": model, "x": x, "y": y, "epoch": 0}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert "robust accuracy at most" in capsys.readouterr().out
    assert model[1].weight.grad is not None


def test_every_command_and_attack_is_documented():
    from hauberk.attacks import PRESETS
    from hauberk.cli import COMMANDS

    manual = (ROOT / "docs" / "commands.md").read_text()
    for name in (*COMMANDS, *PRESETS):
        assert name in manual
    readme = (ROOT / "README.md").read_text()
    for name in hb.list_methods():
        assert f"`{name}`" in readme
