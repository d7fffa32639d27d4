"""Which precision, and whether to compile: decided by measuring here and now."""

import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor, nn

from hauberk.attacks.frozen_model import frozen_model
from hauberk.core.errors import UserError, first_line
from hauberk.fastpath.compile import Compiled
from hauberk.fastpath.frozen_copy import InferenceCopy, make_inference_copy, outputs_match
from hauberk.fastpath.precision import DTYPES, Precision

_TRIALS = 5
# Times faster, below which it is not worth it: lower precision, and compiling.
_WORTH_ROUNDING, _WORTH_COMPILING = 1.2, 1.05


def autotune_precision(model: nn.Module, x: Tensor, precision: str, compiling: str) -> tuple[Precision, bool]:
    """Return the fastest precision whose twin agrees with the model, and whether compiling that twin is worth it.

    Args:
        model: classifier.
        x: inputs (B, ...) of the batch size that counts.
        precision: "fp32" or "bf16" where that is settled, "auto" to measure.
        compiling: "on" or "off" where that is settled, "auto" to measure.

    Raises:
        UserError: if it is "on", and the model or the machine cannot.
    """
    with frozen_model(model) as view:
        if precision == "auto":
            precision = _pick_precision(view, x)
        chosen: Precision = "bf16" if precision == "bf16" else "fp32"
        return chosen, compiling != "off" and _compiles(
            make_inference_copy(view, x, DTYPES[chosen]), x, needed=compiling == "on"
        )


def _pick_precision(view: nn.Module, x: Tensor) -> Precision:
    full, low = make_inference_copy(view, x), make_inference_copy(view, x, torch.bfloat16)
    if not isinstance(low, InferenceCopy):
        return "fp32"
    before, after = _seconds((full, low), x)
    return "bf16" if before > _WORTH_ROUNDING * after else "fp32"


def _compiles(form: nn.Module, x: Tensor, needed: bool) -> bool:
    """Whether the twin can be compiled, agrees with itself then, and is faster, if that is asked."""
    problem = "it has no twin that agrees with it (a random model, or one that cannot be traced)"
    if isinstance(form, InferenceCopy):
        try:
            compiled = Compiled(form)
            if outputs_match(form, compiled, x, form.lower):
                if needed:
                    return True
                before, after = _seconds((form, compiled), x)
                return before > _WORTH_COMPILING * after
            problem = "compiled, it computes something else"
        except Exception as error:  # whatever a compiler may say, on any machine
            problem = first_line(error)[:200]
    if needed:
        raise UserError(f"this model cannot be compiled here: {problem}. Use --compile off (compile='off')")
    return False


def _seconds(forms: Sequence[nn.Module], x: Tensor) -> list[float]:
    """Medians of one forward and backward to the input, taken in turns."""
    spent: list[list[float]] = [[] for _ in forms]
    for _ in range(_TRIALS + 1):
        for form, seconds in zip(forms, spent, strict=True):
            begun = time.perf_counter()
            point = x.detach().clone().requires_grad_()
            torch.autograd.grad(form(point).float().logsumexp(1).sum(), point)
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
            seconds.append(time.perf_counter() - begun)
    return [median(seconds[1:]) for seconds in spent]
