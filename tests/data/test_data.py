import gzip
import hashlib
import json
import pickle
import struct
import subprocess
import sys
import types
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

import hauberk as hb
from hauberk.cli import main
from hauberk.core.random import ExampleRng
from hauberk.data import (
    AUGMENTATIONS,
    DATASETS,
    ConcatDataset,
    Subset,
    TensorDataset,
    as_dataset,
    augment,
    channel_statistics,
    data_digest,
    fetch_for,
    find_augmentation,
    find_dataset,
    labels,
    load_data,
    standard_subset,
    to_device,
)
from hauberk.data.augmentation import PADDING
from hauberk.data.default_model import default_model
from helpers import MNIST

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
GREY = RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8)
LABELS = np.arange(20) % 10


def idx(array):
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write(folder, name):
    """Write 20 examples in the original format of a data set."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        for file in DATASETS[name].files(split):
            if name in ("mnist", "fashion-mnist"):
                content = idx(GREY if "images" in file else LABELS)
                (folder / f"{file}.gz").write_bytes(gzip.compress(content)) if split == "train" else (
                    folder / file
                ).write_bytes(content)
            elif name == "svhn":
                savemat(folder / file, {"X": IMAGES.transpose(2, 3, 1, 0), "y": np.where(LABELS == 0, 10, LABELS)[:, None]})
            else:
                key = b"labels" if name == "cifar10" else b"fine_labels"
                (folder / file).write_bytes(pickle.dumps({b"data": IMAGES.reshape(20, -1), key: LABELS.tolist()}, protocol=2))


@pytest.mark.parametrize("name", [n for n in DATASETS if n != "digits"])
def test_reads_the_original_formats(name, tmp_path):
    write(tmp_path / DATASETS[name].folders[0], name)
    for split in ("train", "test"):
        source = load_data(name, split, tmp_path, verify=False)
        repeats = 5 if (name, split) == ("cifar10", "train") else 1
        expected = GREY[:, None] if "mnist" in name else IMAGES
        assert np.array_equal(source.x.numpy(), np.concatenate([expected] * repeats))
        assert source.y.tolist() == LABELS.tolist() * repeats
        x, _ = source.fetch(torch.tensor([1]))
        assert x.dtype == torch.float32
        assert float(x.max()) <= 1
    with pytest.raises(hb.UserError, match="is not the original file"):
        load_data(name, "train", tmp_path)


@pytest.mark.parametrize("name", [n for n in DATASETS if n != "digits"])
def test_missing_and_damaged_files_say_what_to_do(name, tmp_path):
    with pytest.raises(hb.UserError, match="Get the original files from"):
        load_data(name, "train", tmp_path)
    write(tmp_path, name)
    first = next(p for p in sorted(tmp_path.iterdir()) if p.name.startswith("t"))
    whole = first.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not this format at all"):
        first.write_bytes(damaged)
        split = "test" if "test" in first.name or "t10k" in first.name else "train"
        with pytest.raises(hb.UserError):
            load_data(name, split, tmp_path, verify=False)


def test_any_original_file_may_be_gzipped(tmp_path):
    write(tmp_path, "cifar100")
    plain = tmp_path / "test"
    (tmp_path / "test.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert np.array_equal(load_data("cifar100", "test", tmp_path, verify=False).x.numpy(), IMAGES)


def test_a_batch_that_carries_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    write(tmp_path, "cifar100")
    (tmp_path / "train").write_bytes(pickle.dumps({b"data": Evil(), b"fine_labels": [0]}))
    with pytest.raises(hb.UserError, match="not a CIFAR batch"):
        load_data("cifar100", "train", tmp_path, verify=False)
    assert not (tmp_path / "owned").exists()


def test_hostile_idx_header(tmp_path):
    write(tmp_path, "mnist")
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x08\xff" + b"\xff" * 1020 + b"x")
    with pytest.raises(hb.UserError, match="cut short"):
        load_data("mnist", "test", tmp_path, verify=False)


def test_digits_are_real_and_split_once():
    train, test = load_data("digits", "train"), load_data("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert tuple(train.x.shape[1:]) == (1, 8, 8)
    assert (float(train.x.min()), float(train.x.max())) == (0.0, 1.0)
    rows = {hashlib.sha256(x.numpy().tobytes()).digest() for x in train.x}
    assert sum(hashlib.sha256(x.numpy().tobytes()).digest() in rows for x in test.x) <= 1
    with pytest.raises(hb.UserError, match="did you mean 'digits'"):
        load_data("digit", "train")


@pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST itself is not at hand (../shared/data)")
def test_mnist_itself():
    train, test = load_data("mnist", "train", MNIST), load_data("mnist", "test", MNIST)
    assert (len(train), len(test)) == (60000, 10000)
    assert train.y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_itself():
    train = load_data("fashion-mnist", "train", "/usr/share/datasets")
    assert train.y.bincount().tolist() == [6000] * 10


@pytest.mark.skipif(not MNIST.is_dir(), reason="CIFAR-10 itself is not at hand (../shared/data)")
def test_cifar10_itself(tmp_path):
    subprocess.run([sys.executable, "restore_cifar10.py", str(tmp_path)], cwd=MNIST, check=True, capture_output=True)
    train, test = load_data("cifar10", "train", tmp_path), load_data("cifar10", "test", tmp_path)
    assert train.y.bincount().tolist() == [5000] * 10
    assert test.y.bincount().tolist() == [1000] * 10
    mean, std = channel_statistics(train)
    assert mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-4)
    assert std == pytest.approx((0.2470, 0.2435, 0.2616), abs=1e-4)


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        return np.full((1, 4, 4), i, dtype=np.uint8), i % 3


def test_sources_from_python():
    x, y = np.zeros((5, 2), dtype=np.float32), np.arange(5)
    assert as_dataset((x, y)).fetch(torch.tensor([4]))[1].tolist() == [4]
    tensors = torch.utils.data.TensorDataset(torch.zeros(5, 2), torch.arange(5))
    assert len(as_dataset(tensors)) == len(as_dataset(torch.utils.data.DataLoader(tensors, batch_size=2))) == 5
    items = as_dataset(Pairs())
    batch, targets = items.fetch(torch.tensor([5, 1]))
    assert batch.shape == (2, 1, 4, 4)
    assert torch.allclose(batch[:, 0, 0, 0], torch.tensor([5.0, 1.0]) / 255)
    assert targets.tolist() == [2, 1]
    assert labels(Subset(items, torch.tensor([2, 4]))).tolist() == [2, 1]


FIVE = torch.utils.data.TensorDataset(torch.zeros(5, 2), torch.arange(5))


@pytest.mark.parametrize(
    "how",
    [
        {"sampler": torch.utils.data.SubsetRandomSampler([0, 1])},
        {"sampler": torch.utils.data.RandomSampler(FIVE, replacement=True)},
        {"sampler": torch.utils.data.RandomSampler(FIVE, num_samples=2)},
        {"sampler": torch.utils.data.WeightedRandomSampler(torch.ones(5), 5)},
        {"sampler": torch.utils.data.SequentialSampler(range(2))},
        {"batch_sampler": [[0, 1]]},
        {"batch_sampler": torch.utils.data.BatchSampler(torch.utils.data.SubsetRandomSampler([0, 1]), 2, False)},
        {"collate_fn": lambda pairs: torch.utils.data.default_collate(pairs)},
    ],
)
def test_what_a_loader_does_with_its_examples_is_not_dropped_in_silence(how):
    with pytest.raises(hb.UserError, match=r"pass the data set, or torch.utils.data.Subset|pass a data set whose examples"):
        as_dataset(torch.utils.data.DataLoader(FIVE, **how))


@pytest.mark.parametrize("how", [{}, {"batch_size": 2, "shuffle": True, "drop_last": True}, {"batch_size": None}])
def test_a_loader_of_all_examples_is_its_data_set(how):
    assert len(as_dataset(torch.utils.data.DataLoader(FIVE, **how))) == 5


def test_labels_of_items_are_not_cut_to_integers():
    assert labels(as_dataset([(np.zeros(2), 1.0), (np.zeros(2), torch.tensor([2])), (np.zeros(2), True)])).tolist() == [1, 2, 1]
    with pytest.raises(hb.UserError, match=r"^labels must be integers, got 0.9; "):
        labels(as_dataset([(np.zeros(2), 0.9)]))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("digits", "must give pairs|data must be"),
        (7, "data must be a pair"),
        ((torch.zeros(5, 2), torch.zeros(4, dtype=torch.long)), "need labels of shape"),
        ((torch.zeros(5, 2), torch.zeros(5)), "labels must be integers"),
        ((torch.zeros(5, 2, dtype=torch.int64), torch.arange(5)), "give floats"),
        ((torch.zeros(5), torch.arange(5)), "batch dimension"),
        ((torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)), "empty"),
        ((torch.full((5, 2), float("nan")), torch.arange(5)), "10 NaN"),
        ((torch.full((5, 2), 128.0), torch.arange(5)), "divide by 255"),
        ((torch.randn(50, 2), torch.arange(50) % 5), "normalisation belongs inside the model"),
        ((torch.zeros(5, 2), torch.arange(5) - 1), "labels must be"),
    ],
)
def test_bad_data_says_why(data, says):
    with pytest.raises(hb.UserError, match=says):
        hb.train("mlp", data, threat=hb.Linf(0.1), epochs=1, quiet=True)


def test_crop_and_flip_by_hand():
    x = torch.rand(64, 2, 6, 7)
    rng = ExampleRng(0, torch.arange(64))
    padded = torch.nn.functional.pad(x, [PADDING] * 4)
    seen = set()
    ours = augment(x, AUGMENTATIONS["crop-flip"], rng)
    for i in range(64):
        found = [
            (top, left, flip)
            for top in range(9)
            for left in range(9)
            for flip in (False, True)
            if torch.equal(
                padded[i, :, top : top + 6, left : left + 7].flip(2) if flip else padded[i, :, top : top + 6, left : left + 7],
                ours[i],
            )
        ]
        assert found
        seen.add(found[0])
    assert len(seen) > 30
    assert len({flip for _, _, flip in seen}) == 2
    assert find_augmentation("none") is None
    assert not torch.equal(augment(x, AUGMENTATIONS["crop"], rng), x)
    assert torch.equal(
        augment(x[5:6], AUGMENTATIONS["crop"], ExampleRng(0, torch.tensor([5]))), augment(x, AUGMENTATIONS["crop"], rng)[5:6]
    )


def test_bytes_mean_shares_of_255_to_the_last_bit(device):
    x = torch.arange(256, dtype=torch.uint8).view(1, -1)
    source = Subset(TensorDataset(x, torch.tensor([3])), torch.tensor([0]))
    moved, y = to_device(source, device).fetch(torch.tensor([0]))
    assert moved.device.type == device.type
    assert np.array_equal(moved.cpu().numpy(), x.numpy().astype(np.float32) / np.float32(255))
    assert y.tolist() == [3]


def test_bytes_travel_as_bytes(monkeypatch):
    sent, module = [], import_module("hauberk.data.fetch")
    monkeypatch.setattr(module, "send", lambda values, device: sent.append(values.dtype) or values.to(device))
    source = Subset(TensorDataset(torch.full((4, 3), 51, dtype=torch.uint8), torch.arange(4)), torch.tensor([3, 1]))
    x, y = fetch_for(torch.nn.Linear(3, 4).double(), source, torch.tensor([1, 0]))
    assert x.dtype == torch.float64
    assert x[0].tolist() == pytest.approx([0.2] * 3)
    assert y.tolist() == [1, 3]
    assert torch.uint8 in sent
    assert not any(dtype.is_floating_point for dtype in sent)


def test_float64_arrays_train_float32_models_and_the_other_way_round():
    x, y = np.random.default_rng(0).random((40, 6)), np.arange(40) % 3
    assert hb.train("mlp", (x, y), threat=hb.Linf(0.1), epochs=1, quiet=True).metrics
    model = torch.nn.Linear(6, 3).double()
    assert hb.evaluate(model, (x.astype(np.float32), y), threat=hb.Linf(0.1), attacks=["fgsm"], quiet=True).n == 40


def test_nan_deep_in_a_data_set_is_found():
    class Late(Pairs):
        def __len__(self):
            return 400

        def __getitem__(self, i):
            return np.full((1, 4, 4), np.nan if i == 333 else 0.5, dtype=np.float32), i % 3

    with pytest.raises(hb.UserError, match="NaN or infinite"):
        hb.train("mlp", Late(), threat=hb.Linf(0.1), epochs=1, quiet=True)


def test_downloads_go_through_torchvision_only_when_asked(tmp_path, monkeypatch):
    from hauberk.data.named import download

    asked = []

    def maker(root, download, train):
        asked.append((root, download, train))
        if len(asked) == 2:
            raise RuntimeError("no network")

    fake = types.ModuleType("torchvision")
    fake.datasets = types.SimpleNamespace(MNIST=maker)
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    with pytest.raises(hb.UserError, match="downloading mnist failed: no network; get it from"):
        download("mnist", tmp_path)
    assert asked == [(str(tmp_path), True, True), (str(tmp_path), True, False)]
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(hb.UserError, match="torchvision, which cannot be imported here"):
        download("mnist", tmp_path)


def test_a_long_tail_keeps_ever_fewer_of_each_class():
    y = torch.arange(5).repeat(100)
    kept = hb.data.long_tail(y, 16.0)
    assert y[kept].bincount().tolist() == [100, 50, 25, 12, 6]
    assert kept.tolist() == sorted(kept.tolist())
    assert len(hb.data.long_tail(y, 1.0)) == 500
    with pytest.raises(hb.UserError, match="at least 1"):
        hb.data.long_tail(y, 0.5)


def test_a_digest_is_of_every_byte_however_the_examples_are_held(tmp_path):
    x = torch.randint(256, (70, 3, 5, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    y = torch.arange(70) % 7
    there = data_digest(as_dataset((x, y)))
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert data_digest(as_dataset((mapped, y.int()))) == there
    assert data_digest(Subset(as_dataset((x, y)), torch.arange(70))) == there
    backwards = Subset(as_dataset((x.flip(0), y.flip(0))), torch.arange(69, -1, -1))
    assert data_digest(backwards) == there
    assert data_digest(ConcatDataset([as_dataset((x[:30], y[:30])), as_dataset((x[30:], y[30:]))])) == there
    changed = [(x.clone(), y.clone()) for _ in range(3)]
    changed[0][0][-1, -1, -1, -1] ^= 1
    changed[1][1][-1] += 1
    changed[2] = (x[:-1], y[:-1])
    others = [data_digest(as_dataset(data)) for data in (*changed, (x.float() / 255, y), (x.view(70, 5, 5, 3), y))]
    assert len({there, *others}) == 6


def test_a_digest_of_many_pieces_is_that_of_one(monkeypatch):
    x, y = torch.rand(50, 4), torch.arange(50)
    there = data_digest(as_dataset((x, y)))
    monkeypatch.setattr("hauberk.data.chunks._CHUNK_BYTES", 100)
    assert data_digest(as_dataset((x, y))) == there
    pairs = list(zip(x, y, strict=True))
    assert data_digest(as_dataset(pairs)) == there
    pairs[-1] = (x[-1], 3)
    assert data_digest(as_dataset(pairs)) != there


MINE = """
import numpy as np
import torch

