import json
import shutil
from contextlib import suppress

import pytest
import torch

import hauberk as hb
from hauberk.attacks.model.frozen_model import frozen_model
from hauberk.core.errors import UserError
from hauberk.fastpath.frozen_copy import InferenceCopy, use_channels_last
from hauberk.fastpath.precision import Compiled, PrecisionPolicy, _seconds, autotune_precision
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
        assert isinstance(bound.precision._form, InferenceCopy)
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
    with pytest.raises(UserError, match="precision must be 'model', 'fp32', 'tf32' or 'bf16'"):
        hb.method("at", THREAT, precision="half")


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_a_run_records_its_precision_and_resumes_in_it(precision, tmp_path, monkeypatch):
    monkeypatch.setattr("hauberk.training.trainer.autotune_precision", lambda *a: PrecisionPolicy("bf16"))
    data, how = easy_data(), {"method": "trades", "threat": THREAT, **settings(precision=precision)}
    whole = hb.train("small-cnn", Signalling(data, 0), out=tmp_path / "a", **how)
    assert hb.train("small-cnn", Signalling(data, 240), out=tmp_path / "b", **how).interrupted
    assert json.loads((tmp_path / "a" / "best.json").read_text())["precision"] == "bf16"
    monkeypatch.setattr("hauberk.training.trainer.autotune_precision", lambda *a: PrecisionPolicy("fp32"))  # is not asked again
    again = hb.train("small-cnn", Signalling(data, 0), out=tmp_path / "b", resume=True, **how)
    assert json.loads((tmp_path / "b" / "best.json").read_text())["precision"] == "bf16"
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in whole.model.state_dict().items())
    loaded = hb.load(tmp_path / "a")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in whole.model.state_dict().items())


def test_auto_takes_what_is_faster_and_agrees(monkeypatch):
    model, (x, _) = tiny_net(), tiny_batch()
    times = {"fp32": 3.0, "tf32": 2.0, "bf16": 1.0}
    monkeypatch.setattr("hauberk.fastpath.precision._seconds", lambda forms, x: [times[precision] for precision, _ in forms])

    def taken():
        return autotune_precision(model, x, "auto", "off").precision

    assert taken() == "bf16"
    times["bf16"] = 2.9
    assert taken() == "fp32"
    monkeypatch.setattr("hauberk.fastpath.precision._lower_precisions", lambda x: ("tf32", "bf16"))  # as on CUDA
    assert taken() == "tf32"
    times["bf16"] = 1.5
    assert taken() == "bf16"
    times["bf16"] = 1.8
    assert taken() == "tf32"
    policy = autotune_precision(model, x, "tf32", "off")
    assert policy.precision == "tf32"
    with policy.attack_model(model, x, "eval") as form:
        assert form is policy._form  # the copy that was tried, not another one


def test_auto_measures_here_and_the_run_keeps_what_it_took(tmp_path):
    """Whichever it takes on this machine."""
    hb.train("small-cnn", easy_data(), threat=THREAT, out=tmp_path, **settings(epochs=1, precision="auto"))
    assert json.loads((tmp_path / "best.json").read_text())["precision"] in ("fp32", "bf16")
    with frozen_model(tiny_net()) as view:
        assert all(seconds > 0 for seconds in _seconds([("fp32", view), ("tf32", view)], tiny_batch()[0]))


def test_a_moving_average_takes_turns_with_its_network():
    models, (x, _) = [tiny_net(seed=0).eval(), tiny_net(seed=3).eval()], tiny_batch()
    policy, forms = PrecisionPolicy("fp32"), []
    policy.share(*models)
    for model in (*models, models[0]):
        with policy.attack_model(model, x, "eval") as form, torch.no_grad():
            assert torch.allclose(form(x), model(x), atol=1e-5)
            forms.append(form)
    assert forms[0] is forms[1] is forms[2]
    other = tiny_net(seed=4).eval()
    with policy.attack_model(other, x, "eval") as form:
        assert form is not forms[0]


def test_in_bfloat16_a_network_and_its_average_are_laid_out_alike_and_its_copy_whatever_the_network_is():
    laid_out = []

    class Look:
        def on_epoch_end(self, trainer, metrics):
            for parts in zip(trainer.model.parameters(), trainer.ema.module.parameters(), strict=True):
                laid_out.append([part.stride() for part in parts])

    hb.train("small-cnn", easy_data(), threat=THREAT, callbacks=[Look()], **settings(epochs=1, precision="bf16", ema=0.5))
    assert all(one == other for one, other in laid_out)
    assert any(one[1] == 1 and len(one) == 4 for one, _ in laid_out)
    model = tiny_net().eval()
    strides = []
    for _ in range(2):
        strides.append([value.stride() for value in InferenceCopy(model, torch.bfloat16).state_dict().values()])
        use_channels_last(model)
    assert strides[0] == strides[1]


def batches_of(*sizes):
    return [tiny_batch(size)[0].requires_grad_() for size in sizes]


