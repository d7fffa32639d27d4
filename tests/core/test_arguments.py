"""What an annotation asks for, and what is said of a value that it does not describe."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

import hauberk as hb
from hauberk.core.arguments import check_callable, check_fields, checked, unchecked
from hauberk.core.errors import find_name


@checked
def function(n: int = 0, x: float = 0.0, kind: Literal["a", "b"] = "a", z: Tensor | None = None, many: tuple[float, ...] = ()):
    """Return its arguments."""
    return n, x, kind, z, many


def test_what_fits_is_handed_on_as_python_has_it():
    n, x, _, _, many = function(np.int64(3), x=np.float32(0.5), many=[1, np.float64(2)])
    assert (type(n), type(x), many) == (int, float, (1, 2.0))
    assert type(many) is tuple
    assert unchecked(function)("anything")[0] == "anything"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"n": True}, "n must be a whole number of 64 bits, got True"),
        ({"n": 1.0}, "n must be a whole number"),
        ({"n": 2**63}, "n must be a whole number of 64 bits"),
        ({"x": float("nan")}, "x must be a finite number, got nan"),
        ({"x": 10**400}, "x must be a finite number"),
        ({"x": torch.tensor(0.1)}, r"x must be a finite number, got a Tensor of torch.float32 and shape \(\)"),
        ({"kind": ["a"]}, r"kind must be 'a' or 'b', got \['a'\]"),
        ({"z": np.ones(2)}, "z must be a torch tensor of real numbers .* or None, got a ndarray of float64"),
        ({"z": torch.ones(2, device="meta")}, "on 'meta', without data"),
        ({"z": torch.ones(2).to_sparse()}, "torch.sparse_coo"),
        ({"z": torch.ones(2, dtype=torch.complex64)}, "real numbers"),
        ({"many": (1.0, "b")}, "many must be a list, each of it a finite number"),
        ({"many": "ab"}, "many must be a list"),
    ],
)
def test_what_does_not_fit_is_named_with_what_it_must_be(given, says):
    with pytest.raises(hb.UserError, match=says) as caught:
        function(**given)
    assert "\n" not in str(caught.value)


def test_fields_of_a_frozen_dataclass_are_checked():
    @dataclass(frozen=True)
    class Settings:
        steps: int = 1
        slope: float = 0.0

        def __post_init__(self):
            check_fields(self)

    assert type(Settings(np.int32(4)).steps) is int
    with pytest.raises(hb.UserError, match="slope must be a finite number, got 'steep'"):
        Settings(slope="steep")


@pytest.mark.parametrize(
    ("value", "says"), [(torch.nn.Linear, "is a class, Linear; pass an instance"), (3, "it is 3"), (lambda: 0, "too many")]
)
def test_a_function_of_so_many_arguments(value, says):
    with pytest.raises(hb.UserError, match=says):
        check_callable("loss", value, "logits", "y")
    check_callable("loss", lambda logits, y: logits, "logits", "y")


def test_names_are_found_in_any_case():
    assert find_name("method", "MAIL-TRADES", ["mail-trades", "at"]) == "mail-trades"
    with pytest.raises(hb.UserError, match="did you mean 'mail-trades'"):
        find_name("method", "MAIL-TRADE", ["mail-trades", "at"])
