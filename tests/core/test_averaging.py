import pytest
import torch
from torch import nn

from hauberk.core.averaging import ExponentialMovingAverage, StochasticWeightAverage


def follow(average, count=30):
    """Let an average follow random weights. Returns what it was, and what they were, at each update."""
    net, seen, found = average.module, [], []
    model = nn.BatchNorm1d(3)
    generator = torch.Generator().manual_seed(0)
    for step in range(count):
        with torch.no_grad():
            for tensor in (*model.parameters(), model.running_mean, model.running_var):
                tensor.copy_(torch.randn(3, generator=generator))
            model.num_batches_tracked.fill_(step)
        average.update(model)
        seen.append(torch.cat([t.detach().double() for t in (*model.parameters(), model.running_mean, model.running_var)]))
        found.append(torch.cat([t.detach().double() for t in (*net.parameters(), net.running_mean, net.running_var)]))
        assert int(net.num_batches_tracked) == step
    return torch.stack(found), torch.stack(seen)


@pytest.mark.parametrize("warmup", [False, True])
def test_the_moving_average_is_its_formula(warmup):
    found, seen = follow(ExponentialMovingAverage(nn.BatchNorm1d(3), 0.7, warmup=warmup))
    mean = seen[0]
    for n, value in enumerate(seen[1:], start=1):
        decay = min(0.7, (1 + n) / (10 + n)) if warmup else 0.7
        mean = decay * mean + (1 - decay) * value
        assert torch.allclose(found[n], mean, atol=1e-5)


def test_the_equal_average_is_the_mean_since_its_start():
    found, seen = follow(StochasticWeightAverage(nn.BatchNorm1d(3)))
    for n in range(30):
        assert torch.allclose(found[n], seen[: n + 1].mean(0), atol=1e-6)


def test_a_restart_forgets():
    average = StochasticWeightAverage(nn.BatchNorm1d(3))
    follow(average)
    average.restart()
    found, seen = follow(average, 2)
    assert torch.equal(found[0], seen[0])


def test_an_average_goes_on_from_its_state():
    one, other = (ExponentialMovingAverage(nn.BatchNorm1d(3), 0.7, warmup=True) for _ in range(2))
    follow(one, 5)
    other.load_state_dict(one.state_dict())
    assert torch.equal(follow(one, 5)[0], follow(other, 5)[0])
