import pytest
import torch

import hauberk as hb
from hauberk.data import ConcatDataset, TensorDataset, as_dataset, pseudo_label
from hauberk.models import ModelSpec
from hauberk.training.config import TrainConfig
from hauberk.training.plan import make_plan
from helpers import THREAT, easy_data, settings, tiny_net


def test_pseudo_labels_are_the_models_predictions():
    model = tiny_net()
    model.train()
    x, _ = easy_data(50)
    found = pseudo_label(model, x)
    assert torch.equal(found.y, tiny_net().eval()(x).argmax(1))
    assert model.training
    sure = pseudo_label(model, x, least_confidence=float(tiny_net().eval()(x).detach().softmax(1).amax(1).median()))
    assert 0 < len(sure) < 50
    with pytest.raises(hb.UserError, match="empty"):
        pseudo_label(model, x, least_confidence=1.0)


def test_joined_sources_keep_the_order():
    a, b = (TensorDataset(torch.full((3, 2), value), torch.full((3,), int(value))) for value in (0.0, 1.0))
    x, y = ConcatDataset([a, b]).fetch(torch.tensor([4, 0, 5, 2]))
    assert y.tolist() == [1, 0, 1, 0]
    assert x[:, 0].tolist() == [1.0, 0.0, 1.0, 0.0]


def test_each_batch_has_the_stated_share():
    plan = make_plan(
        ModelSpec("mlp", (3, 8, 8), 5),
        hb.method("mart", THREAT),
        TrainConfig(batch_size=20, extra_share=0.7, val_size=10),
        as_dataset(easy_data(100)),
        as_dataset(easy_data(500, seed=1)),
    )
    batches = plan.batches(0)
    assert len(batches) == plan.steps_per_epoch == 15
    assert all(int((batch >= 90).sum()) == 14 and len(batch) == 20 for batch in batches)
    assert sorted(torch.cat(batches)[torch.cat(batches) < 90].tolist()) == list(range(90))  # each labelled one once


def test_a_share_of_extra_examples_needs_some():
    with pytest.raises(hb.UserError, match="pass some as extra="):
        hb.train("small-cnn", easy_data(30), threat=THREAT, extra_share=0.5, **settings(epochs=1))


@pytest.mark.parametrize("method", ["mart", "mail-trades"])
def test_unlabelled_examples_help(method, tmp_path):
    few, many = easy_data(30), easy_data(400, seed=1)
    test = easy_data(200, seed=2)
    teacher = hb.train("small-cnn", few, method="standard", threat=THREAT, **settings(epochs=30, val_size=0))
    extra = pseudo_label(teacher.model, many[0])
    assert float((extra.y == many[1]).float().mean()) > 0.6
    found = {}
    for name, more in (("without", None), ("with", extra)):
        run = hb.train(
            "small-cnn",
            few,
            method=method,
            threat=THREAT,
            extra=more,
            out=tmp_path / name,
            **settings(epochs=20, val_size=0),
        )
        found[name] = hb.evaluate(run.model, test, threat=THREAT, attacks=["pgd-20"], quiet=True).robust_accuracy
    assert found["with"] > found["without"]
    with pytest.raises(hb.UserError, match="data extra"):
        hb.train(
            "small-cnn",
            few,
            method=method,
            threat=THREAT,
            out=tmp_path / "with",
            resume=True,
            **settings(epochs=20, val_size=0),
        )