def pairs(split, folder):
    draw = np.random.default_rng(0 if split == "train" else 1)
    y = draw.integers(0, 3, 90 if split == "train" else 30)
    return (draw.random((len(y), 4)) * 0.5 + y[:, None] / 6).astype("float32"), y

class Items(torch.utils.data.Dataset):
    def __init__(self, split, folder):
        self.x, self.y = pairs(split, folder)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], self.y[i]

def no_arguments():
    return pairs("train", None)

number = 7

def halved(x):
    return x / 2

def shifted(x, rng):
    return x + rng.uniform(x[:, :1], 7)

def flat(x):
    return x.flatten()
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The name of a module of somebody else, in the current folder and not yet imported."""
    monkeypatch.chdir(tmp_path)
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MINE)
    return name


def test_a_data_set_by_import_path(mine):
    train, test = (load_data(f"{mine}:pairs", split, "there") for split in ("train", "test"))
    assert (len(train), len(test), train.name, train.folder) == (90, 30, f"{mine}:pairs", "there")
    items = load_data(f"{mine}:Items", "train")
    assert torch.equal(items.fetch(torch.arange(90))[0], train.x)
    spec = default_model("mlp", items)
    assert (spec.classes, spec.input_shape) == (3, (4,))
    assert repr(find_dataset(f"{mine}:Items").default_threat("L2", "0.5")) == repr(hb.L2("0.5"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("{}:missing", "cannot load data set"),
        ("nowhere_at_all:pairs", "cannot load data set 'nowhere_at_all:pairs': there is no module"),
        ("{}:no_arguments", "must be a function of \\(split, folder\\)"),
        ("{}:number", "must be a function of \\(split, folder\\)"),
        ("rows.csv", "a table is named by its schema, FILE.toml .* package.module:attribute"),
        ("mypackage.data", "a data set of your own by package.module:attribute"),
    ],
)
def test_a_data_set_that_cannot_be_imported_says_what_to_do(mine, name, says):
    with pytest.raises(hb.UserError, match=says) as refused:
        load_data(name.format(mine), "train")
    assert "\n" not in str(refused.value)
    with pytest.raises(hb.UserError, match="give --eps"):
        find_dataset(f"{mine}:pairs").default_threat()


def test_a_run_on_ones_own_data_set_needs_its_name_again(mine, capsys):
    name = f"{mine}:pairs"
    words = ["train", "--data", name, "--model", "mlp", "--eps", "0.1", "--epochs", "2", "--out", "run", "--quiet"]
    assert main(words) == 0
    sys.modules.pop(mine)  # as in another process
    for again in (["train", "--resume", "run"], ["evaluate", "run", "--attacks", "fgsm"]):
        capsys.readouterr()
        assert main(again) == 2
        assert f"add --data {name} if you trust it" in capsys.readouterr().err
        assert mine not in sys.modules
    assert main(["report", "run"]) == 0
    assert mine not in sys.modules
    assert main(["train", "--resume", "run", "--data", name, "--quiet"]) == 0
    assert f"evaluate run --data {name}" in capsys.readouterr().out
    assert main(["evaluate", "run", "--data", name, "--attacks", "fgsm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 30
    assert main(["data", name]) == 0
    assert "train: 90 of 4" in capsys.readouterr().out


def test_an_augmentation_of_ones_own(mine):
    x, rng = torch.rand(6, 3, 5, 5), ExampleRng(0, torch.arange(6))
    for found in (find_augmentation(lambda x: x / 2), find_augmentation(f"{mine}:halved"), find_augmentation(torch.nn.ReLU())):
        assert augment(x, found, rng).shape == x.shape
    assert torch.equal(augment(x, find_augmentation(f"{mine}:halved"), rng), x / 2)
    shifted = find_augmentation(f"{mine}:shifted")
    assert torch.equal(augment(x[2:4], shifted, rng.index_select(torch.tensor([2, 3]))), augment(x, shifted, rng)[2:4])
    assert find_augmentation("crop") is AUGMENTATIONS["crop"]
    with pytest.raises(hb.UserError, match="the augmentation returned"):
        augment(x, find_augmentation(f"{mine}:flat"), rng)
    with pytest.raises(hb.UserError, match="did you mean 'crop'"):
        find_augmentation("crops")
    with pytest.raises(hb.UserError, match=r"takes \(x\) or \(x, rng\)"):
        find_augmentation(lambda x, y, z: x)
    with pytest.raises(hb.UserError, match="is a function"):
        find_augmentation(7)
    with pytest.raises(hb.UserError, match="for images"):
        augment(torch.rand(6, 4), AUGMENTATIONS["crop"], rng)


def test_a_loader_takes_our_data_sets_in_whole_batches():
    dataset = Subset(TensorDataset(torch.rand(9, 4), torch.arange(9)), torch.tensor([8, 1, 5]))
    x, y = next(iter(torch.utils.data.DataLoader(dataset, batch_size=2)))
    assert y.tolist() == [8, 1]
    assert torch.equal(x[0], dataset.dataset.x[8])
    assert [int(y) for _, y in dataset] == [8, 1, 5]


def test_joined_data_sets_may_leave_one_out_and_be_many():
    parts = [TensorDataset(torch.full((2, 1), float(k)), torch.tensor([k, k])) for k in range(3)]
    joined = ConcatDataset([parts[0], as_dataset([(np.ones(1, dtype=np.float32), 1)] * 2 + [(np.ones(1), 1)]), parts[2]])
    assert len(joined) == 7
    assert joined.fetch(torch.tensor([6, 0, 5]))[1].tolist() == [2, 0, 2]
    assert joined.fetch(torch.tensor([6, 3]))[0].flatten().tolist() == [2.0, 1.0]


@pytest.mark.parametrize("n", [1, 7, 30, 60])
def test_the_standard_subset_is_the_same_in_any_order_with_equal_shares(n):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (60, 3, 4, 4), generator=generator, dtype=torch.uint8)
    y = torch.tensor([0] * 3 + [1] * 20 + [2] * 37)[torch.randperm(60, generator=generator)]
    shuffle = torch.randperm(60, generator=generator)
    subset, other = standard_subset((x, y), n), standard_subset((x[shuffle], y[shuffle]), n)
    assert data_digest(subset) == data_digest(other)
    assert torch.equal(subset.indices, shuffle[other.indices])
    floats = standard_subset((x.double().numpy() / 255, y.numpy()), n)  # as they are stored elsewhere
    assert torch.equal(floats.indices, subset.indices)
    assert len(subset.indices.unique()) == n
    assert torch.equal(standard_subset((x, y), 60).indices[:n], subset.indices)
    shares = labels(subset).bincount(minlength=3)
    assert shares[0] == min(3, -(-n // 3))  # all there are
    assert n == 60 or shares[1] - shares[2] in (0, 1)
    assert not torch.equal(subset.indices.sort().values, torch.arange(n)) or n == 60


@pytest.mark.parametrize("n", [0, 61, -1])
def test_the_standard_subset_has_as_many_as_there_are(n):
    with pytest.raises(hb.UserError, match="n must be 1 to 60"):
        standard_subset((torch.rand(60, 4), torch.arange(60) % 3), n)
