"""What can be known of CUDA without a GPU: no operation mixes devices, the host never waits, and little is launched."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hauberk
from simulated_gpu import build

HERE, SOURCES = Path(__file__).parent, Path(hauberk.__file__).parent
# Launches beside those of the passes: of a training step with 2 attack steps, and of one attack step more. They may fall.
MOST, MOST_OF_AN_ATTACK_STEP = 200, 8
# Friendly examples leave one by one; MMA looks at ten points of a line; the evading loss has two maxima; bounds of every layer,
# and their gradients, are two forwards and more of which the step's own passes are none; AdaAD and SAAD look
# at a teacher at each point; UIAT takes each attack step twice.
FORMULA_NEEDS_MORE = {
    "fat": (220, 65), "fat-trades": (220, 65), "fat-mart": (220, 65), "mma": (400, 15), "adversarial-class": (200, 27),
    "ibp": (600, 8), "crown-ibp": (600, 8), "sabr": (680, 8), "gair-fat": (220, 65), "mm-at": (520, 90),
    "e-at": (200, 40), "max-at": (200, 40), "ramp": (200, 40),  # they keep the best point
    "adaad": (200, 15), "uiat": (300, 16), "uiat-trades": (300, 16), "saad": (300, 27),
}  # fmt: skip


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    if not sys.platform.startswith("linux") or shutil.which("g++") is None or torch.version.cuda:
        pytest.skip("needs Linux, g++ and a CPU build of torch")
    return build(tmp_path_factory.mktemp("simulated"))


def run(library, group, only="", sources=SOURCES.parent):
    """Run cases in a process of its own; returns what each showed, and what went wrong."""
    environment = {**os.environ, "HAUBERK_SIMULATED_GPU": str(library), "PYTHONPATH": f"{sources}{os.pathsep}{HERE}"}
    command = [sys.executable, "-W", "ignore", str(HERE / "cases.py"), group, only]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    return {case.pop("case"): case for case in cases}, done.stderr if done.returncode else ""


def limits(case):
    return FORMULA_NEEDS_MORE.get(case.split()[0], (MOST, MOST_OF_AN_ATTACK_STEP))


def test_steps_by_hand(library):
    cases, problem = run(library, "methods")
    assert not problem, problem[-3000:]
    assert len(cases) == len(hauberk.list_methods()) + 5
    for case, found in cases.items():
        friendly = case.startswith(("fat", "gair-fat"))  # the host has to know who has left
        assert found["waits"] <= 2 * friendly, (case, found["where"])
        assert found["waits an attack step"] <= friendly, (case, found["where"])
        beside, of_an_attack_step = limits(case)
        assert found["beside"] <= beside, (case, found["operations"])
        assert found["beside an attack step"] <= of_an_attack_step, (case, found["operations"])


def test_steps_by_hand_with_numbers_for_each_feature(library):
    cases, problem = run(library, "features")
    assert not problem, problem[-3000:]
    assert len(cases) == len(hauberk.list_methods())
    assert not {case: found["where"] for case, found in cases.items() if found["waits"] and "fat" not in case}


def test_steps_of_attacks_on_rows_that_are_not_in_step(library):
    cases, problem = run(library, "attacks")
    assert not problem, problem[-3000:]
    norms = [hauberk.threat.NORMS[name] for name in ("Linf", "L2", "L1", "L0", "Linf")]  # the last for ε per feature
    assert len(cases) == sum(one.attack.defined_in(norm) for one in hauberk.attacks.PRESETS.values() for norm in norms)
    assert not {case: found["where"] for case, found in cases.items() if found["waits"]}


def test_steps_of_training_with_what_public_codes_set(library):
    cases, problem = run(library, "recipes")
    assert not problem, problem[-3000:]
    assert len(cases) == len(hauberk.data.AUGMENTATIONS) + 2
    assert not {case: found["where"] for case, found in cases.items() if found["waits"]}


def test_steps_of_training_between_two_looks(library):
    cases, problem = run(library, "training")
    assert not problem, problem[-3000:]
    assert len(cases) == 9
    for case, found in cases.items():
        assert found["waits"] <= 2 * case.startswith("fat"), (case, found["where"])
        assert found["beside"] <= limits(case)[0], (case, found["operations"])


def test_evaluations(library):
    cases, problem = run(library, "evaluation")
    assert not problem, problem[-3000:]
    assert set(cases) == {"model", "fp32", "tf32", "bf16"}
    once = ("outside of the package", "data/fetch.py")  # the network, and the examples, which stay on the device
    for case, found in cases.items():
        sent = [place for place in found["where"] if "to the device" in place and not place.startswith(once)]
        assert not sent, case


def test_certificates(library):
    cases, problem = run(library, "certificates")
    assert not problem, problem[-3000:]
    assert len(cases) == 5
    proved = [proof for case, found in cases.items() if case != "smoothing" for proof in found["there"]]
    assert {"crown-ibp", "crown", "branch-and-bound"} <= set(proved)
    for case, found in cases.items():
        assert found["there"] == found["here"], case
        assert not [place for place in found["where"] if place.startswith("certification/bounds") and "to the device" in place]


MUTANTS = {
    "a forgotten device": ("core/random.py", "torch.arange(1, count + 1, device=device)", "torch.arange(1, count + 1)"),
    "a number that is read": ("attacks/pgd.py", "        start = point\n", "        start = point + grad.sum().item()\n"),
    "a copy that waits": ("core/device.py", "values.pin_memory().to(device, non_blocking=True)", "values.to(device)"),
    "a mask": ("weighting/mail.py", "    return 3.0 * raw if", "    raw[raw < 0] = 0\n    return 3.0 * raw if"),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_what_is_wrong_is_noticed(library, tmp_path, mutant):
    shutil.copytree(SOURCES, tmp_path / "hauberk", ignore=shutil.ignore_patterns("__pycache__"))
    name, old, new = MUTANTS[mutant]
    file = tmp_path / "hauberk" / name
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    cases, problem = run(library, "training", "mail-trades", sources=tmp_path)
    assert "DeviceMismatch" in problem or any(found["waits"] for found in cases.values()), problem
