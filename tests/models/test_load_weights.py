import json

import pytest
import torch
from torch import nn

import hauberk as hb
from hauberk.models import ModelSpec, Normalize
from hauberk.training.export import save_model
from helpers import tiny_batch, tiny_net


def export(folder, name="small-cnn", net=None, **card):
    spec = ModelSpec(name, (3, 8, 8), 5)
    net = net or spec.build()
    save_model(folder / "best", net.state_dict(), {"model": spec.to_dict(), **card})
    return net


def test_a_model_comes_back_from_every_kind_of_path(tmp_path):
    net = export(tmp_path)
    x, _ = tiny_batch()
    for path in (tmp_path, tmp_path / "best.safetensors", tmp_path / "best.json"):
        assert torch.equal(hb.load(path)(x), net(x))
    torch.save({"state_dict": net.state_dict()}, tmp_path / "net.pth")
    torch.save(net.state_dict(), tmp_path / "net.pt")
    for path in (tmp_path / "net.pth", tmp_path / "net.pt"):
        assert torch.equal(hb.load(path, model=ModelSpec("small-cnn", (3, 8, 8), 5).build())(x), net(x))


def test_a_name_with_dots_is_one_name(tmp_path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = ModelSpec("small-cnn", (3, 8, 8), 5).build()
        save_model(tmp_path / f"net.v{seed}", net.state_dict(), {"model": ModelSpec("small-cnn", (3, 8, 8), 5).to_dict()})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"net.v{seed}.{ending}" for seed in (0, 1) for ending in ("json", "safetensors")
    ]
    x, _ = tiny_batch()
    for name in ("net.v1", "net.v1.json", "net.v1.safetensors"):
        assert torch.equal(hb.load(tmp_path / name)(x), net(x))


def test_channels_last_weights_survive(tmp_path):
    net = ModelSpec("small-cnn", (3, 8, 8), 5).build().to(memory_format=torch.channels_last)
    export(tmp_path, net=net)
    x, _ = tiny_batch()
    assert torch.allclose(hb.load(tmp_path)(x), net(x), atol=1e-6)


def test_python_models_need_the_network(tmp_path):
    net = tiny_net().eval()
    export(tmp_path, "python:Net", net)
    with pytest.raises(hb.UserError, match="pass model="):
        hb.load(tmp_path)
    x, _ = tiny_batch()
    assert torch.equal(hb.load(tmp_path, model=tiny_net(seed=9))(x), net(x))


def test_a_card_cannot_import_by_itself(tmp_path, monkeypatch):
    (tmp_path / "spy.py").write_text("from pathlib import Path\nPath('imported').touch()\ndef net(): pass\n")
    monkeypatch.chdir(tmp_path)
    export(tmp_path, "spy:net", ModelSpec("small-cnn", (3, 8, 8), 5).build())
    with pytest.raises(hb.UserError, match="if you trust it, pass model=, or allow_code=True"):
        hb.load(tmp_path)
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "best.json").unlink(), "best.json is missing"),
        (lambda folder: (folder / "best.safetensors").unlink(), "cannot read"),
        (lambda folder: (folder / "best.json").write_text("{"), "not readable JSON"),
        (lambda folder: (folder / "best.json").write_text("[]"), "does not hold a JSON object"),
        (lambda folder: (folder / "best.json").write_text('{"format": "else"}'), "not a Hauberk card"),
        (lambda folder: (folder / "best.json").write_text("[" * 100000), "not readable JSON"),
        (lambda folder: (folder / "best.json").write_text('{"format": "hauberk-card/1", "data": []}'), "no readable 'data'"),
        (
            lambda folder: (folder / "best.safetensors").write_bytes((folder / "best.safetensors").read_bytes()[:-4]),
            "not those that its card is about",
        ),
        (lambda folder: (folder / "best.safetensors").write_bytes(b""), "not those that its card is about"),
        (lambda folder: export(folder, "mlp", ModelSpec("small-cnn", (3, 8, 8), 5).build()), "do not fit this model"),
    ],
)
def test_damaged_and_foreign_files_say_so(damage, says, tmp_path):
    export(tmp_path)
    damage(tmp_path)
    with pytest.raises(hb.UserError, match=says):
        hb.load(tmp_path)


def test_weights_that_the_card_does_not_name_must_be_whole(tmp_path):
    export(tmp_path)
    card = json.loads((tmp_path / "best.json").read_text())
    (tmp_path / "best.json").write_text(json.dumps({key: card[key] for key in card if key != "weights_digest"}))
    whole = (tmp_path / "best.safetensors").read_bytes()
    for part in (whole[:-4], b""):
        (tmp_path / "best.safetensors").write_bytes(part)
        with pytest.raises(hb.UserError, match="not a whole safetensors file"):
            hb.load(tmp_path)


