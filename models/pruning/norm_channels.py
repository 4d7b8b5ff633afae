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
from models.pruning.selection import slimming_mask, slimming_threshold


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


def slimming_plan(network: nn.Module, share: float, minimum: int = 1) -> Plan:
    """The plan of Network Slimming: channels of smallest scale go, over all norms at once.

    Args:
        network: Has `norm_channels`.
        share: Of the channels, that goes.
        minimum: Channels that a layer keeps in any case; the published code has no minimum.

    Raises:
        Mistake: The network does not say whose channels its norms scale, or a share outside [0, 1).
    """
    if not hasattr(network, "norm_channels"):
        told = f"{type(network).__name__} does not say whose channels its norms scale"
        raise Mistake(f"{told}: choose a criterion other than slimming")
    gammas = {place.norm: network.get_parameter(f"{place.norm}.weight") for place in _places(network)}
    threshold = slimming_threshold(list(gammas.values()), share)
    kept = {name: slimming_mask(gamma, threshold, minimum) for name, gamma in gammas.items()}
    return norm_plan(network, kept, {"criterion": "slimming", "share": share, "minimum": minimum})


def kept_widths(network: nn.Module, kept: Mapping[str, Tensor]) -> list[int]:
    """How many channels each norm keeps, in the order of the network, as its `widths` are given.

    Args:
        network: Has `norm_channels`.
        kept: Bool [C], by the norm's name.
    """
    return [int(kept[place.norm].sum()) for place in _places(network)]


def widths_of(network: nn.Module) -> list[int | str]:
    """The `widths` that a network like this one, which may have lost channels, is built with.

    Args:
        network: Has `norm_channels`, and `widths` as it was built, with a mark in place of what is no width.
    """
    counts = iter(_count(network.get_submodule(place.writer)) for place in _places(network))
    return [width if isinstance(width, str) else next(counts) for width in network.widths]  # type: ignore[union-attr]


def _count(writer: nn.Module) -> int:
    return len(writer.positions) if isinstance(writer, ChannelSelection) else writer.out_channels  # type: ignore[return-value]


def _places(network: nn.Module) -> Sequence[NormChannels]:
    return network.norm_channels()  # type: ignore[operator]
