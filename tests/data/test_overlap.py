"""Examples of different classes that can be made the same: by hand, and by trying all points."""

import itertools

import pytest
import torch

import hauberk as hb
from hauberk.data import class_overlap

X = torch.tensor([[0.0, 0.5], [0.3, 0.5], [0.55, 0.5], [0.9, 0.5]])
Y = torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("eps", "meeting", "at_most"),
    [(0.12, 0, 1.0), (0.13, 2, 0.75), (0.16, 3, 0.75), (0.18, 4, 0.5)],  # gaps of 0.3, 0.25 and 0.35
)
@pytest.mark.parametrize("norm", [hb.Linf, hb.L2, hb.L1])
def test_two_meet_halfway(norm, eps, meeting, at_most):
    found = class_overlap((X, Y), norm(eps))
    assert (found.n, found.meeting, found.at_most) == (4, meeting, at_most)
    assert ("no two of 4" in str(found)) == (meeting == 0)
    if meeting:
        assert f"more than {100 * at_most:.1f} % of 4 examples: {meeting} of them" in str(found)


def test_what_cannot_change_keeps_them_apart():
    assert class_overlap((X, Y), hb.Linf(0.5, frozen=[0])).at_most == 1
    assert class_overlap((X, Y), hb.Linf(0.36, monotone=[1, 0])).at_most == 0.5  # the lower of two comes up to the other
    assert class_overlap((X, Y), hb.Linf(0.24, monotone=[1, 0])).at_most == 1
    assert class_overlap((X, Y), hb.Linf(0.5), n=1).at_most == 1
    with pytest.raises(hb.UserError, match="n must be positive"):
        class_overlap((X, Y), hb.Linf(0.5), n=0)


@pytest.mark.parametrize("classes", [2, 3])
def test_no_classifier_of_a_grid_is_more_robust(classes):
    draw = torch.Generator().manual_seed(classes)
    x = torch.randint(0, 8, (7, 1), generator=draw) / 7
    y = torch.randint(0, classes, (7,), generator=draw)
    threat = hb.Linf(1.01 / 7)
    found = class_overlap((x, y), threat)
    best = 0
    for labels in itertools.product(range(classes), repeat=8):  # every classifier of the eight points
        reach = [[labels[k] for k in range(8) if abs(k / 7 - float(one)) <= 1.01 / 7] for one in x]
        best = max(best, sum(all(label == int(k) for label in some) for some, k in zip(reach, y, strict=True)))
    assert best / 7 <= found.at_most < 1
    assert classes > 2 or found.at_most == best / 7  # exact of two, as a point halfway is here one of the eight or beside two
