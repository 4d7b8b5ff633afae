"""What a pruned network costs by its widths alone, exactly as if it had been built and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from models.compute import count, parameter_count
from models.pruning.groups import CONVOLUTIONS, ChannelGroup


class Costs:
    """Multiply-adds and parameters of a network as its groups become smaller.

    Those of a convolution or linear layer go with both of its widths, everything else of which a plan removes a part
    goes with one.

    Args:
        network: The unpruned network.
        inputs: What it takes, as for `models.compute.count`; with a part, what that takes.
        groups: Of its channels.
        part: Name of the module whose cost is meant, the whole network by default: what a detector costs as a whole
            depends on what it sees.

    Raises:
        NotCountable: Its cost cannot be told from shapes.
    """

    def __init__(
        self, network: nn.Module, inputs: tuple[Any, ...], groups: Sequence[ChannelGroup], part: str = ""
    ) -> None:
        inside = network.get_submodule(part) if part else network
        report = count(inside, inputs=inputs)
        prefix = f"{part}." if part else ""
        macs = {prefix + module.name: module.macs for module in report.modules}
        self.dense = {"macs": report.macs, "parameters": float(parameter_count(inside))}
        self.groups = list(groups)
        # Of each layer that can become smaller: multiply-adds, and parameters that go with both widths, and with one.
        self._layers: dict[str, tuple[float, int, int]] = {}
        for group in self.groups:
            for slot in group.slots:
                if slot.layer not in self._layers:
                    weight, rest = _parameters(network, slot.layer)
                    self._layers[slot.layer] = (macs.get(slot.layer, 0.0), weight, rest)

    def of(self, kept: Mapping[str, int]) -> dict[str, float]:
        """`macs` of an image and `parameters` with so many channels of each group left.

        Args:
            kept: Channels that are left, by the names of groups; other groups keep all.
        """
        lost: dict[tuple[str, str], float] = {}
        for group in self.groups:
            share = 1 - kept.get(group.name, group.width) / group.width
            for slot in group.slots:
                key = (slot.layer, slot.side)
                lost[key] = lost.get(key, 0.0) + share * len(slot.places) / slot.width
        macs, parameters = self.dense["macs"], self.dense["parameters"]
        for name, (layer_macs, weight, rest) in self._layers.items():
            out = 1 - lost.get((name, "out"), 0.0)
            both = out * (1 - lost.get((name, "in"), 0.0))
            macs -= layer_macs * (1 - both)
            parameters -= weight * (1 - both) + rest * (1 - out)
        return {"macs": macs, "parameters": parameters}


def _parameters(network: nn.Module, name: str) -> tuple[int, int]:
    try:
        module = network.get_submodule(name)
    except AttributeError:
        return 0, network.get_parameter(name).numel()
    weight = module.weight.numel() if isinstance(module, (*CONVOLUTIONS, nn.Linear)) else 0
    return weight, sum(p.numel() for p in module.parameters(recurse=False)) - weight


def first_images(inputs: tuple[Any, ...]) -> Tensor:
    """Images [B, 3, H, W] out of what a network takes: a batch of them, or a list of which the first is taken."""
    images = inputs[0]
    return images if isinstance(images, Tensor) else images[0][None]