@pytest.mark.parametrize("weights", ["../best.safetensors", "/etc/passwd", 7, None])
def test_a_card_cannot_point_out_of_its_folder(weights, tmp_path):
    export(tmp_path)
    card = json.loads((tmp_path / "best.json").read_text())
    (tmp_path / "best.json").write_text(json.dumps(card | {"weights": weights}))
    with pytest.raises(hb.UserError, match="must lie beside it"):
        hb.load(tmp_path)


@pytest.mark.parametrize("field", ["name", "input_shape", "classes", "mean"])
def test_cards_with_senseless_models(field, tmp_path):
    export(tmp_path)
    card = json.loads((tmp_path / "best.json").read_text())
    for value in (None, {}, "x", -1):
        if (field, value) in (("mean", {}), ("name", None)):
            continue
        card["model"][field] = value
        (tmp_path / "best.json").write_text(json.dumps(card))
        with pytest.raises(hb.UserError):
            hb.load(tmp_path)


WRN = ModelSpec("wrn-10-1", (3, 8, 8), 5)


def as_published(weights, prefix):
    """Names of TRADES' wide ResNet, with the stage that it never calls."""
    named = {}
    for name, value in weights.items():
        stage, _, rest = name.partition(".")
        inner = f"{stage}.layer.{rest.replace('shortcut', 'convShortcut')}" if stage.startswith("block") else name
        named[prefix + inner] = value
        if stage == "block1":
            named[f"{prefix}sub_block1{inner.removeprefix('block1')}"] = torch.zeros_like(value)
    return named


@pytest.mark.parametrize("holder", ["", "state_dict", "model_state_dict", "last"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.model.", "_orig_mod."])
def test_state_dicts_of_others_fit_a_wide_resnet(holder, prefix, tmp_path):
    torch.manual_seed(0)
    net, x = WRN.build().eval(), tiny_batch()[0]
    weights = as_published(net.state_dict(), prefix)
    best = {name: torch.full_like(value, 3) for name, value in weights.items()}
    torch.save({holder: weights, "epoch": 7, "best": best} if holder else weights, tmp_path / "net.pt")
    for other in (WRN.build(), nn.Sequential(Normalize([0.0] * 3, [1.0] * 3), WRN.build())):
        assert torch.equal(hb.load(tmp_path / "net.pt", model=other, which="last")(x), net(x))


class Wrapped(nn.Module):
    """As RobustBench wraps networks: statistics as buffers, the network behind them."""

    def __init__(self, net):
        super().__init__()
        self.register_buffer("mu", torch.full((1, 3, 1, 1), 0.4))
        self.register_buffer("sigma", torch.full((1, 3, 1, 1), 0.2))
        self.model = net

    def forward(self, x):
        return self.model((x - self.mu) / self.sigma)


def test_a_normalisation_in_a_file_is_never_lost(tmp_path):
    build, x = WRN.build, tiny_batch()[0]
    right = Wrapped(build()).eval()
    torch.save({"state_dict": right.state_dict()}, tmp_path / "with.pt")
    torch.save(nn.DataParallel(right.model).state_dict(), tmp_path / "without.pt")
    other = Wrapped(build())
    other.mu.zero_()
    assert torch.equal(hb.load(tmp_path / "with.pt", model=other)(x), right(x))  # the file's count
    assert torch.equal(hb.load(tmp_path / "without.pt", model=Wrapped(build()))(x), right(x))  # the model keeps its own
    same = nn.Sequential(Normalize([0.4] * 3, [0.2] * 3), build())
    assert torch.allclose(hb.load(tmp_path / "with.pt", model=same)(x), right(x), atol=1e-5)
    for wrong in (build(), nn.Sequential(Normalize([0.5] * 3, [0.2] * 3), build())):
        with pytest.raises(hb.UserError, match=r"normalises its inputs \(mu \[0.4, 0.4, 0.4\]"):
            hb.load(tmp_path / "with.pt", model=wrong)


def test_each_of_two_normalisations_in_a_file_goes_to_its_own_place(tmp_path):
    right, x = nn.Sequential(Normalize([0.1] * 3, [0.5] * 3), Wrapped(WRN.build())).eval(), tiny_batch()[0]
    torch.save({**right.state_dict(), "0.mean": right[0].mean, "0.std": right[0].std}, tmp_path / "two.pth")
    other = nn.Sequential(Normalize([0.1] * 3, [0.5] * 3), Wrapped(WRN.build()))
    other[1].mu.zero_()
    assert torch.equal(hb.load(tmp_path / "two.pth", model=other)(x), right(x))


def test_names_that_differ_in_another_way_are_refused(tmp_path):
    net = WRN.build()
    torch.save({f"{'a' if name < 'c' else 'b'}.{name}": value for name, value in net.state_dict().items()}, tmp_path / "net.pt")
    with pytest.raises(hb.UserError, match="do not fit this model"):
        hb.load(tmp_path / "net.pt", model=net)
    torch.save({"epoch": 3, "state": net.state_dict()}, tmp_path / "net.pt")
    with pytest.raises(hb.UserError, match="not a state dict"):
        hb.load(tmp_path / "net.pt", model=net)
