"""Step sizes in the notations of the field: numbers, "2/255", and parts of ε such as "eps/4"."""

import math
import re
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from hauberk.core.arguments import check_fields, shown
from hauberk.core.errors import UserError
from hauberk.threat import parse_fraction

_IN_EPS = re.compile(r"(?:(?P<times>[\d./]+)\s*\*\s*)?eps(?:\s*/\s*(?P<over>[\d.]+))?")


@dataclass(frozen=True)
class RelativeStep:
    """A step size that is a part of ε: ``RelativeStep(1, 4)`` is ε/4, as "eps/4".

    Attributes:
        times: times ε.
        over: divided by.
    """

    times: float = 1.0
    over: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not (self.times > 0 and self.over > 0):
            raise UserError(f"times and over must be positive, got {self.times} and {self.over}")

    def of(self, eps: float | Tensor) -> float | Tensor:
        """Return the step for an ε in the units of the input."""
        return eps * (self.times / self.over)

    def __str__(self) -> str:
        return f"{self.times:g}*eps/{self.over:g}".removeprefix("1*").removesuffix("/1")


StepSize: TypeAlias = float | str | Tensor | RelativeStep


def parse_step_size(step: StepSize) -> float | Tensor | RelativeStep:
    """Read a step size in the field's notations: a number, "2/255", "eps/4", "1.25*eps/10"; or one value per feature.

    Raises:
        UserError: if it cannot be read or is not positive.
    """
    size: float | Tensor | RelativeStep
    if isinstance(step, str):
        found = _IN_EPS.fullmatch(step.strip())
        try:
            if found:
                size = RelativeStep(parse_fraction(found["times"] or "1") / float(found["over"] or 1))
            else:
                size = parse_fraction(step)
        except (ValueError, ZeroDivisionError) as error:
            raise UserError(f"step_size = {step!r} is not a number, '2/255' or 'eps/4'") from error
    else:
        size = step
    smallest = size.of(1.0) if isinstance(size, RelativeStep) else size
    if isinstance(smallest, Tensor):
        smallest = float(smallest.min()) if smallest.numel() else math.nan
    if not (0 < smallest < math.inf or (isinstance(size, Tensor) and smallest == 0)):
        raise UserError(f"step_size must be positive, got {shown(step)}")
    return size
