import json
import shutil

import pytest
import torch

import hauberk as hb
from hauberk.attacks.frozen_model import frozen_model
from hauberk.core.errors import UserError
from hauberk.fastpath.frozen_copy import InferenceCopy
from hauberk.fastpath.precision import Compiled, _seconds, autotune_precision
from helpers import Noisy, Signalling, easy_data, settings, tiny_batch, tiny_net

THREAT = hb.Linf(0.05)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")


def step(precision, method="mart", model=None, calls=1, dtype=torch.float32):
    torch.manual_seed(0)
    model, (x, y) = (model or tiny_net()).to(dtype).train(), tiny_batch()
    bound = hb.method(method, THREAT, steps=3, precision=precision)
    for _ in range(calls):
        out = bound(model, x.to(dtype), y)
    out.loss.backward()
    return bound, out, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("method", ["at", "trades", "mart", "mail-trades", "gairat", "fat", "mma", "at+awp"])
def test_fp32_is_the_model_up_to_rounding_and_bf16_near_it(method):
    # In float64: where rounding in float32 turns the sign of one pixel's gradient, that pixel moves by two steps.
    _, plain, grads = step("model", method, dtype=torch.float64)
    folding, exact, same = step("fp32", method, dtype=torch.float64)
    lower, rough, near = step("bf16", method)
    for bound in (folding, lower):
        assert isinstance(bound.precision._copy, InferenceCopy)
    assert torch.allclose(exact.loss, plain.loss, rtol=1e-9)
    assert rough.loss.dtype == rough.logits_adv.dtype == torch.float32
    assert torch.allclose(rough.loss.double(), plain.loss, rtol=0.05)
    for name, grad in grads.items():
        assert (same[name] - grad).norm() <= 1e-9 * grad.norm() + 1e-12
        assert near[name].dtype == torch.float32
    assert all(near[name].isfinite().all() for name in grads)


def test_the_copy_follows_the_weights():
    torch.manual_seed(0)
    model, (x, y) = tiny_net().train(), tiny_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    bound = hb.method("trades", THREAT, steps=3, precision="fp32")
    for _ in range(3):
        optimizer.zero_grad()
        bound(model, x, y).loss.backward()
        optimizer.step()
        with bound.precision.attack_model(model, x, "eval") as form, torch.no_grad():
            assert torch.allclose(form(x), model.eval()(x), atol=1e-4)
        model.train()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_attack_in_training_mode_looks_at_the_model(precision):
    bound, _, _ = step(precision, "at", model=tiny_net())
    assert bound.precision.agrees
    again = hb.method("at", THREAT, steps=3, mode="train", precision=precision)
    model, (x, y) = tiny_net().train(), tiny_batch()
    again(model, x, y)
    assert again.precision.agrees is None


def test_a_model_without_a_copy_still_trains():
    bound, out, _ = step("bf16", model=Noisy(), calls=2)
    assert bound.precision.agrees is False
    assert out.loss.isfinite()


def test_labels_that_do_not_fit_are_refused_as_ever():
    model, (x, y) = tiny_net(), tiny_batch()
    with pytest.raises(UserError, match="labels must be"):
        hb.method("at", THREAT, precision="fp32")(model, x, y + 5)
    with pytest.raises(UserError, match="precision must be 'model', 'fp32' or 'bf16'"):
        hb.method("at", THREAT, precision="half")


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_a_run_records_its_precision_and_resumes_in_it(precision, tmp_path, monkeypatch):
    monkeypatch.setattr("hauberk.training.trainer.autotune_precision", lambda *a: ("bf16", False))
    data, how = easy_data(), {"method": "trades", "threat": THREAT, **settings(precision=precision)}
    whole = hb.train("small-cnn", Signalling(data, 0), out=tmp_path / "a", **how)
    assert hb.train("small-cnn", Signalling(data, 240), out=tmp_path / "b", **how).interrupted
    assert json.loads((tmp_path / "a" / "best.json").read_text())["precision"] == "bf16"
    monkeypatch.setattr("hauberk.training.trainer.autotune_precision", lambda *a: ("fp32", False))  # is not asked again
    again = hb.train("small-cnn", Signalling(data, 0), out=tmp_path / "b", resume=True, **how)
    assert json.loads((tmp_path / "b" / "best.json").read_text())["precision"] == "bf16"
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in whole.model.state_dict().items())
    loaded = hb.load(tmp_path / "a")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in whole.model.state_dict().items())


