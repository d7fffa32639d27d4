"""Augmentations against PIL, against references by hand, and against the distributions of the public definitions."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

import hauberk as hb
from hauberk.core.random import ExampleRng
from hauberk.data import AUGMENTATIONS, augment, find_augmentation
from hauberk.data.augmentation import policies
from hauberk.data.augmentation.color import COLOR
from hauberk.data.augmentation.erasing import cutout, random_erasing
from hauberk.data.augmentation.geometry import affine_matrix, crop_shift, random_crop, warp
from hauberk.data.augmentation.mixing import Mixing
from hauberk.data.augmentation.policies import (
    COLOR_BIASED,
    SHAPE_BIASED,
    apply_operations,
    auto_augment,
    color_shape,
    rand_augment,
)

NAMES = [name for name in AUGMENTATIONS if name != "none"]


def images(n=16, channels=3, size=(16, 18), seed=0, smooth=False):
    """Images of whole levels; some smooth, so that their histograms are not flat."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, channels, *size, generator=generator)
    x = 0.2 + 0.5 * x.pow(3) if smooth else x
    return (x * 255).round() / 255


def draws(n, seed=0):
    return ExampleRng(seed, torch.arange(n), stage=3)


def as_pil(x):
    return Image.fromarray((x * 255).round().byte().permute(1, 2, 0).numpy())


def from_pil(image):
    return torch.as_tensor(np.array(image)).permute(2, 0, 1) / 255