@pytest.fixture
def compiler(monkeypatch):
    """torch.compile without a compiler: which rows ran compiled, and how often a limit of torch's was raised for that."""
    asked, usual = {"rows": [], "raised": 0}, torch._dynamo.config.recompile_limit

    def compile(module, **how):
        def run(x):
            asked["rows"].append(len(x))
            asked["raised"] += torch._dynamo.config.recompile_limit > usual
            return module(x)

        return run

    monkeypatch.setattr(torch, "compile", compile)
    return asked


def test_a_batch_of_at_least_half_the_rows_is_filled_up_and_a_smaller_one_is_not_compiled(compiler):
    copy = InferenceCopy(tiny_net().eval())
    compiled = Compiled(copy)
    for x in batches_of(6, 4, 6, 3, 2, 9, 7, 2):
        assert torch.allclose(compiled(x), copy(x), atol=1e-5)
        grads = [torch.autograd.grad(form(x).logsumexp(1).sum(), x)[0] for form in (compiled, copy)]
        assert torch.allclose(*grads, atol=1e-5)
        with torch.no_grad():
            assert torch.allclose(compiled(x), copy(x), atol=1e-5)
    assert compiler["rows"] == [n for n in (6, 6, 6, 6, 9, 9) for _ in range(3)]
    assert [rows for rows, *_ in compiled.shapes] == [6, 9]
    assert compiler["raised"] == 4  # once for each of two shapes, with and without gradients


def test_an_attack_begins_anew_where_graphs_wait_for_a_backward_that_never_comes(compiler, monkeypatch):
    begun, (x, _) = [], tiny_batch()
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(len(compiler["rows"])))
    policy, model = PrecisionPolicy("fp32", compiled=True), tiny_net()
    with policy.attack_model(model, x, "eval") as form:
        form._graphs = True  # as on CUDA
    for _ in range(2):
        with suppress(KeyError), policy.attack_model(model, x, "eval") as form:
            form(x.requires_grad_())
            raise KeyError
    assert begun == [0, 1]


def test_what_was_tried_is_handed_on_and_not_compiled_again(monkeypatch, tmp_path):
    made = []

    def compile(module, **how):
        made.append(how)
        return module

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr("hauberk.fastpath.precision._seconds", lambda forms, x: [3.0, 1.0])
    how = {"threat": THREAT, **settings(epochs=1, compile="auto", ema=0.5)}
    hb.train("small-cnn", easy_data(), out=tmp_path, **how)
    assert json.loads((tmp_path / "best.json").read_text())["compiled"] is True
    assert len(made) == 1  # for the network, its moving average, and validation


@needs_compiler
def test_a_compiled_copy_computes_the_same():
    copy = InferenceCopy(tiny_net().eval())
    compiled = Compiled(copy)
    for x in batches_of(6, 4):
        grads = [torch.autograd.grad(form(x).logsumexp(1).sum(), x)[0] for form in (compiled, copy)]
        assert torch.allclose(*grads, atol=1e-5)
        assert torch.allclose(compiled(x), copy(x), atol=1e-5)


@needs_compiler
def test_a_copy_of_another_model_leaves_nothing_compiled_behind():
    """torch keeps what was compiled for a copy that is gone: its graphs would stay in a GPU's memory."""

    def kept():
        return len(torch._dynamo.eval_frame._debug_get_cache_entry_list(InferenceCopy.forward.__code__))

    torch.compiler.reset()
    policy, x = PrecisionPolicy("fp32", compiled=True), torch.rand(4, 8)
    for _ in range(2):
        model = torch.nn.Linear(8, 3)
        with policy.attack_model(model, x, "eval") as form, torch.no_grad():
            form(x)
        assert kept() == 1
    policy.release()
    assert kept() == 0


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

    def compiled(model, compiling="auto"):
        policy = autotune_precision(model, x, "fp32", compiling)
        assert policy.compiled == isinstance(policy._form, Compiled) == bool(policy.shapes)
        return policy.compiled

    monkeypatch.setattr(torch, "compile", lambda module, **how: module)
    monkeypatch.setattr("hauberk.fastpath.precision._seconds", lambda forms, x: [3.0, 2.0])
    assert compiled(model)
    monkeypatch.setattr("hauberk.fastpath.precision._seconds", lambda forms, x: [3.0, 2.9])
    assert not compiled(model)
    assert compiled(model, "on")

    def broken(module, **how):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    assert not compiled(model)
    with pytest.raises(UserError, match="no compiler"):
        compiled(model, "on")
    with pytest.raises(UserError, match="no inference copy"):
        compiled(Noisy(), "on")


def test_a_methods_own_precision_is_kept_by_training(tmp_path):
    bound = hb.method("at", THREAT, precision="bf16")
    hb.train("small-cnn", easy_data(), method=bound, out=tmp_path, **settings(epochs=1))
    assert json.loads((tmp_path / "best.json").read_text())["precision"] == "bf16"
