"""Which channels of a network can only go together: those of layers that are added, gated or concatenated.

They are read off torch-pruning's dependency graph ("DepGraph: Towards Any Structural Pruning", arXiv 2301.12900), which
knows of a network what a forward pass leaves behind for the gradients. What that graph gets wrong of a network does not
count: groups are tried, and those whose channels cannot go without changing what the others compute stay whole.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from models.mistakes import Mistake

# What layers are sliced as; anything else that channels go through keeps them all.
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
Side = Literal["out", "in"]
# How often torch-pruning may look at a node of a graph, on average, in search of one group.
VISITS = 10


@dataclass(frozen=True)
class Slot:
    """The part that a group has in one side of a layer.

    Args:
        layer: Dotted name of a module, or of a parameter that no layer owns.
        side: What is sliced; norms and parameters only have an `out`.
        width: Channels of that side.
        places: Channels of that side that belong to the group.
        roots: The channel of the group that each of them is, as long as `places`.
        axis: Of a parameter, the one that channels lie along.
    """

    layer: str
    side: Side
    width: int
    places: tuple[int, ...]
    roots: tuple[int, ...]
    axis: int = 0


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that go together.

    Args:
        name: The first layer that makes them.
        width: How many there are.
        repeats: How many of them go at once: a grouped convolution loses the same channels in each of its groups,
            so that with `width / repeats` of them in a group, c goes with c + width / repeats and so on.
        slots: Where they are.
        source: torch-pruning's group, on a copy of the network.
    """

    name: str
    width: int
    repeats: int
    slots: tuple[Slot, ...]
    source: Any

    @property
    def units(self) -> int:
        """How many choices there are: channels that go at once count as one."""
        return self.width // self.repeats

    @property
    def makers(self) -> tuple[Slot, ...]:
        """Sides of layers that make the channels."""
        return tuple(slot for slot in self.slots if slot.side == "out")