@pytest.mark.parametrize("name", [*NAMES, "crop-flip+cutout", "flip+crop-shift+randaugment+random-erasing"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_draws_at_any_batch_size_and_inside_the_box(name, channels):
    x, found = images(24, channels), find_augmentation(name)
    whole = augment(x, found, draws(24))
    assert float(whole.min()) >= 0
    assert float(whole.max()) <= 1
    assert torch.equal(whole, augment(x, found, draws(24)))
    some = torch.tensor([17, 3, 20])
    part = augment(x[some], found, draws(24).index_select(some))
    assert torch.allclose(whole[some], part, atol=1e-7)
    changed = (whole != x).flatten(1).any(1)
    assert changed.float().mean() > 0.3
    assert not torch.equal(whole, augment(x, found, draws(24, seed=1)))
    doubles = augment(x.double(), found, draws(24))
    assert doubles.dtype == torch.float64


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_image_is_refused(name):
    with pytest.raises(hb.UserError, match="for images"):
        augment(torch.rand(6, 4), AUGMENTATIONS[name], draws(6))


def test_names_are_joined_in_order():
    x, rng = images(8), draws(8)
    joined = find_augmentation("flip+cutout")(x, rng)
    assert torch.equal(joined, AUGMENTATIONS["cutout"](AUGMENTATIONS["flip"](x, rng), rng))
    assert torch.equal(find_augmentation("none+flip")(x, rng), AUGMENTATIONS["flip"](x, rng))
    with pytest.raises(hb.UserError, match="unknown augmentation 'cutouts'; did you mean 'cutout'"):
        find_augmentation("flip+cutouts")


def test_crops_reflect_at_the_border():
    x, rng = images(64, 2, (8, 9)), draws(64)
    padded = torch.nn.functional.pad(x, [4] * 4, mode="reflect")
    seen = set()
    for i, one in enumerate(random_crop(x, rng, reflect=True)):
        places = [(a, b) for a in range(9) for b in range(9) if torch.equal(padded[i, :, a : a + 8, b : b + 9], one)]
        assert places
        seen.add(places[0])
    assert len(seen) > 40
    with pytest.raises(hb.UserError, match="too small"):
        random_crop(images(2, 3, (4, 4)), draws(2), reflect=True)


def test_crop_shift_cuts_and_shifts_as_it_is_defined():
    n, size = 4000, 14
    x = (torch.arange(size * size).view(1, 1, size, size) + 1.0).expand(n, 1, size, size) / 200
    out = crop_shift(x, draws(n), high=11)
    values = (out * 200).round().long()
    kept = values > 0
    rows, columns = kept.any(3).squeeze(1).sum(1), kept.any(2).squeeze(1).sum(1)
    cut = (size - rows) + (size - columns)
    counts = torch.bincount(cut, minlength=11)
    assert len(counts) == 11  # 0 to 10 lines
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    of_columns = (size - columns)[cut == 10]
    assert stats.chisquare(torch.bincount(of_columns, minlength=11).numpy()).pvalue > 1e-3
    for i in range(50):  # one whole rectangle of the image, somewhere
        where = kept[i, 0].nonzero()
        (top, left), (bottom, right) = where.min(0).values.tolist(), where.max(0).values.tolist()
        part = values[i, 0, top : bottom + 1, left : right + 1] - 1
        first = int(part[0, 0])
        row, column = divmod(first, size)
        wanted = (torch.arange(size * size).view(size, size))[row : row + part.shape[0], column : column + part.shape[1]]
        assert torch.equal(part, wanted)
    # Where the rest was cut from and where it is put are independent and uniform.
    one = cut == 1
    vertical = one & (rows == size - 1)
    starts = values[vertical].flatten(1).amax(1) == size * size  # the last line is kept: the first was cut off
    puts = kept[vertical, 0].any(2)[:, 0]  # the first line is covered
    table = torch.tensor([[int((starts == a)[puts == b].sum()) for b in (False, True)] for a in (False, True)])
    assert stats.chisquare(table.flatten().numpy()).pvalue > 1e-3
    with pytest.raises(hb.UserError, match="too small"):
        crop_shift(images(2, 3, (8, 8)), draws(2))


def test_random_erasing_has_the_areas_and_ratios_of_its_definition():
    n, size = 6000, 32
    x = torch.ones(n, 1, size, size)
    hidden = random_erasing(x, draws(n), p=0.5).squeeze(1) == 0
    erased = hidden.flatten(1).any(1)
    assert abs(float(erased.float().mean()) - 0.5) < 0.03
    rows, columns = (hidden.any(axis).sum(1)[erased].double() for axis in (2, 1))
    assert torch.equal(rows * columns, hidden.flatten(1).sum(1)[erased].double())  # rectangles
    area, ratio = rows * columns / size**2, rows / columns
    assert float(area.min()) > 0.015
    assert float(area.max()) < 0.35
    assert abs(float(area.mean()) - (0.02 + 0.33) / 2) < 0.01
    assert abs(float(ratio.log().mean())) < 0.05  # log-uniform in [0.3, 3.3]
    assert abs(float(ratio.log().std()) - np.log(3.3 / 0.3) / np.sqrt(12)) < 0.05
    assert bool((random_erasing(x[:100], draws(100), p=1.0) == 0).flatten(1).any(1).all())
    assert torch.equal(random_erasing(x[:100], draws(100), p=0.0), x[:100])


def test_cutout_is_a_square_that_may_hang_over_the_border():
    n, size = 4000, 12
    hidden = cutout(torch.ones(n, 1, size, size), draws(n)).squeeze(1) == 0
    sides = torch.stack([hidden.any(axis).sum(1) for axis in (1, 2)])
    assert (int(sides.min()), int(sides.max())) == (3, 6)
    wanted = np.array([min(m + 3, size) - max(m - 3, 0) for m in range(size)])
    found = np.bincount(sides[0].numpy(), minlength=7)[3:]
    assert stats.chisquare(found, np.bincount(wanted, minlength=7)[3:] * n / size).pvalue > 1e-3
    assert int((cutout(torch.ones(1, 1, 12, 12), draws(1), size=1) == 0).sum()) == 1
    with pytest.raises(hb.UserError, match="at least 1"):
        cutout(torch.ones(1, 1, 12, 12), draws(1), size=0)


ENHANCED = {
    "color": ImageEnhance.Color,
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}


@pytest.mark.parametrize("name", ENHANCED)
@pytest.mark.parametrize("factor", [0.1, 0.7, 1.0, 1.9])
def test_blends_are_pils(name, factor):
    x = images(6)
    ours = COLOR[name](x, torch.full((6,), factor))
    for one, image in zip(ours, x, strict=True):
        theirs = from_pil(ENHANCED[name](as_pil(image)).enhance(factor))
        assert float((one - theirs).abs().max()) <= 2.01 / 255  # PIL rounds in between


@pytest.mark.parametrize("smooth", [False, True])
def test_histograms_and_levels_are_pils(smooth):
    x, many = images(6, size=(40, 41), smooth=smooth), torch.zeros(6)
    x[0, 1] = 0.2  # a channel of a single level
    x[1, :, :, :20] = 0.0
    for name, theirs, close in (
        ("equalize", ImageOps.equalize, 0.0),
        ("autocontrast", ImageOps.autocontrast, 1.01),
        ("invert", ImageOps.invert, 0.0),
        ("posterize", lambda image: ImageOps.posterize(image, 3), 0.0),
        ("solarize", lambda image: ImageOps.solarize(image, 128), 0.0),
    ):
        strength = {"posterize": many + 3, "solarize": many + 128 / 255}.get(name, many)
        for one, image in zip(COLOR[name](x, strength), x, strict=True):
            assert float((one - from_pil(theirs(as_pil(image)))).abs().max()) <= close / 255 + 1e-6, name


def test_moves_by_hand():
    x = images(2, size=(9, 9))

    def moved(name, amount, about_center=False):
        return warp(x, affine_matrix(name, torch.full((2,), float(amount)), 9, 9, about_center))

    assert torch.equal(moved("rotate", 0), x)
    assert torch.equal(moved("rotate", 90)[:, :, 1:-1, 1:-1], x.rot90(1, (2, 3))[:, :, 1:-1, 1:-1])
    right = torch.zeros_like(x)
    right[..., 2:] = x[..., :-2]
    assert torch.equal(moved("translate-x", 2), right)
    down = torch.zeros_like(x)
    down[:, :, 3:] = x[:, :, :-3]
    assert torch.equal(moved("translate-y", 3), down)
    for image, about_center in ((i, c) for i in range(2) for c in (False, True)):
        pil = as_pil(x[image])
        for name, data in (
            ("shear-x", (1, 0.3, -0.3 * 4.5 * about_center, 0, 1, 0)),
            ("shear-y", (1, 0, 0, 0.3, 1, -0.3 * 4.5 * about_center)),
        ):
            theirs = from_pil(pil.transform((9, 9), Image.Transform.AFFINE, data))
            assert torch.equal(moved(name, 0.3, about_center)[image], theirs)


def test_rotations_are_pils():
    x = images(1, size=(32, 32))
    for degrees in (-10, 3, 7):
        ours = warp(x, affine_matrix("rotate", torch.tensor([float(degrees)]), 32, 32, True))[0]
        theirs = from_pil(as_pil(x[0]).rotate(degrees))
        assert float((ours != theirs).any(0).float().mean()) < 0.01  # PIL counts in fixed point


@pytest.mark.parametrize("space", [COLOR_BIASED, SHAPE_BIASED])
def test_idbh_draws_what_its_table_says(space, monkeypatch):
    seen = {}

    def keep(x, names, which, strength, *, about_center=False):
        seen.update(names=list(names), which=which, strength=strength, about_center=about_center)
        return x

    monkeypatch.setattr(policies, "apply_operations", keep)
    n = 40_000
    color_shape(torch.zeros(n, 3, 2, 2), draws(n), space)
    assert seen["about_center"]
    names, counts = seen["names"], torch.bincount(seen["which"], minlength=9)
    assert names == ["color", "brightness", "contrast", "sharpness", "autocontrast", "equalize", "shear-x", "rotate", "shear-y"]
    chances = {name: chance for name, chance, _, _ in space}
    wanted = [chances.get(name, chances["shear"] / 2) * n for name in names]
    assert stats.chisquare(counts.numpy(), wanted).pvalue > 1e-3
    for k, (name, _, low, high) in enumerate(space):
        strength = seen["strength"][seen["which"] == k].double()
        if name == "rotate":
            degrees = torch.bincount(strength.abs().long())
            assert torch.equal(strength, strength.round())
            assert (int(degrees[0]), len(degrees)) == (0, high)
            assert stats.chisquare(degrees[1:].numpy()).pvalue > 1e-3
        elif name == "shear":
            angles = torch.atan(strength).abs()
            assert stats.kstest(angles.numpy(), "uniform", (low, high - low)).pvalue > 1e-3
        elif high:
            assert stats.kstest(strength.numpy(), "uniform", (low, high - low)).pvalue > 1e-3
        if name in ("rotate", "shear"):
            assert abs(float((strength > 0).double().mean()) - 0.5) < 0.05


def test_each_image_gets_its_own_operation():
    x, names = images(10), ["identity", "rotate", "brightness", "shear-x", "equalize"]
    which, strength = torch.arange(10) % 5, torch.linspace(0.1, 0.9, 10)
    out = apply_operations(x, names, which, strength)
    for i in range(10):
        alone = apply_operations(x[i : i + 1], names, which[i : i + 1], strength[i : i + 1])
        assert torch.equal(out[i : i + 1], alone)
        name, one, s = names[i % 5], x[i : i + 1], strength[i : i + 1]
        if name in COLOR:
            assert torch.equal(alone, COLOR[name](one, s))
        elif name == "identity":
            assert torch.equal(alone, one)
        else:
            assert torch.equal(alone, warp(one, affine_matrix(name, s, 16, 18, False)))


def policy_draws(monkeypatch, function, n=30_000, size=(32, 32)):
    seen = []

    def keep(x, names, which, strength, *, about_center=False):
        seen.append((names, which, strength, about_center))
        return x

    monkeypatch.setattr(policies, "apply_operations", keep)
    function(torch.zeros(n, 1, *size), draws(n))
    return seen


def test_rand_augment_draws_two_of_fourteen(monkeypatch):
    seen = policy_draws(monkeypatch, rand_augment)
    assert len(seen) == 2
    wanted = {  # torchvision's magnitude 9 of 31 bins
        "identity": 0, "shear-x": 0.09, "shear-y": 0.09, "translate-x": 4, "translate-y": 4, "rotate": 9, "posterize": 7,
        "solarize": 0.7, "autocontrast": 0, "equalize": 0,
    }  # fmt: skip
    for names, which, strength, about_center in seen:
        assert not about_center
        assert stats.chisquare(torch.bincount(which, minlength=14).numpy()).pvalue > 1e-3
        for k, name in enumerate(names):
            values = strength[which == k].unique()
            if name in ("brightness", "color", "contrast", "sharpness"):
                assert values.tolist() == pytest.approx([0.73, 1.27])
            elif name in ("posterize", "solarize") or not wanted[name]:
                assert values.tolist() == pytest.approx([wanted[name]])
            else:
                assert values.tolist() == pytest.approx([-wanted[name], wanted[name]])
    pairs = torch.bincount(seen[0][1] * 14 + seen[1][1], minlength=196)
    assert stats.chisquare(pairs.numpy()).pvalue > 1e-3  # independent of each other


def test_auto_augment_draws_its_policy(monkeypatch):
    n = 30_000
    first, second = policy_draws(monkeypatch, auto_augment, n)
    names = first[0]
    # A rotation comes first in one sub-policy of 25, at 0.7 and magnitude 2 of 9.
    rotated = first[1] == names.index("rotate")
    assert float(rotated.double().mean()) == pytest.approx(0.7 / 25, abs=4e-3)
    assert first[2][rotated].unique().tolist() == pytest.approx([-30 * 2 / 9, 30 * 2 / 9])
    shifted = second[1][rotated] == names.index("translate-x")
    assert float(shifted.double().mean()) == pytest.approx(0.3, abs=0.06)
    assert set(second[1][rotated].tolist()) == {0, names.index("translate-x")}
    assert second[2][rotated][shifted].abs().unique().tolist() == [14]  # int(150 / 331 * 32)
    by_first = {"equalize": 0.6 + 0.3 + 0.2 + 0.2 + 0.8, "translate-y": 0.4 + 0.9 + 0.7, "color": 0.4 + 0.7 + 0.9}
    for name, chance in by_first.items():
        assert float((first[1] == names.index(name)).double().mean()) == pytest.approx(chance / 25, abs=8e-3)


def mixed(mixing, n=4000, size=(12, 10)):
    x, other = torch.zeros(n, 1, *size), torch.ones(n, 1, *size)
    out, share = mixing(x, other, draws(n))
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    assert torch.allclose(1 - out.flatten(1).mean(1), share, atol=1e-6)  # λ is what is left of the first
    return out, share


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixup_has_shares_of_the_beta_distribution(alpha):
    out, share = mixed(Mixing(mixup=alpha))
    assert torch.allclose(out, out[:, :, :1, :1].expand_as(out))
    assert stats.kstest(share.double().numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_cutmix_has_the_rectangles_of_its_definition():
    n, (height, width) = 6000, (12, 10)
    out, share = mixed(Mixing(cutmix=1.0), n)
    assert set(out.unique().tolist()) == {0.0, 1.0}
    reference, generator = [], np.random.default_rng(0)
    for _ in range(n):  # as the public code of Rebuffi et al. (2021) draws
        cut = np.sqrt(1 - generator.beta(1.0, 1.0))
        sides = []
        for size in (height, width):
            half, middle = int(size * cut) // 2, generator.integers(size)
            sides.append(min(middle + half, size) - max(middle - half, 0))
        reference.append(1 - sides[0] * sides[1] / (height * width))
    pixels = [np.round(np.asarray(one) * height * width) for one in (share.numpy(), reference)]
    assert stats.ks_2samp(*pixels).pvalue > 1e-3


def test_both_mix_every_other_example_and_a_part_may_be_left_alone():
    out, _ = mixed(Mixing(mixup=1.0, cutmix=1.0), 6000)
    cut = ((out == 0) | (out == 1)).flatten(1).all(1)
    assert 0.45 < float(cut.float().mean()) < 0.55
    out, share = mixed(Mixing(mixup=1.0, prob=0.3), 6000)
    assert float((share < 1).float().mean()) == pytest.approx(0.3, abs=0.03)
    assert bool((out[share == 1] == 0).all())


def test_mixing_stays_between_the_two():
    x, other = torch.rand(500, 7) * 3 - 7, torch.rand(500, 7) * 3 - 7
    out, _ = Mixing(mixup=0.5)(x, other, draws(500))
    assert bool(((out >= torch.minimum(x, other)) & (out <= torch.maximum(x, other))).all())
    assert torch.equal(Mixing(mixup=0.5)(x, x, draws(500))[0], x)
    with pytest.raises(hb.UserError, match="CutMix is for images"):
        Mixing(cutmix=1.0)(x, other, draws(500))
