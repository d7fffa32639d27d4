"""torch's float32 switches and deterministic algorithms: set inside, and exactly as they were outside."""

import importlib
import json
import os
from contextlib import contextmanager, suppress

import pytest
import torch
from torch import nn

import hauberk as hb
from hauberk.core.numerics import deterministic_mode, float32_mode, float32_switches
from helpers import easy_data, settings, tiny_batch, tiny_net

GENERAL = (("generic", "all"), ("cuda", "all"), ("mkldnn", "all"))
OPERATIONS = tuple((backend, op) for backend in ("cuda", "mkldnn") for op in ("conv", "rnn", "matmul"))
THREAT = hb.Linf(0.05)
TRUE = dict.fromkeys(float32_switches(), "ieee")
TF32 = {name: "tf32" if name.startswith("cuda") else "ieee" for name in TRUE}
INSIDE = {"fp32": TRUE, "tf32": TF32, "bf16": TRUE}


def read(switch):
    return torch._C._get_fp32_precision_getter(*switch)


def write(**values):
    for name, value in values.items():
        torch._C._set_fp32_precision_setter(*name.split("_"), value)


@pytest.fixture(autouse=True)
def switches_of_a_new_process():
    def reset():
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("highest")
        write(**{"_".join(switch): "none" for switch in (*GENERAL, *OPERATIONS)})
        write(cuda_conv="tf32", cuda_rnn="tf32")

    reset()
    yield
    reset()


def older():
    def asked(get):
        try:
            return get()
        except RuntimeError:  # a mixture of both kinds
            return "refused"

    return asked(lambda: torch.backends.cudnn.allow_tf32), asked(torch.get_float32_matmul_precision)


def everything():
    """All switches as they show, and as they follow the general ones, which tells those that inherit from those that do not."""
    found = [{switch: read(switch) for switch in (*GENERAL, *OPERATIONS)}, older()]
    kept = {"_".join(switch): read(switch) for switch in GENERAL}
    own = {}
    write(generic_all="none")
    for name in ("cuda_all", "mkldnn_all"):
        own[name] = read(tuple(name.split("_")))
        for value in ("ieee", "tf32"):
            write(**{name: value})
            found.append(({switch: read(switch) for switch in OPERATIONS}, older()))
    write(generic_all=kept["generic_all"], **own)
    return found, own


def nothing():
    pass


def older_switches():
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = False


def newer_switches():
    write(generic_all="tf32", cuda_matmul="ieee", mkldnn_all="bf16", mkldnn_conv="ieee")


def both():
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    write(mkldnn_matmul="bf16", cuda_all="tf32")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("caller", [nothing, older_switches, newer_switches, both])
def test_switches_are_set_inside_and_as_they_were_outside(caller, precision):
    caller()
    before = everything()
    wanted = (True, "high") if precision == "tf32" else (False, "highest")

    def check():
        assert float32_switches() == INSIDE[precision]
        assert older() == wanted  # torch's compiler reads these

    with float32_mode(precision):
        check()
        with float32_mode("tf32" if precision == "fp32" else "fp32"):
            assert float32_switches() != INSIDE[precision] or precision == "bf16"
        check()
        with float32_mode("model"):
            check()
    assert everything() == before
    with pytest.raises(KeyError), float32_mode(precision):
        raise KeyError
    assert everything() == before


SEEN = []


class Probe(nn.Module):
    """A network that notes, in each pass, its mode, rows, whether there is a graph, and torch's switches; and in backward."""

    def __init__(self):
        super().__init__()
        self.net = tiny_net()

    def forward(self, x):
        if x.sum() < -1:  # so that it cannot be traced, and its copy notes as well
            return x
        SEEN.append(("forward", self.training, len(x), x.requires_grad, float32_switches()))
        logits = self.net(x)
        if logits.requires_grad:
            backward = "backward", self.training, len(x), x.requires_grad
            logits.register_hook(lambda grad: SEEN.append((*backward, float32_switches())))
        return logits


@pytest.fixture
def probe():
    SEEN.clear()
    return Probe()


def seen(**wanted):
    """The distinct switches of passes of a kind."""
    names = "way", "training", "rows", "attacks"
    kept = [case[-1] for case in SEEN if all(case[names.index(name)] == value for name, value in wanted.items())]
    return [dict(pairs) for pairs in {tuple(one.items()) for one in kept}]


