"""Models out of the house compute the same logits, at any batch size, and come back."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import hauberk as hb
from hauberk.cli import main
from hauberk.models import Normalize, StraightThroughRound
from hauberk.training import export_model
from helpers import tiny_batch, tiny_net


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("export") / "run"
    hb.train("small-cnn", digits["train"], method="at", threat=hb.Linf(0.1), epochs=1, quiet=True, threads=1, out=folder)
    return folder


def test_onnx_agrees_at_any_batch_size(run, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net, path = hb.load(run), export_model(run, tmp_path / "model.onnx")
    session = runtime.InferenceSession(str(path))
    for size in (1, 5, 33):
        x = torch.rand(size, 1, 8, 8)
        logits = session.run(["logits"], {"input": x.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(logits), net(x).detach(), rtol=1e-4, atol=1e-5)


def test_an_exported_program_agrees_and_can_be_attacked(run, tmp_path):
    net, path = hb.load(run), export_model(run, tmp_path / "model.pt2")
    program = torch.export.load(path).module()
    for size in (1, 5, 33):
        x = torch.rand(size, 1, 8, 8)
        torch.testing.assert_close(program(x), net(x), rtol=1e-5, atol=1e-6)
    point = torch.rand(4, 1, 8, 8, requires_grad=True)
    ours, theirs = (torch.autograd.grad(form(point).logsumexp(1).sum(), point)[0] for form in (net, program))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_go_out_and_come_back(run, tmp_path, ending):
    path = export_model(run, tmp_path / f"model.{ending}")
    net = hb.load(run)
    again = hb.load(path, model=None if ending == "safetensors" else torch.nn.Sequential(*net.children()))
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(again(x), net(x))
    if ending == "pth":  # in plain PyTorch, without Hauberk
        net.load_state_dict(torch.load(path, weights_only=True))


def test_batchnorm_normalisation_and_rows_survive(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x, y = tiny_batch(20)
    net = torch.nn.Sequential(Normalize([0.5] * 3, [0.2] * 3), tiny_net())
    threat = hb.Linf("8/255")
    hb.train(net, (x, y), method="at", threat=threat, epochs=1, quiet=True, out=tmp_path / "images", batch_size=8)
    for ending in ("onnx", "pt2"):
        assert export_model(tmp_path / "images", tmp_path / f"images.{ending}", model=net).exists()
    rows = torch.nn.Sequential(StraightThroughRound([0], [[1, 2]]), torch.nn.Linear(3, 2))
    data = torch.cat([torch.randint(0, 5, (20, 1)).float(), torch.eye(2)[torch.randint(0, 2, (20,))]], 1)
    hb.train(
        rows,
        (data, y[:20] % 2),
        method="at",
        threat=hb.Linf(0.1, 0.0, 5.0),
        epochs=1,
        quiet=True,
        out=tmp_path / "rows",
        batch_size=8,
    )
    for ending in ("onnx", "pt2"):
        assert export_model(tmp_path / "rows", tmp_path / f"rows.{ending}", model=rows).exists()


def test_what_cannot_be_exported_is_said_in_a_line(run, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path / "model.h5")]) == 2
    assert "ends in .pth" in capsys.readouterr().err
    assert main(["export", str(tmp_path), str(tmp_path / "model.pth")]) == 2
    assert main(["export", str(run), str(tmp_path / "model.pth")]) == 0
    assert "units of the data" in capsys.readouterr().out


def refused(run, path, says):
    with pytest.raises(hb.UserError, match=says):
        export_model(run, path)
    assert not path.exists()


def test_an_export_that_fails_leaves_nothing_behind(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(hb.UserError, match="cannot write"):
        export_model(run, tmp_path / "file" / "model.pth")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxscript", None)
        refused(run, tmp_path / "model.onnx", "pip install onnx onnxscript")
    with monkeypatch.context() as patch:
        patch.setattr("hauberk.models.programs._CLOSE", -1.0)
        refused(run, tmp_path / "model.pt2", "computes other logits")
    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "export", lambda *given, **more: 1 / 0)
        refused(run, tmp_path / "model.pt2", "torch.export refuses this model: division by zero")


def test_an_exported_card_does_not_say_where_the_data_lay(run, tmp_path):
    card = json.loads(export_model(run, tmp_path / "model.safetensors").with_suffix(".json").read_text())
    assert "folder" not in card["data"]
    assert card["data"]["name"] == "digits"


def test_an_export_has_the_name_that_was_asked_for_and_replaces_nothing_else(run, tmp_path):
    for ending in ("safetensors", "json"):
        (tmp_path / f"model.{ending}").write_text("another model")
    for version in ("v1", "v2"):
        written = export_model(run, tmp_path / f"model.{version}.safetensors")
        assert written == tmp_path / f"model.{version}.safetensors"
        assert json.loads((tmp_path / f"model.{version}.json").read_text())["weights"] == written.name
    ours = {f"model.{version}.{ending}" for version in ("v1", "v2") for ending in ("safetensors", "json")}
    assert {path.name for path in tmp_path.iterdir()} == ours | {"model.safetensors", "model.json"}
    assert (tmp_path / "model.safetensors").read_text() == (tmp_path / "model.json").read_text() == "another model"
    x, net = torch.rand(5, 1, 8, 8), hb.load(run)
    for name in ("model.v1.safetensors", "model.v1.json", "model.v1"):
        assert torch.equal(hb.load(tmp_path / name)(x), net(x))


def test_a_card_is_bound_to_its_weights(run, tmp_path):
    export_model(run, tmp_path / "one.safetensors")
    export_model(run, tmp_path / "other.safetensors", which="last")
    weights = tmp_path / "one.safetensors"
    tensors = {name: value + 1 for name, value in load_file(weights).items()}
    save_file(tensors, weights)  # as a kill between the two files would leave it
    with pytest.raises(hb.UserError, match="are not those that its card is about"):
        hb.load(weights)
    assert hb.load(tmp_path / "other.safetensors")


def test_a_card_replaces_nothing_but_a_card(run, tmp_path):
    (tmp_path / "run.json").write_text('{"format": "hauberk-run/1"}')
    (tmp_path / "notes.json").write_text("no JSON")
    for name in ("run", "notes"):
        refused(run, tmp_path / f"{name}.safetensors", "would replace")
    assert (tmp_path / "run.json").read_text() == '{"format": "hauberk-run/1"}'
    for _ in range(2):
        assert export_model(run, tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("ending", ["pth", "pt2", "onnx", "safetensors"])
def test_where_no_file_can_be_written_an_export_says_so_in_a_line(run, tmp_path, ending):
    if ending == "onnx":
        pytest.importorskip("onnxscript")
    (tmp_path / f"folder.{ending}").mkdir()
    for path in (tmp_path / f"folder.{ending}", tmp_path / f"{'x' * 300}.{ending}", f"/proc/nowhere.{ending}"):
        with pytest.raises(hb.UserError, match="cannot write") as caught:
            export_model(run, path)
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [f"folder.{ending}"]


def test_an_onnx_file_too_large_for_the_format_is_refused(run, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr("hauberk.models.programs._LARGEST_ONNX", 1000)
    refused(run, tmp_path / "model.onnx", "at most 2 GB")