def test_auto_takes_what_is_faster_and_agrees(monkeypatch):
    model, (x, _) = tiny_net(), tiny_batch()
    times = {None: 3.0, torch.bfloat16: 1.0}
    monkeypatch.setattr("hauberk.fastpath.precision._seconds", lambda forms, x: [times[form.lower] for form in forms])
    assert autotune_precision(model, x, "auto", "off") == ("bf16", False)
    times[torch.bfloat16] = 2.9
    assert autotune_precision(model, x, "auto", "off") == ("fp32", False)


def test_auto_measures_here_and_the_run_keeps_what_it_took(tmp_path):
    """Whichever it takes on this machine."""
    hb.train("small-cnn", easy_data(), threat=THREAT, out=tmp_path, **settings(epochs=1, precision="auto"))
    assert json.loads((tmp_path / "best.json").read_text())["precision"] in ("fp32", "bf16")
    with frozen_model(tiny_net()) as view:
        assert all(seconds > 0 for seconds in _seconds([view, view], tiny_batch()[0]))


def batches_of(*sizes):
    return [tiny_batch(size)[0].requires_grad_() for size in sizes]


@needs_compiler
def test_a_compiled_copy_computes_the_same_and_compiles_two_shapes_only(monkeypatch):
    copy = InferenceCopy(tiny_net().eval())
    asked = []
    run = torch.compile(copy, dynamic=False)
    monkeypatch.setattr(torch, "compile", lambda module, **how: lambda x: asked.append(len(x)) or run(x))
    compiled = Compiled(copy)
    for x in batches_of(6, 4, 6, 3, 4):
        assert torch.allclose(compiled(x), copy(x), atol=1e-5)
        grads = [torch.autograd.grad(form(x).logsumexp(1).sum(), x)[0] for form in (compiled, copy)]
        assert torch.allclose(*grads, atol=1e-5)
    assert asked == [n for n in (6, 4, 6, 4) for _ in range(2)]


@needs_compiler
def test_training_with_compilation_learns_the_same_and_resumes(tmp_path):
    data, how = easy_data(), {"method": "trades", "threat": THREAT, **settings()}
    plain = hb.train("small-cnn", data, **how)
    whole = hb.train("small-cnn", Signalling(data, 0), out=tmp_path / "a", compile="on", **how)
    assert json.loads((tmp_path / "a" / "best.json").read_text())["compiled"] is True
    for name, value in plain.model.state_dict().items():
        assert torch.allclose(value, whole.model.state_dict()[name], atol=1e-3)
    assert hb.train("small-cnn", Signalling(data, 200), out=tmp_path / "b", compile="on", **how).interrupted
    again = hb.train("small-cnn", Signalling(data, 0), out=tmp_path / "b", compile="on", resume=True, **how)
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in whole.model.state_dict().items())


def test_compilation_is_taken_where_it_pays_and_never_needed(monkeypatch):
    model, (x, _) = tiny_net(), tiny_batch()
    monkeypatch.setattr("hauberk.fastpath.precision.Compiled", lambda copy: copy)
    monkeypatch.setattr("hauberk.fastpath.precision._seconds", lambda forms, x: [3.0, 2.0])
    assert autotune_precision(model, x, "fp32", "auto") == ("fp32", True)
    monkeypatch.setattr("hauberk.fastpath.precision._seconds", lambda forms, x: [3.0, 2.9])
    assert autotune_precision(model, x, "fp32", "auto") == ("fp32", False)

    def broken(copy):
        raise RuntimeError("no compiler")

    monkeypatch.setattr("hauberk.fastpath.precision.Compiled", broken)
    assert autotune_precision(model, x, "fp32", "auto") == ("fp32", False)
    with pytest.raises(UserError, match="no compiler"):
        autotune_precision(model, x, "fp32", "on")
    with pytest.raises(UserError, match="no inference copy"):
        autotune_precision(Noisy(), x, "fp32", "on")


def test_a_methods_own_precision_is_kept_by_training(tmp_path):
    bound = hb.method("at", THREAT, precision="bf16")
    hb.train("small-cnn", easy_data(), method=bound, out=tmp_path, **settings(epochs=1))
    assert json.loads((tmp_path / "best.json").read_text())["precision"] == "bf16"
