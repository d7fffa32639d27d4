"""Exact modules of scikit-learn's linear models, MLPs, scalers and encoders, in float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hauberk.core.errors import UserError

_PROBES = 64
_AGREE = 1e-4
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh, "logistic": nn.Sigmoid,
}  # fmt: skip


class NotExactError(Exception):
    """A step that there is no exact module for."""


@dataclass(frozen=True)
class InputColumn:
    """A column of rows, and where the inputs of the module have it.

    Attributes:
        name: of the column; its number where columns have no names.
        places: the input of a number; of a category the input, 0 or 1, of each value.
        values: of a category, as the estimator knows them; empty for a number.
    """

    name: Any
    places: tuple[int, ...]
    values: tuple[Any, ...] = ()


def steps_of(estimator: Any) -> list[Any]:
    """The estimator as the steps of a pipeline, nested ones too."""
    from sklearn.pipeline import Pipeline

    if not isinstance(estimator, Pipeline):
        return [estimator]
    return [one for _, step in estimator.steps for one in steps_of(step)]


def exact_layers(estimator: Any, columns: Sequence[InputColumn]) -> list[nn.Module]:
    """The exact module of a classifier, in layers of float64."""
    *before, last = steps_of(estimator)
    head = _classifier(last)
    _check_classifier(last, nn.Sequential(*head))
    return [_chain(before, columns)[0], *head]


def _classifier(last: Any) -> list[nn.Module]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.linear_model._base import LinearClassifierMixin
    from sklearn.neural_network import MLPClassifier

    if isinstance(last, MLPClassifier):
        layers: list[nn.Module] = []
        for weight, bias in zip(last.coefs_, last.intercepts_, strict=True):
            layers += [_linear(weight.T, bias), _ACTIVATIONS[last.activation]()]
        layers.pop()
        if last.out_activation_ == "logistic" and len(last.classes_) > 2:  # several labels at once
            raise NotExactError
        return layers + [_Binary()] * (last.out_activation_ == "logistic")
    if not isinstance(last, LinearClassifierMixin) or not isinstance(last.coef_, np.ndarray):
        raise NotExactError
    weight = np.atleast_2d(last.coef_)
    layers = [_linear(weight, np.broadcast_to(last.intercept_, len(weight)))]
    if len(weight) == 1:
        return [*layers, _Binary()]
    # Their probabilities are sigmoids that are made to add up to 1, and no softmax.
    apart = getattr(last, "multi_class", None) == "ovr" or getattr(last, "solver", None) == "liblinear"
    return [*layers, nn.LogSigmoid()] if apart and isinstance(last, LogisticRegression) else layers


def _check_classifier(last: Any, head: nn.Module) -> None:
    """Compare the last step with its module at random points: another version of scikit-learn may compute otherwise."""
    points = np.random.default_rng(0).normal(size=(_PROBES, last.n_features_in_))
    with torch.no_grad():
        z = head(torch.from_numpy(points)).numpy()
    if type(last).__name__ in ("MLPClassifier", "LogisticRegression"):
        exp = np.exp(z - z.max(1, keepdims=True))
        pairs = exp / exp.sum(1, keepdims=True), last.predict_proba(points)
    else:
        pairs = z[:, 1] - z[:, 0] if len(last.classes_) == 2 else z, last.decision_function(points)
    if not np.allclose(*pairs, rtol=_AGREE, atol=_AGREE):
        raise NotExactError


def _chain(steps: Sequence[Any], columns: Sequence[InputColumn]) -> tuple[nn.Module, int]:
    """Steps one behind the other, from the inputs that the columns are in to their outputs, and the number of these."""
    layers: list[nn.Module] = []
    for step in steps:
        if not _changes_nothing(step):
            layer, width = _transformer(step, columns)
            layers.append(layer)
            columns = [InputColumn(k, (k,)) for k in range(width)]
    return nn.Sequential(*(layers or [_select(columns)])), len(columns)


def _changes_nothing(step: Any) -> bool:
    """Whether a step passes inputs on as they are, where none are missing."""
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import FunctionTransformer

    if isinstance(step, SimpleImputer):
        return not step.add_indicator and all(one == one and one is not None for one in step.statistics_)
    return step is None or step == "passthrough" or (isinstance(step, FunctionTransformer) and step.func is None)


def _transformer(step: Any, columns: Sequence[InputColumn]) -> tuple[nn.Module, int]:
    """The exact module of a step, from the inputs that the columns are in to its outputs, and their number."""
    from sklearn.compose import ColumnTransformer
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, OneHotEncoder, OrdinalEncoder, RobustScaler, StandardScaler

    if isinstance(step, ColumnTransformer):
        return _side_by_side(step, columns)
    if isinstance(step, OneHotEncoder | OrdinalEncoder):
        return _encoder(step, columns)
    width, one = len(columns), np.ones(len(columns))
    if isinstance(step, StandardScaler):
        mean = step.mean_ if step.with_mean else 0 * one
        layer: nn.Module = _Affine(mean, 1 / step.scale_ if step.with_std else one)
    elif isinstance(step, RobustScaler):
        layer = _Affine(step.center_ if step.with_centering else 0 * one, 1 / step.scale_ if step.with_scaling else one)
    elif isinstance(step, MaxAbsScaler) and not getattr(step, "clip", False):
        layer = _Affine(0 * one, 1 / step.scale_)
    elif isinstance(step, MinMaxScaler):
        layer = _Affine(0 * one, step.scale_, step.min_, step.feature_range if step.clip else None)
    elif isinstance(step, PCA):
        scale = np.sqrt(step.explained_variance_)[:, None] if step.whiten else 1.0
        weight = step.components_ / scale
        layer, width = _linear(weight, -weight @ step.mean_), len(weight)
    else:
        raise NotExactError
    return nn.Sequential(_select(columns), layer), width


def _side_by_side(step: Any, columns: Sequence[InputColumn]) -> tuple[nn.Module, int]:
    """The steps of a ColumnTransformer, each on its own columns."""
    names = [column.name for column in columns]
    fitted_on = [*getattr(step, "feature_names_in_", ())] or list(range(step.n_features_in_))
    parts, total = [], 0
    for _, one, chosen in step.transformers_:
        if one == "drop" or len(np.atleast_1d(chosen)) == 0:
            continue
        some = []
        for which in _chosen(chosen, fitted_on):
            if which not in names:
                raise UserError(f"the estimator was fitted on a column {which!r} that the inputs do not have")
            some.append(columns[names.index(which)])
        layer, width = _chain(steps_of(one), some)
        parts.append(layer)
        total += width
    return _SideBySide(parts), total


def _chosen(columns: Any, names: Sequence[Any]) -> list[Any]:
    """The names of the columns that a step of a ColumnTransformer takes: it has names, numbers, a mask or a slice."""
    if isinstance(columns, slice):
        return list(names)[columns]
    wanted = np.atleast_1d(columns)
    if wanted.dtype == bool:
        return [name for name, there in zip(names, wanted, strict=True) if there]
    return [names[one] if isinstance(one, int) else one for one in wanted.tolist()]


def _encoder(step: Any, columns: Sequence[InputColumn]) -> tuple[nn.Module, int]:
    """OneHotEncoder or OrdinalEncoder: of inputs of 0 or 1 a choice and a sum of them, of codes a comparison."""
    ordinal = not hasattr(step, "drop_idx_")
    if getattr(step, "min_frequency", None) is not None or getattr(step, "max_categories", None) is not None:
        raise NotExactError
    parts: list[nn.Module] = []
    total = 0
    dropped = [None] * len(columns) if ordinal or step.drop_idx_ is None else step.drop_idx_
    for column, values, left_out in zip(columns, step.categories_, dropped, strict=True):
        kept = [k for k in range(len(values)) if k != left_out]
        total += 1 if ordinal else len(kept)
        if not column.values:
            if not np.issubdtype(np.asarray(values).dtype, np.number):
                raise NotExactError
            codes = np.asarray(values, dtype=np.float64)
            parts.append(_Compare(column.places[0], codes, kept, ordinal))
            continue
        texts = [str(value) for value in values]
        unknown = sorted(set(map(str, column.values)) - set(texts))
        if unknown and step.handle_unknown == "error":
            raise UserError(f"{column.name}: the estimator does not know the value {unknown[0]!r}, and raises an error at it")
        if unknown and ordinal:
            raise NotExactError
        weight = np.array([[float(text == str(value)) for value in column.values] for text in texts])
        weight = np.arange(len(texts))[None] @ weight if ordinal else weight[kept]
        parts.append(nn.Sequential(Take(column.places), _linear(weight, np.zeros(len(weight)))))
    return _SideBySide(parts), total


def _select(columns: Sequence[InputColumn]) -> nn.Module:
    """The inputs of columns that are numbers."""
    if any(column.values for column in columns):
        raise NotExactError  # a category as words; whoever takes it is no exact module
    return Take([column.places[0] for column in columns])


def _linear(weight: Any, bias: Any) -> nn.Linear:
    layer = nn.Linear(np.shape(weight)[1], np.shape(weight)[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.array(weight, dtype=np.float64)))
        layer.bias.copy_(torch.from_numpy(np.array(bias, dtype=np.float64)))
    return layer


class Take(nn.Module):
    """Some of the inputs, (B, D) -> (B, K)."""

    def __init__(self, places: Sequence[int]):
        super().__init__()
        self.register_buffer("places", torch.tensor([int(place) for place in places], dtype=torch.int64))
        self.places: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        return x[:, self.places]


class _Affine(nn.Module):
    """``(x - shift) · scale + offset`` for each input, kept inside a range where there is one."""

    shift: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, shift: Any, scale: Any, offset: Any = 0.0, inside: tuple[float, float] | None = None):
        super().__init__()
        for name, value in (("shift", shift), ("scale", scale), ("offset", np.broadcast_to(offset, np.shape(scale)))):
            self.register_buffer(name, torch.from_numpy(np.array(value, dtype=np.float64)))
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        y = (x - self.shift) * self.scale + self.offset
        return y if self.inside is None else y.clamp(*self.inside)


class _Compare(nn.Module):
    """Codes of one input: 1 for the value it has, 0 for the others; or the number of the value. It has no gradient."""

    def __init__(self, place: int, values: np.ndarray, kept: Sequence[int], ordinal: bool):
        super().__init__()
        self.place, self.kept, self.ordinal = place, list(kept), ordinal
        self.register_buffer("values", torch.from_numpy(values))
        self.values: Tensor

    def forward(self, x: Tensor) -> Tensor:
        hot = (x[:, self.place, None] == self.values.to(x)).to(x.dtype)
        if self.ordinal:
            return hot @ torch.arange(len(self.values)).to(x)[:, None]
        return hot[:, self.kept]


class _SideBySide(nn.Module):
    """Several modules on the same inputs, (B, D) -> (B, sum of their outputs)."""

    def __init__(self, parts: Sequence[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], 1)


class _Binary(nn.Module):
    """Logits (0, d) of two classes from a decision d, (B, 1) -> (B, 2)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (1, 0))
