"""A plan of what is pruned: which channels each layer keeps, and why. Plain values, which JSON and YAML hold.

    {"network": "ResNet", "why": {"criterion": "l1", "budget": 0.5, "of": "macs"},
     "layers": {"layer1.0.conv1": {"out": {"of": 64, "kept": "0-3,7,9-40"}}, "layer1.0.bn1": ...,
                "layer1.0.conv2": {"in": {"of": 64, "kept": "0-3,7,9-40"}}}}

Layers that are not named are left as they are. Residual branches that go as a whole are listed as `branches`, by their
last layers: `{"branches": ["layer1.0.bn3"]}`. A plan names every layer that it makes smaller, on both sides, so that
nothing is traced when the smaller network is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from models.layers.channel_selection import ChannelSelection
from models.mistakes import Mistake
from models.pruning.groups import CONVOLUTIONS, NORMS, ChannelGroup, is_frozen_norm, norm_width


@dataclass(frozen=True)
class Kept:
    """What one side of a layer keeps.

    Args:
        width: Channels of the unpruned layer.
        channels: Those that are kept, ascending.
        axis: Of a parameter that no layer owns, the one that channels lie along.
    """

    width: int
    channels: tuple[int, ...]
    axis: int = 0


@dataclass(frozen=True)
class Plan:
    """Which channels each layer keeps.

    Args:
        network: Class of the network that the plan is for.
        layers: Of each layer that becomes smaller, what its sides `out` and `in` keep.
        why: How the channels were chosen: criterion, share or budget and so on, in plain values.
        branches: Last layers of the residual branches that go; None where scales on branches are left as they are.
    """

    network: str
    layers: Mapping[str, Mapping[str, Kept]]
    why: Mapping[str, Any] = field(default_factory=dict)
    branches: tuple[str, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The plan in plain values."""
        layers = {
            name: {
                side: {"of": kept.width, "kept": ranges(kept.channels)} | ({"axis": kept.axis} if kept.axis else {})
                for side, kept in sides.items()
            }
            for name, sides in self.layers.items()
        }
        branches = {} if self.branches is None else {"branches": list(self.branches)}
        return {"network": self.network, "why": dict(self.why), "layers": layers} | branches

    @staticmethod
    def of(content: Any) -> Plan:
        """The plan that plain values say.

        Raises:
            Mistake: They are not those of a plan; the message names the layer.
        """
        if not isinstance(content, Mapping) or not isinstance(content.get("layers"), Mapping):
            raise Mistake("a plan of pruning is a mapping with `network`, `why` and `layers`")
        layers = {}
        for name, sides in content["layers"].items():
            if not isinstance(sides, Mapping) or not sides or not sides.keys() <= {"out", "in"}:
                raise Mistake(f"plan of pruning, layer {name}: what its sides `out` and `in` keep is missing")
            layers[str(name)] = {side: _kept(str(name), side, value) for side, value in sides.items()}
        branches = content.get("branches")
        if branches is not None and not isinstance(branches, list | tuple):
            raise Mistake("plan of pruning: `branches` is a list of layers' names")
        told = None if branches is None else tuple(map(str, branches))
        return Plan(str(content.get("network", "")), layers, dict(content.get("why") or {}), told)

    def check(self, network: nn.Module) -> None:
        """Whether the plan is for this network.

        Raises:
            Mistake: A layer of the plan is missing, or has other channels; the first one is named.
        """
        own = {name for name, _ in network.named_modules()}
        for name in self.branches or ():
            if name not in own:
                raise Mistake(
                    f"the plan of pruning is for another network, {self.network or 'of which it says nothing'}: its "
                    f"branch {name} goes, {type(network).__name__} has no such layer"
                )
        for name, sides in self.layers.items():
            for side, kept in sides.items():
                there = _width(network, name, side, kept.axis)
                if there == kept.width:
                    continue
                told = "has no such layer" if there is None else f"has {there}"
                raise Mistake(
                    f"the plan of pruning is for another network, {self.network or 'of which it says nothing'}: its "
                    f"layer {name} has {kept.width} channels ({side}), {type(network).__name__} {told}"
                )


def plan_of(
    network: nn.Module, groups: Sequence[ChannelGroup], kept: Mapping[str, Sequence[int]], why: Mapping[str, Any]
) -> Plan:
    """The plan by which groups keep some of their channels.

    Args:
        network: The unpruned network.
        groups: All of its groups.
        kept: Channels that a group keeps, ascending, by the group's name; other groups keep all.
        why: See `Plan`.

    Raises:
        Mistake: A layer would lose all its filters.
    """
    gone: dict[tuple[str, str], set[int]] = {}
    widths: dict[tuple[str, str], tuple[int, int]] = {}
    for group in groups:
        stay = set(kept.get(group.name, range(group.width)))
        if not stay:
            raise Mistake(
                f"layer {group.name} would lose all {group.width} filters: give it a smaller share or a minimum"
            )
        for slot in group.slots:
            key = (slot.layer, slot.side)
            widths[key] = (slot.width, slot.axis)
            lost = {place for place, root in zip(slot.places, slot.roots, strict=True) if root not in stay}
            gone.setdefault(key, set()).update(lost)
    layers: dict[str, dict[str, Kept]] = {}
    for (name, side), lost in gone.items():
        if lost:
            width, axis = widths[name, side]
            channels = tuple(place for place in range(width) if place not in lost)
            layers.setdefault(name, {})[side] = Kept(width, channels, axis)
    return Plan(type(network).__name__, layers, why)


def ranges(channels: Sequence[int]) -> str:
    """Ascending numbers as text: `0-3,7,9-40`."""
    parts: list[list[int]] = []
    for channel in channels:
        if parts and parts[-1][-1] == channel - 1:
            parts[-1][1:] = [channel]
        else:
            parts.append([channel])
    return ",".join("-".join(map(str, part)) for part in parts)


def _kept(name: str, side: str, value: Any) -> Kept:
    place = f"plan of pruning, layer {name} ({side})"
    try:
        width, text, axis = int(value["of"]), str(value["kept"]), int(value.get("axis", 0))
        bounds = [[int(bound) for bound in part.split("-")] for part in text.split(",")]
        channels = tuple(c for part in bounds for c in range(part[0], part[-1] + 1))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Mistake(f"{place}: `of` is a number of channels and `kept` looks like 0-3,7") from None
    if not channels or list(channels) != sorted(set(channels)) or not 0 <= channels[0] <= channels[-1] < width:
        raise Mistake(f"{place}: kept channels are ascending, at least one, and below {width}")
    return Kept(width, channels, axis)


def _width(network: nn.Module, name: str, side: str, axis: int) -> int | None:
    try:
        module: Any = network.get_submodule(name)
    except AttributeError:
        try:
            parameter = network.get_parameter(name)
        except AttributeError:
            return None
        return parameter.shape[axis] if axis < parameter.ndim else None
    if isinstance(module, CONVOLUTIONS):
        return module.out_channels if side == "out" else module.in_channels
    if isinstance(module, nn.Linear):
        return module.out_features if side == "out" else module.in_features
    if isinstance(module, NORMS) or is_frozen_norm(module):
        return norm_width(module)
    if isinstance(module, ChannelSelection):
        return len(module.positions)
    return module.num_parameters if isinstance(module, nn.PReLU) else None


def kept_index(kept: Kept, device: torch.device | None = None) -> torch.Tensor:
    """Indices of the kept channels [count]."""
    return torch.tensor(kept.channels, dtype=torch.long, device=device)
