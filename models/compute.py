"""What a forward pass costs, in multiply-adds.

Three questions, three functions. `count` asks what a network costs by its shapes alone: the network runs on tensors
that have no data, and dynamic layers do all their work. `executed` asks what a real inference did: only operators that
ran are counted, so a network that claims to skip work shows here whether it does. `expected` asks what the decisions of
the last forward pass cost each sample, with a gradient to them. The first two count with PyTorch's `FlopCounterMode`,
as `flop_counter` sets it up; a multiply-add is two of its FLOPs. A weighted sum of gathered rows, such as deformable
attention's samples, costs one for each element that is read. Norms, activations, pooling, resizing, additions and
biases are not counted, as in the papers' tables.

A dynamic layer keeps two promises. At each forward it calls `record`, and where `has_values` says that its input has no
data to decide by, it does all its work:

    def forward(self, x):
        gate = self.gate(x)                                         # [B], in [0, 1]
        record(self, gate * self.cost(x), self.cost(x))
        if not has_values(x):
            return self.branch(x)
        ...
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.backends import mha
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from models.flop_formulas import FORMULAS
from models.mistakes import Mistake

Part = TypeVar("Part")

_CONVOLUTION = ("convolution", "_convolution", "cudnn_convolution", "_slow_conv2d_forward", "convolution_overrideable")
# A product of two matrices is how PyTorch runs a linear layer, functional ones (sliced weights) included. What a
# recurrent network multiplies are linear layers, which are fused on the CPU and on CUDA.
_LINEAR = ("mm", "addmm", "_scaled_mm", "mkldnn_rnn_layer", "_cudnn_rnn")


class NotCountable(ValueError):
    """A network whose cost cannot be told from shapes; the message says why."""


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
        matmul_macs: Multiply-adds of everything else: batched matrix products, attention written out or fused, and
            weighted sums of gathered rows.
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


def image_inputs(network: nn.Module, images: Tensor) -> tuple[Any, ...]:
    """Images [B, 3, H, W] as a network takes them: a list of them for a detector, which says whether it `has_masks`."""
    return (list(images.unbind()),) if hasattr(network, "has_masks") else (images,)


def count(
    network: nn.Module,
    input_size: Sequence[int] = (3, 224, 224),
    batch_size: int = 1,
    inputs: tuple[Any, ...] | None = None,
) -> ComputeReport:
    """Dense multiply-adds of an inference, from shapes alone.

    Nothing is computed and no activation is stored, so a network of any size, on the meta device too, is counted in
    about a second. The network is left in its mode and on its device.

    Args:
        network: Takes images [batch_size, *input_size], or a list of them if it is a detector, or `inputs`.
        input_size: Channels, height, width.
        batch_size: Images that go through together; the report is per image.
        inputs: What a network that takes something else takes; the length of the first is the number of samples.

    Returns:
        Cost per image.

    Raises:
        NotCountable: The network's shapes depend on what is in the images, as those of non-maximum suppression do.
    """
    try:
        if inputs is None:
            with without_data(network, input_size, batch_size) as images:
                return _measure(network, image_inputs(network, images), batch_size)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            return _measure(network, tree_map_only(Tensor, mode.from_tensor, inputs), len(inputs[0]))
    except (DynamicOutputShapeException, DataDependentOutputException, NotImplementedError) as error:
        operator = getattr(error, "func", "an operator")
        raise NotCountable(
            f"{type(network).__name__} chooses its shapes by what it sees ({operator}), so that shapes alone do not "
            "tell what it costs: measure what it executed"
        ) from error
    finally:
        # What was recorded has no data either.
        forget(network)


def executed(network: nn.Module, *inputs: Any) -> ComputeReport:
    """Multiply-adds of the operators that ran in one real inference.

    Args:
        network: Any network; it is left in its mode.
        inputs: What its `forward` takes; the length of the first one is the number of images.

    Returns:
        Cost per image, the mean over the batch.
    """
    return _measure(network, inputs, len(inputs[0]))


def executed_by_parts(parts: Iterable[Part], images: int) -> list[tuple[Part, float]]:
    """Runs an inference that comes in parts, such as the exits of a network, and counts what has run by each.

    Args:
        parts: Each part is computed when it is asked for.
        images: How many go through together.

    Returns:
        Each part, and the multiply-adds per image of the operators that ran up to it.
    """
    with flop_counter() as counter:
        return [(part, counter.get_total_flops() / 2 / images) for part in parts]


class LayerCompute:
    """What the last forward pass of a dynamic layer cost, everything inside the layer included.

    Args:
        expected: Multiply-adds of each sample [B], differentiable with respect to the layer's decisions.
        dense: Multiply-adds of a sample for which the layer does all its work.
        least: Multiply-adds of a sample for which it does as little as it can.
        planned: Multiply-adds of every sample in an inference, of a layer that keeps to a plan; None for any other.
    """

    def __init__(self, expected: Tensor, dense: float, least: float, planned: float | None = None) -> None:
        self.expected = expected
        self.dense = dense
        self.least = least
        self.planned = planned

    def __reduce__(self) -> tuple[Any, ...]:
        # A copied or pickled network takes the numbers along, not the graph behind them, which cannot be copied.
        return LayerCompute, (self.expected.detach(), self.dense, self.least, self.planned)


@dataclass(frozen=True)
class ExpectedCompute:
    """What the last forward pass of a network cost by its dynamic layers' decisions.

    Args:
        macs: Multiply-adds of each sample [B], static parts included; differentiable.
        dense_macs: Multiply-adds of a sample for which every layer does all its work.
        least_macs: Multiply-adds of a sample for which every layer does as little as it can.
        layers: Each dynamic layer by name.
        planned: Multiply-adds of every sample in an inference, where all layers keep to a plan; else None.
    """

    macs: Tensor
    dense_macs: float
    least_macs: float
    layers: dict[str, LayerCompute]
    planned: float | None = None

    @property
    def share(self) -> Tensor:
        """Share of the dense multiply-adds that each sample costs [B]."""
        return self.macs / self.dense_macs


def record(layer: nn.Module, expected: Tensor, dense: float, least: float = 0.0, planned: float | None = None) -> None:
    """Notes what a dynamic layer's forward pass costs; `expected` reads it. To be called at each forward.

    A layer that runs several times in a forward pass records the sum. Layers that record do not contain each other.

    Args:
        layer: All work that its decisions change is done by it and its submodules.
        expected: Multiply-adds of each sample [B], float32, differentiable with respect to the decisions.
        dense: Multiply-adds of a sample for which the layer does all its work.
        least: Multiply-adds of a sample for which it does as little as it can.
        planned: Multiply-adds of every sample in an inference, of a layer that keeps to a plan, as a training that
            draws is to come to; None for any other.
    """
    # What an export traces is of no image.
    if not torch.compiler.is_exporting():
        layer._compute = LayerCompute(expected, dense, least, planned)  # type: ignore[assignment]


def recorded(network: nn.Module) -> dict[str, LayerCompute]:
    """What the dynamic layers of a network recorded at their last forward pass, by name."""
    named = ((name, getattr(module, "_compute", None)) for name, module in network.named_modules())
    return {name: compute for name, compute in named if compute is not None}


def forget(network: nn.Module) -> None:
    """Drops what was recorded, and with it the autograd graph behind it."""
    for module in network.modules():
        module.__dict__.pop("_compute", None)


def has_values(x: Tensor) -> bool:
    """Whether there is anything to decide by: meta tensors and those of `count` have a shape and no data.

    Those that an export traces stand for data of any kind.
    """
    return torch.compiler.is_exporting() or not (x.is_meta or isinstance(x, FakeTensor))


@contextmanager
def without_data(network: nn.Module, input_size: Sequence[int], batch_size: int = 1) -> Iterator[Tensor]:
    """Images that have a shape and no data, where a network is: what runs on them computes and stores nothing.

    Args:
        network: Gives device and precision.
        input_size: Channels, height, width.
        batch_size: How many images.
    """
    reference = next(network.parameters(), None)
    device = reference.device if reference is not None else torch.device("cpu")
    dtype = reference.dtype if reference is not None else torch.float32
    # On the meta device nothing has data anyway, and goes faster.
    with nullcontext() if device.type == "meta" else FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.empty(batch_size, *input_size, device=device, dtype=dtype)


@contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """Counts what runs inside of it with the rules of this file; read it with `get_total_flops() / 2`.

    PyTorch's own counter takes fused attention and recurrent networks for free on some devices, the CPU among them, and
    gathered sums on all.
    """
    fast = mha.get_fastpath_enabled()
    # In evaluation, nn.MultiheadAttention and nn.TransformerEncoderLayer would be one operator without a formula.
    mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            yield counter
    finally:
        mha.set_fastpath_enabled(fast)


def static_macs(
    network: nn.Module, input_size: Sequence[int] = (3, 224, 224), inputs: tuple[Any, ...] | None = None
) -> float:
    """Multiply-adds of an image outside of the dynamic layers, from shapes alone.

    Args:
        network, input_size, inputs: See `count`.

    Raises:
        Mistake: The network has no dynamic layer.
    """
    dynamic: set[str] = set()
    # The names are gone when `count` returns, as what it recorded has no data.
    hook = network.register_forward_hook(lambda *_: dynamic.update(recorded(network)))
    try:
        report = count(network, input_size, inputs=inputs)
    finally:
        hook.remove()
    _check_layers(network, dynamic)
    return report.macs - sum(module.macs for module in report.modules if module.name in dynamic)


def expected(network: nn.Module, static: float) -> ExpectedCompute:
    """Multiply-adds of each sample of the last forward pass, as its dynamic layers decided.

    Args:
        network: Has run; nothing is run here, and nothing waits for the device.
        static: Multiply-adds of an image outside of the dynamic layers, of `static_macs`.

    Raises:
        Mistake: No layer has recorded anything.
    """
    layers = recorded(network)
    _check_layers(network, layers)
    macs = torch.stack([layer.expected for layer in layers.values()]).sum(0) + static
    dense = sum(layer.dense for layer in layers.values()) + static
    least = sum(layer.least for layer in layers.values()) + static
    plans = [layer.planned for layer in layers.values() if layer.planned is not None]
    planned = sum(plans) + static if len(plans) == len(layers) else None
    return ExpectedCompute(macs, dense, least, layers, planned)


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


def _check_layers(network: nn.Module, names: Iterable[str]) -> None:
    names = set(names)
    if not names:
        raise Mistake(
            f"no dynamic layer of {type(network).__name__} has recorded its compute: it has none, or has not run"
        )
    for name in names:
        outer = [other for other in names if other != name and (not other or name.startswith(f"{other}."))]
        if outer:
            raise Mistake(
                f"the dynamic layer {name!r} is inside of another one, {outer[0]!r}: it would be counted twice"
            )


def _measure(network: nn.Module, inputs: tuple[Any, ...], batch_size: int) -> ComputeReport:
    with inference(network), flop_counter() as counter:
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
