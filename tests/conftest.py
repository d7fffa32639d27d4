from dataclasses import replace

import pytest
import torch

import hauberk as hb
from hauberk.attacks.presets import AUTOATTACK, PRESETS

pytest.register_assert_rewrite("helpers")
collect_ignore = ["system/fuzz_readers.py"]  # a program, which needs atheris


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def short_autoattack(monkeypatch):
    """AutoAttack with a tenth of its steps, so that tests are quick."""
    for name in AUTOATTACK:
        preset = PRESETS[name]
        shorter = replace(preset.settings, steps=preset.settings.steps // 10)
        monkeypatch.setitem(PRESETS, name, replace(preset, settings=shorter))


@pytest.fixture(scope="session")
def digits():
    return {split: hb.data.load_data("digits", split) for split in ("train", "test")}
