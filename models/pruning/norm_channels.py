"""Channels that leave a network with the scales of its norms, where the network itself says who makes and reads them.

Network Slimming, arXiv 1708.06519: a channel goes where the scale of its norm does. Behind a norm on a map that others
read, too, the norm stays and a selection leaves the channel out for one reader; a graph of the network would have all
readers lose it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from models.layers.channel_selection import ChannelSelection
from models.mistakes import Mistake
from models.pruning.plan import Kept, Plan


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


def norm_plan(network: nn.Module, kept: Mapping[str, Tensor], why: Mapping[str, Any] | None = None) -> Plan:
    """The plan by which norms keep some of their channels.

    Args:
        network: Has `norm_channels`, which gives a `NormChannels` for each norm whose channels can leave.
        kept: Channels that are kept, bool [C], by the norm's name.
        why: See `Plan`.

    Raises:
        Mistake: A norm would lose all its channels.
    """
    layers: dict[str, dict[str, Kept]] = {}
    for place in _places(network):
        mask = kept.get(place.norm)
        if mask is None or mask.all():
            continue
        if not mask.any():
            raise Mistake(
                f"norm {place.norm} would lose all {len(mask)} channels: give it a smaller share or a minimum"
            )
        channels = Kept(len(mask), tuple(mask.nonzero().flatten().tolist()))
        layers.setdefault(place.writer, {})["out"] = channels
        layers.setdefault(place.reader, {})["in"] = channels
        if not isinstance(network.get_submodule(place.writer), ChannelSelection):
            layers.setdefault(place.norm, {})["out"] = channels
    return Plan(type(network).__name__, layers, why or {})


def kept_widths(network: nn.Module, kept: Mapping[str, Tensor]) -> list[int]:
    """How many channels each norm keeps, in the order of the network, as its `widths` are given.

    Args:
        network: Has `norm_channels`.
        kept: Bool [C], by the norm's name.
    """
    return [int(kept[place.norm].sum()) for place in _places(network)]


def _places(network: nn.Module) -> Sequence[NormChannels]:
    return network.norm_channels()  # type: ignore[operator]