@pytest.mark.parametrize("precision", ["model", "fp32", "tf32", "bf16"])
def test_a_method_computes_in_its_precision_and_leaves_the_callers(precision, probe):
    older_switches()
    mine = float32_switches()
    expected = INSIDE.get(precision, mine)
    x, y = tiny_batch()
    hb.method("at+awp", THREAT, steps=2, precision=precision, awp_warmup=0)(probe.train(), x, y)
    assert seen(way="backward", training=True) == [expected]  # where AWP takes gradients
    loss = hb.method("trades", THREAT, steps=2, precision=precision)(probe, x, y).loss
    found = seen()
    assert all(one in (expected, TRUE) for one in found)  # a copy is compared in true float32
    assert expected in found
    assert seen(training=True) == [expected]
    assert float32_switches() == mine
    SEEN.clear()
    with hb.float32_mode(precision):
        loss.backward()
    assert seen(way="backward", training=True) == [expected]

    class Broken(Probe):
        def forward(self, x):
            raise RuntimeError("no")

    with pytest.raises(hb.UserError, match="RuntimeError: no"):
        hb.method("at", THREAT, precision=precision)(Broken(), x, y)
    assert float32_switches() == mine


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_training_computes_in_its_precision_and_validates_in_true_float32(precision, probe, tmp_path):
    older_switches()
    before = everything()
    how = settings(precision=precision, epochs=1, val_size=12, ema=0.5)
    hb.train(probe, easy_data(), method="at", threat=THREAT, out=tmp_path, **how)
    for way in ("forward", "backward"):
        assert seen(way=way, training=True) == [INSIDE[precision]]
    verdicts = [case for case in SEEN if case[:4] == ("forward", False, 12, False)]
    assert [case[-1] for case in verdicts] == [TRUE, TRUE]  # clean, and at the point found
    attack = [case for case in SEEN if case[:4] == ("forward", False, 12, True)]
    assert [case[-1] for case in attack] == [INSIDE[precision]] * how["val_steps"]
    assert everything() == before
    assert json.loads((tmp_path / "best.json").read_text())["float32"] == INSIDE[precision]


@pytest.mark.parametrize("precision", ["model", "fp32", "tf32", "bf16"])
def test_an_evaluation_attacks_in_its_precision_and_judges_in_true_float32(precision, probe):
    older_switches()
    mine, before = float32_switches(), everything()
    expected = INSIDE.get(precision, mine)
    x, _ = tiny_batch(24)
    y = probe.eval()(x).argmax(1)
    SEEN.clear()
    how = {"threat": hb.Linf(0.1), "diagnostics": [], "batch_size": 24, "quiet": True, "precision": precision}
    result = hb.evaluate(probe, (x, y), attacks=["pgd-20"], **how)
    assert result.robust_accuracy < 1  # there were verdicts, in passes of an eighth of the batch
    assert seen(rows=3, attacks=False) == [TRUE]
    tried = [TRUE] if precision == "tf32" else []  # the form for attacks without gradients: how many rows it may have
    assert sorted(map(str, seen(rows=24, attacks=True))) == sorted(map(str, [expected, *tried]))
    SEEN.clear()
    hb.evaluate(probe, (x, y), attacks=[hb.attacks.Square(steps=6)], **how)
    assert all(one in (TRUE, mine if precision == "model" else TRUE) for one in seen(rows=24, attacks=False))
    assert result.provenance["float32"] == expected
    assert everything() == before


def test_deterministic_kernels_are_chosen_inside_and_on_cuda_only(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)

    def state():
        cudnn, fill = torch.backends.cudnn, torch.utils.deterministic.fill_uninitialized_memory
        chosen = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        return cudnn.deterministic, cudnn.benchmark, *chosen, fill, os.environ.get("CUBLAS_WORKSPACE_CONFIG")

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = state()
    with deterministic_mode(torch.device("cpu"), algorithms=True):
        assert state() == before
    with suppress(KeyError), deterministic_mode(torch.device("cuda"), algorithms=True):
        assert state() == (True, False, True, True, False, ":4096:8")
        raise KeyError
    assert state() == before
    with deterministic_mode(torch.device("cuda"), algorithms=False):
        assert state() == (True, False, *before[2:])
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.use_deterministic_algorithms(True)
    try:
        with deterministic_mode(torch.device("cuda"), algorithms=True):
            assert state() == (True, False, True, False, False, ":16:8")  # the caller wanted errors
        assert state() == (*before[:2], True, False, True, ":16:8")
    finally:
        torch.use_deterministic_algorithms(False)


def test_training_is_deterministic_unless_told_otherwise_and_evaluation_always(monkeypatch):
    asked = []

    @contextmanager
    def noted(device, *, algorithms):
        asked.append(algorithms)
        yield

    for module in ("training.train", "evaluation.evaluate"):
        monkeypatch.setattr(importlib.import_module(f"hauberk.{module}"), "deterministic_mode", noted)
    data = easy_data(20)
    model = hb.train("small-cnn", data, threat=THREAT, **settings(epochs=1, val_size=0)).model
    assert asked == [True]
    hb.train("small-cnn", data, threat=THREAT, **settings(epochs=1, val_size=0, deterministic=False))
    assert asked == [True]
    hb.evaluate(model, data, threat=THREAT, attacks=["fgsm"], diagnostics=[], quiet=True)
    assert asked == [True, False]
