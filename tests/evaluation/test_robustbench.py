import pytest
import torch

import hauberk as hb
from hauberk.data import load_data, standard_subset
from helpers import fingerprint, same, tiny_batch, tiny_net


@pytest.fixture(scope="module")
def digits():
    """A network of the digits that a few lines of training make."""
    train = load_data("digits", "train")
    x, y = train.fetch(torch.arange(len(train)))
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


@pytest.mark.parametrize("subset", ["first", "standard"])
def test_benchmark_returns_what_an_evaluation_does(digits, subset):
    before = fingerprint(digits)
    found = hb.benchmark(digits, 40, "digits", "Linf", subset=subset, suite="quick")
    assert same(before, fingerprint(digits))
    test = load_data("digits", "test")
    some = standard_subset(test, 40) if subset == "standard" else test
    expected = hb.evaluate(digits, some, threat=hb.Linf(0.1), n=40, quiet=True)
    assert found == (expected.clean_accuracy, expected.robust_accuracy)
    assert 1 >= found[0] > found[1] > 0


def test_benchmark_takes_their_positions_and_all_examples_of_fewer(digits):
    x, y = load_data("digits", "test").fetch(torch.arange(20))
    clean, robust = hb.benchmark(digits, 10_000, (x, y), "L2", eps=0.2, suite="quick")
    assert round(clean * 20, 9).is_integer()
    assert clean >= robust


def test_benchmark_says_where_its_number_means_nothing(digits, capsys):
    hb.benchmark(torch.nn.Sequential(digits, torch.nn.Softmax(1)), 20, "digits", suite="quick")
    assert "INVALID logits: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"dataset": "digits", "threat_model": "L2"}, "give eps: there is no usual radius of digits in L2"),
        ({"dataset": (*tiny_batch(4),)}, "give eps: there is no usual radius of data from Python"),
        ({"dataset": "digits", "threat_model": "corruptions"}, "threat_model is Linf, L2 or L1"),
        ({"dataset": "digits", "threat_model": "L9", "eps": 1}, "norm"),
        ({"dataset": "digits", "n_examples": 0}, "n_examples must be at least 1"),
        ({"dataset": "imagenet"}, "data set"),
    ],
)
def test_benchmark_says_what_is_wrong(arguments, says):
    with pytest.raises(hb.UserError, match=says):
        hb.benchmark(tiny_net(), **arguments)


@pytest.mark.parametrize(
    ("norm", "eps"), [(("cifar10", "Linf"), 8 / 255), (("cifar10", "L2"), 0.5), (("cifar100", "Linf"), 8 / 255)]
)
def test_radii_are_those_of_the_leaderboards(norm, eps):
    from hauberk.evaluation.robustbench import _threat

    assert float(torch.as_tensor(_threat(*norm, None).eps)) == pytest.approx(eps)
