"""Extra data, soft labels and mixing: what a step sees, on any number of processes, through stops, and from a file."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import hauberk as hb
from hauberk.cli import main
from hauberk.core.distributed import World
from hauberk.core.io import read_state
from hauberk.core.random import ExampleRng
from hauberk.data import ConcatDataset, as_dataset, as_extra, data_digest, read_extra
from hauberk.data.extra import target_probabilities
from hauberk.models import ModelSpec
from hauberk.report.reproduce import train_command
from hauberk.training.batch import BatchLoader
from hauberk.training.config import TrainConfig
from hauberk.training.dom_da import augment_again
from hauberk.training.plan import make_plan
from helpers import THREAT, easy_data, settings, stopped_and_resumed, tiny_net


def soft(n, classes=5, seed=3):
    x, y = easy_data(n, classes, seed)
    p = 0.7 * nn.functional.one_hot(y, classes) + 0.3 / classes
    return x, p


def plan_of(extra=None, method="at", data=None, **given):
    config = TrainConfig(**{"batch_size": 12, "val_size": 0, **given})
    source = as_dataset(easy_data(48) if data is None else data)
    more = None if extra is None else as_extra(extra)
    return make_plan(ModelSpec("mlp", source.input_shape, 5), hb.method(method, THREAT), config, source, more)


def loaded(plan, batch, size=1, step=7):
    """A batch as one or several processes see it, put together again."""
    x, y, p = [torch.zeros(len(batch), *shape) for shape in (plan.spec.input_shape, (), (5,))]
    for rank in range(size):
        part = BatchLoader(plan, torch.device("cpu"), World(rank, size)).load(nn.Linear(1, 1), batch, step)
        x[rank::size], y[rank::size] = part.x, part.y.float()
        p[rank::size] = part.targets
    return x, y, p


def again_by_index(x, y, model, transforms, clamp, tries, strength):
    """The public code of DOM-DA, by places of what is still to be changed."""

    def loss(inputs, labels):
        return nn.functional.cross_entropy(model(inputs), labels, reduction="none")

    left, x = loss(x, y) <= clamp, x.clone()
    for count in range(1, tries + 1):
        places = torch.where(left)[0]
        if not len(places):
            break
        changed = transforms[count - 1](x)[places]
        hard = loss(changed, y[places]) >= clamp
        if count == tries:
            x[places] = changed
        else:
            x[places] = x[places] * (1 - strength) + changed * strength
            x[places[hard]] = changed[hard]
        left[places[hard]] = False
    return x


@pytest.mark.parametrize(("tries", "strength"), [(1, 0.0), (2, 0.0), (3, 0.1), (5, 0.5)])
def test_examples_are_augmented_again_as_dom_da_does(tries, strength):
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(60, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.arange(60) % 3
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    noises = torch.rand(tries, *x.shape, generator=generator, dtype=torch.float64)
    transforms = [lambda inputs, noise=noise: (0.4 * inputs + noise).clamp(0, 1) for noise in noises]

    def losses(inputs):
        return nn.functional.cross_entropy(model(inputs), y, reduction="none")

    clamp = float(losses(x).detach().quantile(0.7))
    found = augment_again(x, losses, lambda inputs, k: transforms[k](inputs), clamp, tries, strength)
    with torch.no_grad():
        wanted = again_by_index(x, y, model, transforms, clamp, tries, strength)
    assert torch.allclose(found, wanted)
    kept = (losses(x) > clamp).detach()
    assert torch.equal(found[kept], x[kept])
    assert (found[~kept] != x[~kept]).flatten(1).any(1).all()


AGAIN = {"augment": "none", "augment_again": "flip+randaugment", "again_threshold": 1.7, "again_share": 0.3}


def test_the_second_half_is_augmented_again_the_same_on_any_number_of_processes():
    plan, batch = plan_of(epochs=2, **AGAIN), torch.arange(12)
    assert plan.total_steps == 8

    def inputs(step, size=1):
        x = torch.zeros(12, *plan.spec.input_shape)
        for rank in range(size):
            net = tiny_net().train()
            before = net[1].running_mean.clone()
            net[1].eval()  # so that an example does not depend on the others
            x[rank::size] = BatchLoader(plan, torch.device("cpu"), World(rank, size)).load(net, batch, step).x
            assert torch.equal(net[1].running_mean, before)
        return x

    plain = plan.train.fetch(batch)[0]
    assert torch.equal(inputs(2), plain)
    late = inputs(3)  # half of the 8 steps are done at its end
    changed = (late != plain).flatten(1).any(1)
    assert changed.any()
    assert torch.equal(inputs(3, size=2), late)
    assert not torch.equal(inputs(4), late)


def test_a_run_that_augments_again_goes_on_exactly(tmp_path):
    def train(data, out, resume=False, **given):
        return hb.train(tiny_net(dropout=0.2), data, threat=THREAT, out=out, resume=resume, **settings(**given))

    _, _, stopped = stopped_and_resumed(train, easy_data(), tmp_path, (130, 170), **{**AGAIN, "augment": "flip"})
    assert stopped == 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"augment_again": "randaug"}, "augment_again is one of"),
        ({"augment_again": "flip", "mixup": 1.0}, "augment_again compares with labels"),
        ({"augment_again": "flip", "again_tries": 0}, "again_tries must be positive"),
        ({"augment_again": "flip", "again_share": 2.0}, "again_share is a part"),
    ],
)
def test_what_cannot_be_augmented_again_says_so(given, says):
    with pytest.raises(hb.UserError, match=says):
        plan_of(**given)


MIXED = {"mixup": 0.7, "cutmix": 1.0, "mixup_prob": 0.8, "augment": "crop-flip"}


@pytest.mark.parametrize("extra", [None, "soft"])
def test_mixed_batches_are_the_same_on_any_number_of_processes(extra):
    plan = plan_of(None if extra is None else soft(30), **MIXED)
    batch = plan.batches(0)[1]
    whole = loaded(plan, batch)
    for size in (2, 3):
        assert all(torch.equal(one, other) for one, other in zip(whole, loaded(plan, batch, size), strict=True))


@pytest.mark.parametrize("extra", [None, "soft"])
def test_mixing_by_hand(extra):
    plan = plan_of(None if extra is None else soft(30), mixup=0.7)
    batch = plan.batches(0)[0]
    x, y, p = loaded(plan, batch)
    clean_x, clean_y = plan.examples.fetch(batch)
    clean_p = nn.functional.one_hot(clean_y, 5).float()
    if extra:
        own = batch >= 48
        assert int(own.sum()) == 8  # 70 % of 12
        clean_p[own] = soft(30)[1][batch[own] - 48]
    _, share = plan.mixing(clean_x, clean_x.roll(1, 0), ExampleRng(0, batch, stage=7))
    assert torch.allclose(p, share[:, None] * clean_p + (1 - share[:, None]) * clean_p.roll(1, 0), atol=1e-6)
    assert torch.allclose(p.sum(1), torch.ones(12), atol=1e-6)
    each = share.view(-1, 1, 1, 1)
    assert torch.allclose(x, each * clean_x + (1 - each) * clean_x.roll(1, 0), atol=1e-6)
    assert torch.equal(y.long(), torch.where(share >= 0.5, clean_y, clean_y.roll(1)))


def test_replays_of_a_batch_see_the_same_inputs_and_draw_by_themselves():
    plan = plan_of(method="free-at", **MIXED)
    loader, batches, n = BatchLoader(plan, torch.device("cpu"), World()), plan.batches(0), plan.method.n_replays
    first, second, after = (loader.load(nn.Linear(1, 1), batches[step], step) for step in (n, 2 * n - 1, 2 * n))
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.targets, second.targets)
    assert not torch.equal(first.rng.keys, second.rng.keys)
    again = loader.load(nn.Linear(1, 1), first.index, 2 * n)  # the same examples in another batch
    assert not torch.equal(first.x, again.x)
    assert not torch.equal(first.x, after.x)


def test_without_mixing_and_soft_labels_a_step_sees_labels():
    for extra in (None, easy_data(30)):
        plan = plan_of(extra)
        part = BatchLoader(plan, torch.device("cpu"), World()).load(nn.Linear(1, 1), plan.batches(0)[0], 0)
        assert part.targets is None


def test_joined_data_have_the_soft_labels_of_their_parts():
    hard, x, p = as_dataset(easy_data(6)), *soft(4)
    joined = ConcatDataset([hard, as_extra((x, p)), as_dataset(easy_data(3, seed=5))])
    index = torch.tensor([8, 0, 6, 12, 5])
    _, y = joined.fetch(index)
    found = target_probabilities(joined, index, y, 6, torch.float64)
    wanted = nn.functional.one_hot(y, 6).double()
    wanted[0, :5], wanted[2, :5] = p[2].double(), p[0].double()
    assert torch.allclose(found, wanted)
    assert data_digest(as_extra((x, p))) != data_digest(as_dataset((x, p.argmax(1))))
    assert data_digest(as_extra((x, p))) != data_digest(as_extra((x, (p + 0.2) / 2)))


def test_the_method_is_given_the_targets():
    seen = []

    class Objective:
        needs = frozenset({"adversarial"})

        def __call__(self, context):
            seen.append(context.loss_targets)
            loss = -(context.loss_targets * context.logits_adv.log_softmax(1)).sum(1)
            return loss, torch.zeros_like(loss)

    method = hb.Method(THREAT, hb.attacks.PGD(steps=1), Objective())
    hb.train(tiny_net(), easy_data(), method=method, **settings(epochs=1, mixup=1.0))
    assert len(seen) == 3
    assert all(torch.allclose(targets.sum(1), torch.ones(len(targets))) for targets in seen)
    assert any(float(targets.max(1).values.min()) < 1 for targets in seen)


RUNS = {
    "mixed": {"mixup": 0.5, "cutmix": 1.0, "augment": "idbh-weak+cutout", "extra": soft(40)},
    "extra": {"extra": easy_data(40, seed=4), "extra_share": 0.5, "augment": "crop-flip+randaugment"},
}


def train(data, out, resume=False, **given):
    method = hb.method("mail-trades", THREAT, steps=2, burn_in=0)
    return hb.train(tiny_net((3, 12, 12), dropout=0.2), data, method=method, out=out, resume=resume, **settings(**given))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_stopped_at_any_step_and_resumed_ends_bit_identical(name, tmp_path):
    def larger(pair):
        return nn.functional.interpolate(pair[0], (12, 12)), pair[1]

    data, given = larger(easy_data()), RUNS[name] | {"extra": larger(RUNS[name]["extra"])}
    _, _, stopped = stopped_and_resumed(train, data, tmp_path, (128, 150, 175, 200), **given)
    assert stopped >= 2


def test_a_run_stopped_between_replays_and_resumed_ends_bit_identical(tmp_path):
    def replayed(data, out, resume=False):
        step = read_state(out / "state.ckpt")[0]["step"] if resume else 0
        assert not resume or step % 8
        how = settings(epochs=1, mixup=0.5, augment="crop-flip", val_size=12)
        return hb.train(tiny_net(dropout=0.2), data, method="free-at", threat=THREAT, out=out, resume=resume, **how)

    _, _, stopped = stopped_and_resumed(replayed, easy_data(), tmp_path, (500,))
    assert stopped


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"mixup": 1.0, "method": "mma"}, "mixup and cutmix make soft labels, and the loss of mma"),
        ({"extra": soft(9), "method": "mma"}, "extra data with probabilities of the classes have soft labels"),
        ({"extra": soft(9, 4)}, "probabilities of 4 classes, the network has 5"),
        ({"extra": (easy_data(9)[0], torch.rand(9, 5))}, "must be probabilities"),
        ({"extra": (easy_data(9)[0], torch.arange(9) % 5 + 3)}, "labels of extra must be 0 to 4, found 3 to 7"),
        ({"extra": (easy_data(9)[0] * 3, torch.arange(9) % 5)}, "inputs"),
        ({"cutmix": 1.0, "data": (torch.rand(48, 7), torch.arange(48) % 5)}, "cutmix is for images"),
        ({"mixup": -1.0}, "mixup must not be negative"),
        ({"mixup_prob": 0.0}, "mixup_prob must be above 0"),
        ({"augment": "idbh-weak", "threat": hb.Linf(0.1, low=-1.0)}, r"for images in \[0, 1\]"),
        ({"augment": "cutout+flips"}, "unknown augmentation 'flips'"),
        ({"extra": "nowhere.npz"}, "there is no file nowhere.npz"),
    ],
)
def test_what_cannot_be_is_refused(given, says):
    given = {"method": "at", "threat": THREAT, "data": easy_data(), **given}
    how = settings(epochs=1, **{key: given.pop(key) for key in ("mixup", "cutmix", "mixup_prob", "augment") if key in given})
    data = given.pop("data")
    net = nn.Sequential(nn.Flatten(), nn.Linear(data[0][0].numel(), 5))
    with pytest.raises(hb.UserError, match=says):
        hb.train(net, data, **given, **how)


def generated(path, n=40, label=None, **more):
    """A file as generators of CIFAR-10 write it."""
    x, y = easy_data(n, seed=9)
    image = (x * 255).byte().permute(0, 2, 3, 1).numpy()
    np.savez(path, image=image, label=y.numpy() if label is None else label, **more)
    return image, y


def test_a_file_of_generated_images_is_read(tmp_path):
    image, y = generated(tmp_path / "extra.npz")
    found = read_extra(tmp_path / "extra.npz")
    assert found.x.dtype == torch.uint8
    assert torch.equal(found.x, torch.as_tensor(image).permute(0, 3, 1, 2))
    assert torch.equal(found.y, y)
    generated(tmp_path / "soft.npz", label=soft(40)[1].numpy())
    assert torch.equal(read_extra(tmp_path / "soft.npz").soft_labels(torch.arange(40))[0], soft(40)[1])
    generated(tmp_path / "small.npz", label=y.byte().numpy())
    assert torch.equal(read_extra(tmp_path / "small.npz").y, y)
    np.savez(tmp_path / "rows.npz", image=np.random.default_rng(0).random((7, 4), np.float32), label=np.arange(7) % 2)
    assert read_extra(tmp_path / "rows.npz").input_shape == (4,)


def test_files_that_are_none_are_refused_in_one_line(tmp_path):
    np.savez(tmp_path / "names.npz", images=np.zeros((3, 4, 4, 3), np.uint8), label=np.zeros(3, np.int64))
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "objects.npz", image=np.array([{}, {}]), label=np.zeros(2, np.int64))
    np.savez(tmp_path / "shape.npz", image=np.zeros((3, 3, 8, 8), np.uint8), label=np.zeros(3, np.int64))
    np.savez(tmp_path / "length.npz", image=np.zeros((3, 4, 4, 3), np.uint8), label=np.zeros(4, np.int64))
    (tmp_path / "text.npz").write_text("no zip")
    whole = tmp_path / "whole.npz"
    generated(whole)
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:3000])
    for name in ("names.npz", "array.npy", "objects.npz", "shape.npz", "length.npz", "text.npz", "cut.npz"):
        with pytest.raises(hb.UserError, match=name) as caught:
            read_extra(tmp_path / name)
        assert "\n" not in str(caught.value)


def digits_file(path, n=200):
    x, y = hb.data.load_data("digits", "train").fetch(torch.arange(n))
    np.savez(path, image=(x * 255).round().byte().permute(0, 2, 3, 1).numpy(), label=y.numpy())


def test_the_command_line_takes_extra_data_and_weights_to_begin_from(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    digits_file("extra.npz")
    quick = ["--epochs", "1", "--quiet", "--model", "mlp", "--method", "standard"]
    assert main(["train", "--out", "a", *quick]) == 0
    assert main(["train", "--extra", "extra.npz", "--extra-share", "0.4", "--init", "a", "--out", "b", *quick]) == 0
    record = json.loads((tmp_path / "b" / "run.json").read_text())
    assert (record["data"]["extra"], record["data"]["extra_file"]) == (200, "extra.npz")
    assert record["settings"]["extra_share"] == 0.4
    assert record["model"]["init"] == "a"
    assert main(["train", "--resume", "b", "--quiet"]) == 0
    (tmp_path / "extra.npz").rename(tmp_path / "moved.npz")
    assert main(["train", "--resume", "b", "--quiet"]) == 2
    assert "there is no file extra.npz" in capsys.readouterr().err
    assert main(["train", "--resume", "b", "--extra", "moved.npz", "--quiet"]) == 0
    digits_file("moved.npz", 199)
    assert main(["train", "--resume", "b", "--extra", "moved.npz", "--quiet"]) == 2
    assert "extra = 200, not 199" in capsys.readouterr().err
    assert main(["train", "--extra-share", "0.4", "--out", "c", *quick]) == 2
    assert "name their file by extra (--extra)" in capsys.readouterr().err


def test_a_network_labels_extra_examples_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x = (hb.data.load_data("digits", "train").fetch(torch.arange(200))[0] * 255).round().byte()
    np.savez("images.npz", image=x.permute(0, 2, 3, 1).numpy())
    quick = ["--epochs", "1", "--quiet", "--model", "mlp", "--method", "standard"]
    for seed in ("0", "1"):
        assert main(["train", "--out", f"teacher-{seed}", "--seed", seed, *quick]) == 0
    given = ["--extra", "images.npz", "--extra-labels", "teacher-0"]
    assert main(["train", *given, "--out", "run", *quick]) == 0
    labelled = hb.data.pseudo_label(hb.load("teacher-0"), x)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["extra_digest"] == data_digest(labelled)
    assert (record["data"]["extra_file"], record["data"]["extra_labels"]) == ("images.npz", "teacher-0")
    assert "--extra images.npz --extra-labels teacher-0" in train_command(record)
    assert main(["train", "--config", "run/config.toml", "--out", "again", "--quiet"]) == 0
    assert (tmp_path / "again" / "last.safetensors").read_bytes() == (tmp_path / "run" / "last.safetensors").read_bytes()
    assert main(["train", "--resume", "run", "--quiet"]) == 0
    assert main(["train", "--resume", "run", "--extra-labels", "teacher-1", "--quiet"]) == 2
    assert "started with other extra data: inputs, labels" in capsys.readouterr().err
    assert main(["train", "--extra", "images.npz", "--out", "none", *quick]) == 2
    assert "images.npz has no array label: give them by a network (--extra-labels RUN" in capsys.readouterr().err
    assert main(["train", "--extra-labels", "teacher-0", "--out", "none", *quick]) == 2
    assert "name their file by extra (--extra)" in capsys.readouterr().err


def test_training_begins_from_the_weights_of_a_run_or_a_file(tmp_path):
    plain = hb.train("mlp", easy_data(), method="standard", threat=THREAT, out=tmp_path / "plain", **settings(epochs=2))
    torch.save({"state_dict": plain.model.state_dict()}, tmp_path / "plain.pt")
    seen = []

    class First:
        def on_train_begin(self, trainer):
            seen.append({key: value.clone() for key, value in trainer.model.state_dict().items()})

    for init in (tmp_path / "plain", tmp_path / "plain" / "best.safetensors", str(tmp_path / "plain.pt")):
        hb.train("mlp", easy_data(), threat=THREAT, init=init, callbacks=[First()], **settings(epochs=1, lr=0.001))
        assert all(torch.equal(value, seen[-1][key]) for key, value in plain.model.state_dict().items())
    with pytest.raises(hb.UserError, match="do not fit this model"):
        hb.train("small-cnn", easy_data(), threat=THREAT, init=tmp_path / "plain", **settings(epochs=1))
    how = {"threat": THREAT, "out": tmp_path / "tuned", **settings(epochs=1)}
    hb.train("mlp", easy_data(), init=tmp_path / "plain", **how)
    other = hb.train("mlp", easy_data(), method="standard", threat=THREAT, out=tmp_path / "other", **settings(epochs=1))
    assert other.folder
    with pytest.raises(hb.UserError, match="started from other weights"):
        hb.train("mlp", easy_data(), init=tmp_path / "other", resume=True, **how)
    assert hb.train("mlp", easy_data(), init=tmp_path / "plain", resume=True, **how).metrics