class _Marked(nn.Module):
    """A network with a layer behind each of its outputs, by which groups that reach an output are known."""

    def __init__(self, network: nn.Module, outputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.network = network
        self.markers = nn.ModuleList([_marker(output) for output in outputs])

    def forward(self, images: Tensor) -> list[Tensor]:
        return [mark(out) for mark, out in zip(self.markers, _tensors(self.network(images)), strict=True)]


def channel_groups(network: nn.Module, images: Tensor, part: str = "") -> tuple[list[ChannelGroup], list[str]]:
    """Groups of channels of which some can go, and the network still takes and returns what it did.

    Args:
        network: Any; it is not changed.
        images: What the network, or its part, can be run on [B, C, H, W].
        part: Name of the module that is looked at, such as the backbone of a detector; the whole network by default.

    Returns:
        Groups in the order of the network's modules, and the first layers of those that stay whole, because something
        reads their channels that cannot be made smaller; those that reach an output are in neither.

    Raises:
        Mistake: There is no such part, its graph cannot be traced, or none of its channels can go.
    """
    try:
        traced = copy.deepcopy(network.get_submodule(part) if part else network).eval().requires_grad_()
    except AttributeError:
        raise Mistake(f"{type(network).__name__} has no part '{part}'") from None
    _leave_out_channel_attention(traced)
    # Dropout and the like leave no trace in evaluation, and weights of frozen layers have to leave one.
    with torch.enable_grad():
        graph, wrapper = _graph(traced, images)
    prefix = f"{part}." if part else ""
    names = {module: prefix + name for name, module in traced.named_modules()}
    names |= {parameter: prefix + name for name, parameter in traced.named_parameters()}
    found: list[ChannelGroup] = []
    whole: list[str] = []
    seen: set[nn.Module] = set()
    for module in [module for module in graph.module2node if isinstance(module, (*CONVOLUTIONS, nn.Linear))]:
        if module in seen or module in set(wrapper.markers):
            continue
        try:
            source = _source(graph, module)
        except _Endless:
            whole.append(names[module])
            continue
        makers = [dep.target.module for dep, _ in source if graph.is_out_channel_pruning_fn(dep.handler)]
        seen.update(each for each in makers if isinstance(each, nn.Module))
        if any(dep.target.module in set(wrapper.markers) for dep, _ in source):
            continue
        group = _group(source, names, graph)
        if group is None:
            whole.append(names[module])
        else:
            found.append(group)
    if not found:
        raise Mistake(f"{_title(traced, part)}: none of its channels can go without changing its outputs")
    order = {name: i for i, name in enumerate(names.values())}
    return sorted(found, key=lambda group: order[group.name]), whole


class _Endless(Exception):
    """A group of which torch-pruning finds no end."""


class _Limited(list[Any]):
    """The dependencies of a node, which can be gone through so many times, by all nodes together."""

    def __init__(self, items: Iterable[Any], left: list[int]) -> None:
        super().__init__(items)
        self.left = left

    def __iter__(self) -> Iterator[Any]:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise _Endless
        return super().__iter__()


def _source(graph: Any, module: nn.Module) -> Any:
    """torch-pruning's group of all channels that a layer makes.

    Raises:
        _Endless: Its search goes in circles, as where channels are sliced and put together again.
    """
    left = [VISITS * len(graph.module2node)]
    for node in graph.module2node.values():
        node.dependencies = _Limited(list.copy(node.dependencies), left)
    pruner = graph.get_pruner_of_module(module)
    return graph.get_pruning_group(module, pruner.prune_out_channels, list(range(pruner.get_out_channels(module))))


def _graph(network: nn.Module, images: Tensor) -> tuple[Any, _Marked]:
    title = type(network).__name__
    try:
        outputs = _tensors(network(images))
        wrapper = _Marked(network, outputs)
        graph = tp.DependencyGraph().build_dependency(
            wrapper,
            images,
            forward_fn=lambda model, x: model(x),
            customized_pruners=_frozen_norms(network),
            verbose=False,
        )
    except Mistake:
        raise
    except Exception as error:
        # Whatever a network of somebody else's does, of which no list can be made.
        raise Mistake(
            f"{title}: its graph cannot be traced with images {tuple(images.shape)} "
            f"({type(error).__name__} in {_where(error)}), so that it cannot be said which channels go together; name "
            "a part of it that is a plain convolutional network, such as its backbone"
        ) from error
    return graph, wrapper


def _leave_out_channel_attention(network: nn.Module) -> None:
    """Takes out gates that convolve along the channels (arXiv 1910.03151), which torch-pruning goes through for ever.

    They change no shape, and that channels which they read stay whole is found out when the groups are tried.
    """
    for name, module in list(network.named_modules()):
        if any(
            isinstance(each, nn.Conv1d) and each.in_channels == each.out_channels == 1 for each in module.children()
        ):
            network.set_submodule(name, nn.Identity())


def _group(source: Any, names: dict[Any, str], graph: Any) -> ChannelGroup | None:
    """The group in plain values; None where channels go through a layer that cannot be sliced."""
    root = source[0].dep.target.module
    width = graph.get_out_channels(root)
    slots, repeats = [], 1
    for item in source:
        module = item.dep.target.module
        if module not in names:
            if getattr(module, "id", None) is None:
                return None
            # An operation, which has no channels of its own.
            continue
        side: Side = "in" if graph.is_in_channel_pruning_fn(item.dep.handler) else "out"
        slot = _slot(module, names[module], side, item.idxs, item.root_idxs, item.dep.target.pruning_dim)
        if slot is None:
            return None
        slots.append(slot)
        groups = _groups_of(module)
        if groups > 1:
            if slot.places != tuple(range(width)) or slot.roots != slot.places or slot.width != width:
                return None
            repeats = math.lcm(repeats, groups)
    if width % repeats or width // repeats < 2:
        return None
    # A layer that makes and takes the same channels, as a depthwise convolution, is sliced once.
    unique = {(slot.layer, slot.side): slot for slot in slots}
    return ChannelGroup(names[root], width, repeats, tuple(unique.values()), source)


def _slot(module: Any, name: str, side: Side, places: Any, roots: Any, axis: int | None) -> Slot | None:
    if any(root is None for root in roots) or len(places) != len(roots):
        return None
    if isinstance(module, nn.Parameter):
        axis = axis or 0
        width, side = module.shape[axis], "out"
    elif is_depthwise(module):
        width, side, axis = module.out_channels, "out", 0
    elif isinstance(module, CONVOLUTIONS):
        width, axis = module.out_channels if side == "out" else module.in_channels, 0
    elif isinstance(module, nn.Linear):
        width, axis = module.out_features if side == "out" else module.in_features, 0
    elif isinstance(module, NORMS) or is_frozen_norm(module):
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1:
            return None
        width, side, axis = norm_width(module), "out", 0
    elif isinstance(module, nn.PReLU):
        if module.num_parameters == 1:
            return Slot(name, "out", 1, (), ())
        width, side, axis = module.num_parameters, "out", 0
    else:
        return None
    if places and not 0 <= min(places) <= max(places) < width:
        return None
    return Slot(name, side, width, tuple(places), tuple(roots), axis)


def is_depthwise(module: Any) -> bool:
    """Whether a layer is a convolution of each channel by itself."""
    return isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.in_channels == module.out_channels


def is_frozen_norm(module: Any) -> bool:
    """Whether a layer is a batch norm whose scale and shift are buffers, as torchvision, timm and others have it."""
    return "FrozenBatchNorm" in type(module).__name__


def norm_width(norm: Any) -> int:
    """Channels of a norm."""
    if isinstance(norm, nn.LayerNorm):
        return int(norm.normalized_shape[0])
    if isinstance(norm, nn.GroupNorm):
        return norm.num_channels
    return len(norm.weight) if is_frozen_norm(norm) else norm.num_features


def _groups_of(module: Any) -> int:
    if isinstance(module, nn.GroupNorm):
        # A single group is a norm over all channels, whichever they are.
        return module.num_groups
    return 1 if is_depthwise(module) or not isinstance(module, CONVOLUTIONS) else module.groups


def _frozen_norms(network: nn.Module) -> dict[Any, Any]:
    return {type(module): _FrozenNorm() for module in network.modules() if is_frozen_norm(module)}


class _FrozenNorm(tp.BasePruningFunc):
    """Tells torch-pruning that such norms have channels; none is removed by it."""

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.Module) -> int:
        return norm_width(layer)

    get_in_channels = get_out_channels


def _tensors(outputs: Any) -> list[Tensor]:
    return [each for each in tree_leaves(outputs) if isinstance(each, Tensor) and each.requires_grad]


def _marker(output: Tensor) -> nn.Module:
    marker = nn.Conv2d(output.shape[1], 1, 1) if output.ndim == 4 else nn.Linear(output.shape[-1], 1)
    return marker.to(output)


def _where(error: BaseException) -> str:
    """The last of a network's own functions that an error went through."""
    return list(_functions(error))[-1]


def _functions(error: BaseException) -> Iterator[str]:
    trace = error.__traceback__
    while trace is not None:
        yield f"{trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next


def _title(network: nn.Module, part: str) -> str:
    return f"{type(network).__name__} ({part})" if part else type(network).__name__
