"""Models of scikit-learn as modules: exact ones with gradients where they are linear or an MLP, else their answers alone."""

import hashlib
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hauberk.core.arguments import check_argument, shown
from hauberk.core.errors import UserError, in_one_line
from hauberk.models.gradient_free import GradientFree
from hauberk.models.scikit_learn_layers import InputColumn, NotExactError, Take, exact_layers, steps_of

_LEAST_PROBABILITY = 1e-12  # of those that become logits


def from_sklearn(
    estimator: Any, *, columns: Sequence[InputColumn] = (), classes: Sequence[str] = (), dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Turn a fitted classifier of scikit-learn into a module from inputs (B, D) to logits (B, C).

    ``MLPClassifier``, ``LogisticRegression``, ``LinearSVC`` and other linear models become layers of PyTorch that compute the
    same up to rounding, with gradients: alone, or behind ``StandardScaler``, ``MinMaxScaler``, ``MaxAbsScaler``,
    ``RobustScaler``, ``OneHotEncoder``, ``OrdinalEncoder``, ``SimpleImputer`` and ``PCA`` in a ``Pipeline`` or a
    ``ColumnTransformer``. The softmax of their logits is ``predict_proba`` of an MLP and of a logistic regression; of the
    others logits are the ``decision_function``, of two classes (0, d). All else that has a ``decision_function`` or
    ``predict_proba``, such as trees, forests and boosting, becomes a :class:`GradientFree` module; its logits are the decision
    function or the logarithm of the probabilities.

    Outputs are in the order of ``estimator.classes_``: labels are indices into that.

    Args:
        estimator: fitted; a classifier or a ``Pipeline`` that ends with one. It is not changed.
        columns: what the inputs are, where the estimator takes a data frame and the inputs are encoded:
            :meth:`hauberk.data.Table.from_sklearn` says it. By default inputs are what the estimator takes.
        classes: labels as text in the order of the outputs, where that is another than ``classes_``.
        dtype: of the layers.

    Returns:
        The module, in evaluation mode; ``has_gradient`` is False where it has none.

    Raises:
        UserError: if it is no fitted classifier, or its answers are no scores of classes.
    """
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    check_argument("dtype", dtype, torch.dtype)
    try:
        check_is_fitted(steps_of(estimator)[-1])
        known = [str(one) for one in estimator.classes_]
        width = int(getattr(estimator, "n_features_in_", len(columns)))
    except (NotFittedError, TypeError, AttributeError) as error:
        raise UserError(f"from_sklearn takes a fitted classifier of scikit-learn, got {shown(estimator)}") from error
    names = getattr(estimator, "feature_names_in_", ())
    columns = list(columns) or [InputColumn(name, (k,)) for k, name in enumerate(names)]
    inputs = columns or [InputColumn(k, (k,)) for k in range(width)]
    order = list(range(len(known)))
    if classes:
        if sorted(classes) != sorted(known):
            raise UserError(f"the classes {', '.join(classes)} are not those of the estimator, {', '.join(known)}")
        order = [known.index(one) for one in classes]
    try:
        layers = exact_layers(estimator, inputs)
    except NotExactError:
        return _by_answers(estimator, columns, order)
    if order != sorted(order):
        layers.append(Take(order))
    return nn.Sequential(*layers).to(dtype).eval().requires_grad_(False)


def _by_answers(estimator: Any, columns: Sequence[InputColumn], order: list[int]) -> GradientFree:
    """The answers of a classifier that there is no exact module for."""
    name, count = type(steps_of(estimator)[-1]).__name__, len(order)
    decides = hasattr(estimator, "decision_function") and getattr(estimator, "decision_function_shape", "ovr") == "ovr"
    if not decides and not hasattr(estimator, "predict_proba"):
        raise UserError(f"{name} has neither a decision_function nor predict_proba; an attack has nothing to go by")

    def answer(inputs: Any) -> np.ndarray:
        try:
            if not decides:
                found = np.asarray(estimator.predict_proba(inputs), dtype=np.float64)
                return np.asarray(np.log(found.clip(_LEAST_PROBABILITY)))[:, order]
            score = np.asarray(estimator.decision_function(inputs), dtype=np.float64)
        except Exception as error:  # whatever somebody's estimator raises
            raise UserError(f"{name} cannot take these inputs: {type(error).__name__}: {in_one_line(error)}") from error
        if score.ndim == 1 and count == 2:
            score = np.stack([np.zeros_like(score), score], 1)
        if score.shape[1:] != (count,):
            raise UserError(f"{name} returns scores of shape {score.shape} for {count} classes")
        return score[:, order]

    return GradientFree(answer, name, _digest(estimator), _frame_of(columns) if columns else None).eval()


def _digest(estimator: Any) -> bytes:
    """What tells estimators apart: of one that was written and read, which is the same whether it had been before or not."""
    from joblib import hash as digest

    try:
        return bytes.fromhex(digest(pickle.loads(pickle.dumps(estimator))))
    except Exception:  # somebody's functions inside may not be written
        return hashlib.sha256(repr(estimator).encode()).digest()


def _frame_of(columns: Sequence[InputColumn]) -> Callable[[np.ndarray], Any]:
    """What makes a data frame of encoded inputs (B, D)."""
    from pandas import DataFrame

    def rows(inputs: np.ndarray) -> Any:
        found: dict[Any, Any] = {}
        for column in columns:
            if column.values:
                found[column.name] = np.asarray(column.values, dtype=object)[inputs[:, column.places].argmax(1)]
            else:
                found[column.name] = inputs[:, column.places[0]]
        return DataFrame(found)

    return rows
