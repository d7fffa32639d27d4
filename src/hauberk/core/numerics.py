"""torch's switches for how float32 is computed and what repeats bit for bit, set for a while and put back.

They belong to the process: kernels read them when they are launched, in whichever thread, those of a backward pass too.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch

from hauberk.core.arguments import checked

Precision: TypeAlias = Literal["model", "fp32", "tf32", "bf16"]

# torch's fine-grained switches (since 2.9); of the first three inherit those below that say "none".
_GENERAL = (("generic", "all"), ("cuda", "all"), ("mkldnn", "all"))
_OPERATIONS = tuple((backend, op) for backend in ("cuda", "mkldnn") for op in ("conv", "rnn", "matmul"))
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@checked
@contextmanager
def float32_mode(precision: Precision) -> Iterator[None]:
    """Let matrix products, convolutions and recurrent layers inside the block compute float32 as a precision says.

    "tf32" allows TF32 on CUDA, with 10 bits of mantissa in place of 23; "model" leaves torch's switches as the caller has set
    them (by default convolutions on CUDA compute in TF32); any other means true float32, also where
    ``torch.set_float32_matmul_precision`` allows less. On a CPU "tf32" is true float32. Afterwards all switches are as they
    were, whether the caller has used torch's older ones, its newer ones, or both.

    In a training loop of your own, ``loss.backward()`` belongs inside the block as well, because its kernels ask the same
    switches.

    Args:
        precision: "fp32", "tf32", "bf16" or "model".

    Raises:
        UserError: for another precision.

    Example:
        >>> import torch, hauberk as hb
        >>> with hb.float32_mode("fp32"):
        ...     torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        ('highest', False)
    """
    tf32 = precision == "tf32"
    if precision == "model" or _is_set(tf32):
        yield
        return
    # A switch shows its own value only while those that it would inherit from say nothing.
    fine = {}
    for switch in _GENERAL:
        fine[switch] = _get(switch)
        _set(switch, "none")
    fine |= {switch: _get(switch) for switch in _OPERATIONS}
    try:
        older = _older_switches()
        try:
            # Of both kinds, because torch refuses to read the older ones, as its compiler does, where they disagree.
            _set_older_switches(tf32, "high" if tf32 else "highest")
            for switch in (*_GENERAL, *_OPERATIONS):
                _set(switch, "tf32" if tf32 and switch[0] == "cuda" else "ieee")
            yield
        finally:
            _set_older_switches(*older)
    finally:
        for switch, value in fine.items():
            _set(switch, value)


def float32_switches() -> dict[str, str]:
    """Return how float32 is computed now: "ieee" (true float32), "tf32" or "bf16", for each library and kind of operation."""
    return {".".join(switch): _get(switch).replace("none", "ieee") for switch in _OPERATIONS}


@contextmanager
def deterministic_mode(device: torch.device, *, algorithms: bool) -> Iterator[None]:
    """Let CUDA compute the same bits each time inside the block; on another device nothing changes.

    Args:
        device: where the computation is.
        algorithms: choose deterministic algorithms throughout, not only for cuDNN's convolutions; torch warns of operations
            that have none.
    """
    if device.type != "cuda":
        yield
        return
    cudnn, fill = torch.backends.cudnn, torch.utils.deterministic
    before = cudnn.deterministic, cudnn.benchmark, fill.fill_uninitialized_memory  # type: ignore[attr-defined]
    chosen, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    owned = algorithms and _WORKSPACE not in os.environ
    try:
        cudnn.deterministic, cudnn.benchmark = True, False
        if algorithms:
            if owned:
                os.environ[_WORKSPACE] = ":4096:8"  # read when the first matrix product is asked for
            if not chosen:
                torch.use_deterministic_algorithms(True, warn_only=True)
            fill.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads what it has not written
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark, fill.fill_uninitialized_memory = before  # type: ignore[attr-defined]
        if algorithms:
            torch.use_deterministic_algorithms(chosen, warn_only=warn_only)
        if owned:
            os.environ.pop(_WORKSPACE, None)


def _get(switch: tuple[str, str]) -> str:
    # The public attributes are not enough: that of oneDNN writes elsewhere than it reads.
    return str(torch._C._get_fp32_precision_getter(*switch))


def _set(switch: tuple[str, str], value: str) -> None:
    torch._C._set_fp32_precision_setter(*switch, value)


def _is_set(tf32: bool) -> bool:
    """Whether all switches say so already, the older ones too."""
    wanted = {"cuda": "tf32" if tf32 else "ieee", "mkldnn": "ieee"}
    if any(_get(switch) != wanted[switch[0]] for switch in _OPERATIONS):
        return False
    try:
        older: tuple[Any, ...] = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:  # they and the newer ones disagree
        return False
    return older == (tf32, "high" if tf32 else "highest")


def _older_switches() -> tuple[bool, str]:
    """Return cuDNN's ``allow_tf32`` and the precision of matrix products; leaves the newer switches in disorder.

    torch refuses to return one that disagrees with the newer switches, so these are moved out of the way.
    """
    for switch in _OPERATIONS:
        _set(switch, "ieee")
    matmul = torch.get_float32_matmul_precision()
    for op in ("conv", "rnn"):
        _set(("cuda", op), "tf32")
    try:
        return bool(torch.backends.cudnn.allow_tf32), matmul
    except RuntimeError:
        return False, matmul


def _set_older_switches(allow_tf32: bool, matmul: str) -> None:
    torch.backends.cudnn.allow_tf32 = allow_tf32
    torch.set_float32_matmul_precision(matmul)
