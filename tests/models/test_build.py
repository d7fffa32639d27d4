import importlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import hauberk as hb
from hauberk.cli import main
from hauberk.experiments.paper_tables import PAPER_TABLES
from hauberk.models import MODELS, ModelSpec


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("small-cnn", (1, 28, 28), 436_202),
        ("mlp", (23,), 20_874),
        ("resnet18", (3, 32, 32), 11_173_962),  # as in the public code of MART and MAIL
        ("preact-resnet18", (3, 32, 32), 11_172_170),
        ("wrn-10-1", (3, 32, 32), None),
        ("wrn-16-2", (3, 32, 32), None),
        ("wrn-34-10", (3, 32, 32), 46_160_474),  # published; TRADES' own code holds an unused block more
        ("wrn-28-10", (3, 32, 32), 36_479_194),
        ("wrn-8-1", (3, 32, 32), None),  # 6n + 2
        ("wrn-10-1-silu", (3, 32, 32), None),
        ("resnet18-16", (3, 32, 32), 701_466),
        ("preact-resnet18-16", (3, 32, 32), None),
        ("resnet18-8-silu", (1, 28, 28), None),
        ("preact-resnet18-silu", (3, 32, 32), 11_172_170),
    ],
)
def test_architectures(name, shape, parameters):
    model = ModelSpec(name, shape, 10).build()
    if parameters:
        assert sum(p.numel() for p in model.parameters()) == parameters
    if "-10" in name and name != "wrn-10-1":
        return  # counted; too slow to run here
    x = torch.rand(2, *shape)
    logits = model(x)
    assert logits.shape == (2, 10)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())  # no layer is unused


def on_meta(name, shape=(3, 32, 32)):
    """Build a network without its memory."""
    with torch.device("meta"):
        return ModelSpec(name, shape, 10).build()


@pytest.mark.parametrize("name", sorted({*MODELS, *(table.model for table in PAPER_TABLES.values())}))
def test_every_name_that_is_listed_or_used_by_a_table_is_built(name):
    net = on_meta(name)
    assert net(torch.rand(2, 3, 32, 32, device="meta")).shape == (2, 10)


def test_the_command_lists_no_other_networks(capsys):
    assert main(["models", "--json"]) == 0
    listed = [name for name in json.loads(capsys.readouterr().out) if ":" not in name]
    assert listed == [*MODELS]


@pytest.mark.parametrize("stages", [1, 5])
def test_both_counts_of_the_depth_are_the_same_network(stages):
    names = [f"wrn-{6 * stages + more}-10" for more in (4, 2)]
    layers = [[(key, weight.shape) for key, weight in on_meta(name).state_dict().items()] for name in names]
    assert layers[0] == layers[1]
    counted = [key for key, shape in layers[0] if len(shape) == 4]
    assert len(counted) == 6 * stages + 4
    assert len([key for key in counted if "shortcut" not in key]) + 1 == 6 * stages + 2  # and the linear layer


def test_the_network_of_table_3_is_trained():
    method = hb.method("at", hb.Linf(0.1), steps=1)
    some = torch.rand(4, 3, 4, 4), torch.arange(4) % 2
    run = hb.train("wrn-32-10", some, method=method, epochs=1, val_size=0, quiet=True)
    assert sum(p.numel() for p in run.model.parameters()) == 46_160_474 - 8 * 641  # ten classes have so many more


