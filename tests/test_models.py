import pytest
import torch

import hauberk as hb
from hauberk.models import ModelSpec


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
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n"
        "def net(classes): return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))\n"
        "def number(): return 7\n"
    )
    monkeypatch.chdir(tmp_path)
    assert ModelSpec("mynets:net", (3, 4, 4), 6).build()(torch.rand(2, 3, 4, 4)).shape == (2, 6)
    with pytest.raises(hb.UserError, match="returned a int"):
        ModelSpec("mynets:number", (3, 4, 4), 6).build()
    for name in ("mynets:missing", "nowhere:net", ":net"):
        with pytest.raises(hb.UserError, match="cannot load model"):
            ModelSpec(name, (3, 4, 4), 6).build()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (ModelSpec("resnet-18", (3, 32, 32), 10), "did you mean 'resnet18'"),
        (ModelSpec("wrn-35-10", (3, 32, 32), 10), "6n \\+ 4"),
        (ModelSpec("wrn-34-1000000", (3, 32, 32), 10), "width"),
        (ModelSpec("small-cnn", (12,), 10), "try 'mlp'"),
        (ModelSpec("small-cnn", (1, 2, 2), 10), "at least 4×4"),
        (ModelSpec("mlp", (12,), 1), "1 classes"),
        (ModelSpec("python:MyNet", (12,), 3), "pass model="),
    ],
)
def test_models_that_cannot_be(spec, says):
    with pytest.raises(hb.UserError, match=says):
        spec.build()
