"""Networks as programs that need none of their Python code: torch.export and ONNX, compared with the network itself."""

import io
import warnings

import torch
from torch import Tensor, nn

from hauberk.core.errors import UserError, in_one_line

_LARGEST_ONNX = 2**31 - 2**20  # bytes of weights; the rest for the program itself
_CLOSE = 1e-4  # largest difference of logits, relative to their size


def torch_program(net: nn.Module, x: Tensor) -> bytes:
    """Return a network as a program of torch.export (``.pt2``), read again and compared on inputs (B, ...), B at least 3.

    Raises:
        UserError: if torch.export refuses the network, or the program computes other logits.
    """
    content = io.BytesIO()
    torch.export.save(_program(net, x), content)
    content.seek(0)
    _compare(net(x), torch.export.load(content).module()(x))
    return content.getvalue()


def onnx_program(net: nn.Module, x: Tensor) -> bytes:
    """Return a network as an ONNX program from "input" to "logits"; compared likewise where onnxruntime is installed.

    Raises:
        UserError: likewise, if the exporter is not installed, and for a network that is too large for one file.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("ONNX needs onnx and onnxscript; pip install onnx onnxscript onnxruntime") from error
    if sum(value.nbytes for value in net.state_dict().values()) > _LARGEST_ONNX:
        raise UserError("one ONNX file holds at most 2 GB, and this network is larger; export it to .pt2")
    program = _program(net, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's about itself
        exported = torch.onnx.export(program, (), input_names=["input"], output_names=["logits"], verbose=False)
    assert exported is not None  # of an exported program it never is
    content: bytes = exported.model_proto.SerializeToString()
    try:
        import onnxruntime
    except ImportError:
        return content  # nothing here that could run it
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for some in (x, x[:2]):
        logits = session.run(None, {session.get_inputs()[0].name: some.numpy()})[0]
        _compare(net(some), torch.from_numpy(logits))
    return content


def _program(net: nn.Module, x: Tensor) -> "torch.export.ExportedProgram":
    try:
        with torch.no_grad():
            return torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    except Exception as error:  # an exporter may refuse other people's modules in any way
        raise UserError(f"torch.export refuses this model: {in_one_line(error)}") from error


def _compare(ours: Tensor, theirs: Tensor) -> None:
    ours = ours.detach()
    apart = float((ours - theirs.detach()).abs().max() / ours.abs().max().clamp_min(1e-12))
    if not apart < _CLOSE:
        raise UserError(f"the exported model computes other logits (relative difference {apart:.2g}); it was not kept")
