"""The network that a name stands for, given the data that it is for."""

from hauberk.data.dataset import IndexedDataset, labels
from hauberk.data.statistics import channel_statistics
from hauberk.data.tables.rows import network_for_rows, rows_behind
from hauberk.models import ModelSpec


def default_model(name: str, dataset: IndexedDataset, *, extra: int = 0, normalize: bool = False) -> ModelSpec:
    """Return how to build a network for the examples of a data set.

    Args:
        name: of the network, as ``hauberk models`` lists it.
        dataset: the training examples. Networks for rows of a table see the nearest valid row, and always normalise.
        extra: number of outputs besides the classes.
        normalize: put a normalisation by the mean and deviation of these examples before the network.
    """
    if (rows := rows_behind(dataset)) is not None:
        return network_for_rows(name, rows, extra)
    classes = dataset.classes or int(labels(dataset).max()) + 1
    mean, std = channel_statistics(dataset) if normalize else ((), ())
    return ModelSpec(name, dataset.input_shape, classes + extra, mean, std)