def test_a_width_says_how_many_channels_each_stage_has():
    for preact in ("", "preact-"):
        narrow, whole, named = (on_meta(preact + name).state_dict() for name in ("resnet18-16", "resnet18", "resnet18-64"))
        assert {key: value.shape for key, value in whole.items()} == {key: value.shape for key, value in named.items()}
        for key, value in narrow.items():
            inside = [size for size in (10, 3, 1) if size in value.shape]  # classes, colours and kernels stay as they are
            assert [s // 4 if s not in inside else s for s in whole[key].shape] == list(value.shape), key


@pytest.mark.parametrize("name", ["resnet18-8", "preact-resnet18-8", "wrn-10-1"])
def test_silu_takes_the_place_of_every_relu(name, monkeypatch):
    plain, smooth = ModelSpec(name, (3, 8, 8), 4).build(), ModelSpec(f"{name}-silu", (3, 8, 8), 4).build()
    smooth.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 8, 8)
    for module in plain.modules():
        if hasattr(module, "activation"):
            module.activation = lambda values: values * torch.sigmoid(values)
    with torch.no_grad():
        assert torch.allclose(smooth.eval()(x), plain.eval()(x), atol=1e-6)
    monkeypatch.setattr(torch.nn.functional, "relu", None)
    assert smooth(x).shape == (2, 4)  # none is left


def test_other_image_sizes():
    for shape in ((1, 8, 8), (3, 20, 12), (2, 4, 4)):
        assert ModelSpec("small-cnn", shape, 3).build()(torch.rand(2, *shape)).shape == (2, 3)
    assert ModelSpec("resnet18", (1, 28, 28), 3).build()(torch.rand(2, 1, 28, 28)).shape == (2, 3)


def test_normalisation_is_a_layer_of_the_model():
    spec = ModelSpec("small-cnn", (2, 8, 8), 3, (0.5, 0.2), (0.25, 0.1))
    model = spec.build()
    x = torch.rand(4, 2, 8, 8)
    scaled = (x - torch.tensor([0.5, 0.2]).view(1, 2, 1, 1)) / torch.tensor([0.25, 0.1]).view(1, 2, 1, 1)
    assert torch.allclose(model(x), model[1](scaled), atol=1e-6)
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    assert ModelSpec("mlp", (2,), 3, (0.5, 0.2), (0.25, 0.1)).build()(torch.rand(4, 2)).shape == (4, 3)


def test_your_own_by_module_and_factory(tmp_path, monkeypatch):
    (tmp_path / "factories.py").write_text(
        "from torch import nn\n"
        "def net(classes): return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))\n"
        "def number(): return 7\n"
        "def other(size): return nn.Linear(size, 3)\n"
        "def leaves(): raise SystemExit(0)\n"
        "class Forgets(nn.Module):\n    def __init__(self): self.scale = 1\n"
    )
    (tmp_path / "mistyped.py").write_text("def net(:\n")
    monkeypatch.chdir(tmp_path)
    assert ModelSpec("factories:net", (3, 4, 4), 6).build()(torch.rand(2, 3, 4, 4)).shape == (2, 6)
    with pytest.raises(hb.UserError, match="returned a int"):
        ModelSpec("factories:number", (3, 4, 4), 6).build()
    for name, says in (("factories:other", "missing 1 required"), ("factories:leaves", "fails with SystemExit")):
        with pytest.raises(hb.UserError, match=f"{says}.*takes input_shape and classes"):
            ModelSpec(name, (3, 4, 4), 6).build()
    with pytest.raises(hb.UserError, match=r"Forgets.__init__ must begin with super\(\)"):
        hb.train("factories:Forgets", (torch.rand(6, 4), torch.arange(6) % 3), threat=hb.Linf(0.1), epochs=1, quiet=True)
    for name in ("factories:missing", "nowhere:net", ":net", "mistyped:net", "../x:net"):
        with pytest.raises(hb.UserError, match="cannot load model"):
            ModelSpec(name, (3, 4, 4), 6).build()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (ModelSpec("resnet-18", (3, 32, 32), 10), "did you mean 'resnet18'"),
        (ModelSpec("wrn-35-10", (3, 32, 32), 10), "6n \\+ 4"),
        (ModelSpec("wrn-30-10", (3, 32, 32), 10), "6n \\+ 2 as Madry's code counts"),
        (ModelSpec("wrn-34-1000000", (3, 32, 32), 10), "width"),
        (ModelSpec("resnet18-0", (3, 32, 32), 10), "1 to 1000"),
        (ModelSpec("resnet18-99999", (3, 32, 32), 10), "1 to 1000"),
        (ModelSpec("resnet18-relu", (3, 32, 32), 10), "did you mean"),
        (ModelSpec("small-cnn", (12,), 10), "try 'mlp'"),
        (ModelSpec("small-cnn", (1, 2, 2), 10), "at least 4×4"),
        (ModelSpec("mlp", (12,), 1), "1 classes"),
        (ModelSpec("python:MyNet", (12,), 3), "pass model="),
    ],
)
def test_models_that_cannot_be(spec, says):
    with pytest.raises(hb.UserError, match=says):
        spec.build()


