"""What a forward pass costs, in multiply-adds.

Two questions, two functions. `count` asks what a network costs by its shapes alone: the network runs on tensors that
have no data. `executed` asks what a real inference did: only operators that ran are counted, so a network that claims
to skip work shows here whether it does. Both count with PyTorch's `FlopCounterMode`; a multiply-add is two of its
FLOPs. Norms, activations, pooling, additions and biases are not counted, as in the papers' tables.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

_CONVOLUTION = ("convolution", "_convolution", "cudnn_convolution", "_slow_conv2d_forward", "convolution_overrideable")
# A product of two matrices is how PyTorch runs a linear layer, functional ones (sliced weights) included.
_LINEAR = ("mm", "addmm", "_scaled_mm")


@dataclass(frozen=True)
class ModuleCompute:
    """One line of the table: a module with everything below it.

    Args:
        name: Dotted name; empty for the network itself.
        type: Class name.
        params: Parameters in it, shared ones once.
        macs: Multiply-adds in it, per image.
    """

    name: str
    type: str
    params: int
    macs: float

    @property
    def depth(self) -> int:
        """Levels below the network."""
        return self.name.count(".") + 1 if self.name else 0


@dataclass(frozen=True)
class ComputeReport:
    """Cost of one image.

    Args:
        params: Parameters, shared ones once.
        conv_macs: Multiply-adds of convolutions, grouped and transposed ones included.
        linear_macs: Multiply-adds of products of two matrices: linear layers.
        matmul_macs: Multiply-adds of everything else: batched matrix products, and attention written out or fused.
        modules: The network and each module in it, parents before children.
    """

    params: int
    conv_macs: float
    linear_macs: float
    matmul_macs: float
    modules: list[ModuleCompute]

    @property
    def conv_linear_macs(self) -> float:
        """What the tables of most papers report: convolutions and linear layers."""
        return self.conv_macs + self.linear_macs

    @property
    def macs(self) -> float:
        """All multiply-adds."""
        return self.conv_linear_macs + self.matmul_macs


def count(network: nn.Module, input_size: Sequence[int] = (3, 224, 224), batch_size: int = 1) -> ComputeReport:
    """Dense multiply-adds of an inference, from shapes alone.

    Nothing is computed and no activation is stored, so a network of any size, on the meta device too, is counted in
    about a second. The network is left in its mode and on its device.

    Args:
        network: Takes images [batch_size, *input_size].
        input_size: Channels, height, width.
        batch_size: Images that go through together; the report is per image.

    Returns:
        Cost per image.
    """
    reference = next(network.parameters(), None)
    device = reference.device if reference is not None else torch.device("cpu")
    dtype = reference.dtype if reference is not None else torch.float32
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(batch_size, *input_size, device=device, dtype=dtype)
        return _measure(network, (images,), batch_size)


def executed(network: nn.Module, *inputs: Any) -> ComputeReport:
    """Multiply-adds of the operators that ran in one real inference.

    Args:
        network: Any network; it is left in its mode.
        inputs: What its `forward` takes; the length of the first one is the number of images.

    Returns:
        Cost per image, the mean over the batch.
    """
    return _measure(network, inputs, len(inputs[0]))


@contextmanager
def inference(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and every module back in its own mode afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def parameter_count(module: nn.Module) -> int:
    """Parameters of a module, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _measure(network: nn.Module, inputs: tuple[Any, ...], batch_size: int) -> ComputeReport:
    with inference(network), FlopCounterMode(display=False) as counter:
        network(*inputs)
    counts = counter.get_flop_counts()
    root = type(network).__name__

    def macs(name: str, kinds: tuple[str, ...] | None = None) -> float:
        operators = counts.get(name, {})
        chosen = (flops for operator, flops in operators.items() if kinds is None or _name(operator) in kinds)
        return sum(chosen) / 2 / batch_size

    modules = [ModuleCompute("", root, parameter_count(network), macs("Global"))]
    for name, module in network.named_modules():
        if name:
            modules.append(ModuleCompute(name, type(module).__name__, parameter_count(module), macs(f"{root}.{name}")))
    conv, linear = macs("Global", _CONVOLUTION), macs("Global", _LINEAR)
    return ComputeReport(modules[0].params, conv, linear, macs("Global") - conv - linear, modules)


def _name(operator: Any) -> str:
    return str(operator).rsplit(".", maxsplit=1)[-1]
