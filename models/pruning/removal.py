"""Networks without the channels that a plan leaves out, and their masked twins, which still have them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.layers.channel_selection import ChannelSelection
from models.pruning.branches import remove_branches
from models.pruning.groups import CONVOLUTIONS, NORMS, is_depthwise, is_frozen_norm
from models.pruning.plan import Kept, Plan, kept_index


@torch.no_grad()
def remove(network: nn.Module, plan: Plan) -> None:
    """Removes what a plan leaves out, in place: layers, their weights and their statistics become smaller, or go.

    Args:
        network: The unpruned network.
        plan: For it.

    Raises:
        Mistake: The plan is for another network.
    """
    plan.check(network)
    if plan.branches is not None:
        remove_branches(network, plan.branches)
    for name, sides in plan.layers.items():
        module = _module(network, name)
        if module is None:
            owner, _, parameter = name.rpartition(".")
            _put(network.get_submodule(owner), parameter, sides["out"], sides["out"].axis)
        else:
            _slice(module, sides)


@torch.no_grad()
def masked(network: nn.Module, plan: Plan) -> nn.Module:
    """A copy of a network that computes what is left by a plan, and still has all its channels.

    What reads a channel that is left out reads zeros, and a norm over channels only sees those that are kept.

    Args:
        network: The unpruned network.
        plan: For it.
    """
    plan.check(network)
    twin = copy.deepcopy(network)
    for name, sides in plan.layers.items():
        module: Any = _module(twin, name)
        if isinstance(module, (nn.Linear, *CONVOLUTIONS)) and "in" in sides:
            _zero_inputs(module, sides["in"])
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
            twin.set_submodule(name, KeptNorm(module, sides["out"]))
    return twin


class KeptNorm(nn.Module):
    """A norm whose statistics are those of some of its channels; the others become zero.

    Args:
        norm: Layer or group norm.
        kept: Its channels that count.
    """

    def __init__(self, norm: nn.Module, kept: Kept) -> None:
        super().__init__()
        # torchvision's and timm's norms of maps [B, C, H, W] are subclasses with the channels in front.
        self.dim = -1 if isinstance(norm, nn.LayerNorm) and "2d" not in type(norm).__name__ else 1
        self.norm = copy.deepcopy(norm)
        _slice(self.norm, {"out": kept})
        self.index: Tensor
        self.register_buffer("index", kept_index(kept, next(norm.parameters()).device))

    def forward(self, x: Tensor) -> Tensor:
        """As the norm, [..., C] or [B, C, ...]."""
        return torch.zeros_like(x).index_copy(self.dim, self.index, self.norm(x.index_select(self.dim, self.index)))


def _slice(module: Any, sides: Mapping[str, Kept]) -> None:
    if isinstance(module, CONVOLUTIONS):
        _slice_convolution(module, sides)
    elif isinstance(module, nn.Linear):
        if "in" in sides:
            _put(module, "weight", sides["in"], 1)
            module.in_features = len(sides["in"].channels)
        if "out" in sides:
            _put_all(module, sides["out"])
            module.out_features = len(sides["out"].channels)
    elif isinstance(module, ChannelSelection):
        module.keep(kept_index(sides["out"], module.positions.device))
    else:
        _put_all(module, sides["out"])
        width = len(sides["out"].channels)
        if isinstance(module, nn.LayerNorm):
            module.normalized_shape = (width,)
        elif isinstance(module, nn.GroupNorm):
            module.num_channels = width
        elif isinstance(module, nn.PReLU):
            module.num_parameters = width
        elif isinstance(module, NORMS) or is_frozen_norm(module):
            module.num_features = width


def _slice_convolution(conv: Any, sides: Mapping[str, Kept]) -> None:
    depthwise = is_depthwise(conv)
    # The weight of a transposed convolution has its inputs in front.
    front, behind = ("in", "out") if conv.transposed else ("out", "in")
    for side, axis in ((front, 0), (behind, 1)):
        if side not in sides or depthwise:
            continue
        kept = sides[side]
        # The second axis holds the channels of one group, the same in each.
        local = _of_one_group(kept, conv.groups) if axis else kept
        _put(conv, "weight", local, axis)
    if "out" in sides:
        if depthwise:
            _put(conv, "weight", sides["out"], 0)
            conv.groups = conv.in_channels = len(sides["out"].channels)
        for name, tensor in list(_own(conv)):
            if name != "weight" and tensor.ndim and len(tensor) == sides["out"].width:
                _put(conv, name, sides["out"], 0)
        conv.out_channels = len(sides["out"].channels)
    if "in" in sides and not depthwise:
        conv.in_channels = len(sides["in"].channels)


def _zero_inputs(module: Any, kept: Kept) -> None:
    groups = getattr(module, "groups", 1)
    local = _of_one_group(kept, groups)
    gone = torch.ones(local.width, dtype=torch.bool, device=module.weight.device)
    gone[kept_index(local)] = False
    if getattr(module, "transposed", False):
        every = torch.ones(kept.width, dtype=torch.bool, device=module.weight.device)
        every[kept_index(kept)] = False
        module.weight[every] = 0
    else:
        module.weight[:, gone] = 0


def _of_one_group(kept: Kept, groups: int) -> Kept:
    width = kept.width // groups
    return Kept(width, tuple(channel for channel in kept.channels if channel < width))


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _put_all(module: nn.Module, kept: Kept) -> None:
    """Slices every parameter and buffer of a layer that has an entry for each channel."""
    for name, tensor in list(_own(module)):
        if tensor.ndim and len(tensor) == kept.width:
            _put(module, name, kept, 0)


def _put(module: nn.Module, name: str, kept: Kept, axis: int) -> None:
    tensor = getattr(module, name)
    sliced = tensor.detach().index_select(axis, kept_index(kept, tensor.device))
    if isinstance(tensor, nn.Parameter):
        sliced = nn.Parameter(sliced, tensor.requires_grad)
    setattr(module, name, sliced)


def _module(network: nn.Module, name: str) -> nn.Module | None:
    try:
        return network.get_submodule(name)
    except AttributeError:
        return None
