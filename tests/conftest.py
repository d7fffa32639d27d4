import os
from dataclasses import replace

# One thread for all that the tests start, too: processes with more of them than there are cores wait for each other.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before torch is imported

import pytest
import torch

import hauberk as hb
from hauberk.attacks.presets import AUTOATTACK, PRESETS
from hauberk.methods import registry

pytest.register_assert_rewrite("helpers")
import helpers

# Programs: one needs atheris, the other a library that has to be loaded before torch.
collect_ignore = ["system/fuzz_readers.py", "cuda/cases.py"]


def pytest_addoption(parser):
    parser.addoption(
        "--long", action="store_true", help="tests in their long form: more kills, more hostile files, longer training"
    )


def pytest_configure(config):
    helpers.LONG = config.getoption("long")


def pytest_collection_modifyitems(items):
    """What takes long comes first, so that no process is left alone with it at the end."""
    rooms = ("system", "experiments", "cli", "methods", "evaluation", "report", "training")

    def rank(item):
        room = item.path.parent.name if item.path.is_relative_to(helpers.TESTS) else ""
        return rooms.index(room) if room in rooms else len(rooms)

    items.sort(key=rank)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded():
    """A test that draws weights or inputs draws the same ones alone, in any order and in any process."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _registered_methods(monkeypatch):
    """A method that a test registers is known to that test alone."""
    monkeypatch.setattr(registry, "_BUILDERS", {**registry._BUILDERS})


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
        shorter = replace(preset.attack, steps=preset.attack.steps // 10)
        monkeypatch.setitem(PRESETS, name, replace(preset, attack=shorter))


@pytest.fixture(scope="session")
def digits():
    return {split: hb.data.load_data("digits", split) for split in ("train", "test")}
