"""Fewer operations in a network that is only evaluated: BatchNorm folded into convolutions, ReLU in place."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

_RELUS = (F.relu, torch.relu)
_SUMS = (operator.add, operator.iadd, torch.add)


def fold(net: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """Leave out each BatchNorm that follows a convolution directly, and let ReLU work in place where nobody else looks.

    Args:
        net: in evaluation mode; used up. A network that cannot be traced, because its control flow depends on the input, stays
            as it is.

    Returns:
        The network without these BatchNorms, whose convolutions have a bias now, with the weights still as they were; and which
        BatchNorm is to be folded into which convolution, by the convolution's name.
    """
    try:
        traced = fx.symbolic_trace(net)
    except Exception:  # whatever the code of a network may raise when it sees no numbers
        return net, {}
    calls = _Calls(traced)
    pairs = calls.without_norms()
    calls.relu_in_place()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced, pairs


class _Calls:
    """The operations of a traced network, and the modules they call."""

    def __init__(self, traced: fx.GraphModule):
        self.graph = traced.graph
        self.modules = dict(traced.named_modules())
        self.names = [str(node.target) for node in self.graph.nodes if node.op == "call_module"]

    def kind(self, node: Any) -> type | None:
        """Type of the module that an operation calls, None for other operations."""
        return type(self.modules[str(node.target)]) if isinstance(node, fx.Node) and node.op == "call_module" else None

    def without_norms(self) -> dict[str, str]:
        """Take BatchNorms after convolutions out of the graph, and return them by the convolution's name."""
        pairs = {}
        for node in list(self.graph.nodes):
            source: Any = node.args[0] if node.args else None
            if self.kind(node) not in NORMS or self.kind(source) not in CONVOLUTIONS or len(source.users) > 1:
                continue
            name, norm = str(source.target), str(node.target)
            layer: Any = self.modules[name]
            if self.names.count(name) > 1 or self.modules[norm].running_mean is None:
                continue
            if layer.bias is None:
                layer.bias = nn.Parameter(layer.weight.new_zeros(layer.out_channels), requires_grad=False)
            pairs[name] = norm
            node.replace_all_uses_with(source)
            self.graph.erase_node(node)
        return pairs

    def relu_in_place(self) -> None:
        """Let ReLU overwrite the output of a layer or a sum that goes nowhere else and is not needed to go backward."""
        for node in self.graph.nodes:
            source: Any = node.args[0] if node.args else None
            layer = self.kind(source) in (*CONVOLUTIONS, *NORMS, nn.Linear) or getattr(source, "target", None) in _SUMS
            relu = self.kind(node) is nn.ReLU or (node.op == "call_function" and node.target in _RELUS)
            if layer and relu and len(source.users) == 1:
                node.op, node.target, node.args, node.kwargs = "call_function", torch.relu_, (source,), {}