def real(library):
    """Import it, or skip: torchvision cannot be imported beside a torch that it was not made for."""
    try:
        return importlib.import_module(library)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"no {library}: {error}")


@pytest.mark.parametrize(("library", "which"), [("timm", "resnet18"), ("torchvision.models", "resnet18")])
def test_networks_of_other_libraries_train_evaluate_and_load(library, which, tmp_path):
    real(library)
    name = f"{library.partition('.')[0]}:{which}"
    x, y = torch.rand(24, 3, 32, 32), torch.arange(24) % 4
    threat = hb.Linf("8/255")
    run = hb.train(name, (x, y), threat=threat, epochs=1, batch_size=8, val_size=0, out=tmp_path / "run", quiet=True)
    found = hb.evaluate(run.model, (x[:4], y[:4]), threat=threat, attacks=["pgd-10"], diagnostics="cheap", quiet=True)
    assert found.n == 4
    loaded = hb.load(tmp_path / "run")  # by its card, without allow_code
    assert torch.equal(loaded(x[:4]), run.model(x[:4]))


def stand_in(monkeypatch, name, **functions):
    """Put a library that has nothing but these functions in place of the real one."""
    library = SimpleNamespace(**functions)
    monkeypatch.setitem(sys.modules, name, library)
    if "." in name:
        monkeypatch.setitem(sys.modules, name.partition(".")[0], SimpleNamespace(models=library))


def test_how_networks_of_other_libraries_are_asked_for(monkeypatch):
    asked = []

    def make(which, **options):
        asked.append((which, options))
        return nn.Linear(1, 1)

    stand_in(monkeypatch, "timm", create_model=make)
    stand_in(monkeypatch, "torchvision.models", get_model=make)
    spec = ModelSpec("timm:vit_tiny_patch16_224.augreg", (1, 28, 28), 7)
    assert not spec.imports
    assert isinstance(spec.build(), nn.Linear)
    ModelSpec("torchvision:resnet18", (3, 32, 32), 5).build()
    assert asked == [  # fresh weights: nothing is downloaded
        ("vit_tiny_patch16_224.augreg", {"pretrained": False, "num_classes": 7, "in_chans": 1}),
        ("resnet18", {"weights": None, "num_classes": 5}),
    ]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (ModelSpec("timm:hf-hub:somebody/net", (3, 32, 32), 10), "not a name of timm"),
        (ModelSpec("timm:../net", (3, 32, 32), 10), "not a name of timm"),
        (ModelSpec("timm:resnet18", (64,), 10), "for images"),
        (ModelSpec("timm:resnet18", (3, 32, 32), 10**9), "at most 100,000 classes"),
        (ModelSpec("torchvision:resnet18", (1, 32, 32), 10), "3 channels"),
        (ModelSpec("timm:nothing", (3, 32, 32), 10), "cannot build timm:nothing: no such network"),
    ],
)
def test_networks_of_other_libraries_that_cannot_be(spec, says, monkeypatch):
    def refuse(which, **options):
        raise RuntimeError("no such network")

    stand_in(monkeypatch, "timm", create_model=refuse)
    with pytest.raises(hb.UserError, match=says):
        spec.build()


def test_a_library_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(hb.UserError, match="pip install timm"):
        ModelSpec("timm:resnet18", (3, 32, 32), 10).build()
