"""Channels that leave a network with the scales of its norms, where the network itself says who writes and reads them.

Network Slimming, arXiv 1708.06519: a channel goes where the scale of its norm does. Behind a norm on a map that others
read, too, a selection stands in place of a narrower map; `torch_pruning` knows no such layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from models.layers.channel_selection import ChannelSelection

_Layer = TypeVar("_Layer", nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class NormChannels:
    """Who knows the channels of a norm, by dotted name.

    Args:
        norm: The norm.
        reader: The convolution or linear layer behind it.
        writer: The convolution before it, or the `ChannelSelection` behind it where its map is shared.
    """

    norm: str
    reader: str
    writer: str


class Slimmable(Protocol):
    """A network whose channels can leave."""

    def norm_channels(self) -> Sequence[NormChannels]:
        """The norms whose channels can leave, in the order of the network."""


_Network = TypeVar("_Network", bound=nn.Module)


def without_channels(network: _Network, kept: Mapping[str, Tensor]) -> _Network:
    """A copy of a network that has, of these norms, the kept channels only.

    Args:
        network: Has `norm_channels`.
        kept: Channels that are kept, bool [C], by the norm's name.
    """
    smaller = deepcopy(network)
    places: Sequence[NormChannels] = smaller.norm_channels()  # type: ignore[operator]
    for place in places:
        mask = kept.get(place.norm)
        if mask is None:
            continue
        positions = mask.nonzero().flatten()
        writer = smaller.get_submodule(place.writer)
        if isinstance(writer, ChannelSelection):
            selection = ChannelSelection(len(mask), len(positions)).to(mask.device)
            selection.select(mask)
            smaller.set_submodule(place.writer, selection)
        else:
            smaller.set_submodule(place.writer, _rows(writer, positions))  # type: ignore[type-var]
            smaller.set_submodule(place.norm, _norm(smaller.get_submodule(place.norm), positions))
        reader = smaller.get_submodule(place.reader)
        smaller.set_submodule(place.reader, _columns(reader, positions))  # type: ignore[type-var]
    return smaller


def kept_widths(network: nn.Module, kept: Mapping[str, Tensor]) -> list[int]:
    """How many channels each norm keeps, in the order of the network, as its `widths` are given.

    Args:
        network: Has `norm_channels`.
        kept: Bool [C], by the norm's name.
    """
    places: Sequence[NormChannels] = network.norm_channels()  # type: ignore[operator]
    return [int(kept[place.norm].sum()) for place in places]


def _rows(layer: _Layer, positions: Tensor) -> _Layer:
    bias = None if layer.bias is None else layer.bias[positions]
    return _sliced(layer, layer.weight[positions], bias, "out", len(positions))


def _columns(layer: _Layer, positions: Tensor) -> _Layer:
    return _sliced(layer, layer.weight[:, positions], layer.bias, "in", len(positions))


@torch.no_grad()
def _sliced(layer: _Layer, weight: Tensor, bias: Tensor | None, side: str, count: int) -> _Layer:
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    kind = "channels" if isinstance(layer, nn.Conv2d) else "features"
    setattr(layer, f"{side}_{kind}", count)
    return layer


def _norm(norm: nn.Module, positions: Tensor) -> nn.BatchNorm2d:
    assert isinstance(norm, nn.BatchNorm2d)
    smaller = nn.BatchNorm2d(len(positions), norm.eps, norm.momentum).to(positions.device).train(norm.training)
    smaller.load_state_dict(
        {name: value[positions] if value.dim() else value for name, value in norm.state_dict().items()}
    )
    return smaller
