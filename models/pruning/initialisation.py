"""Random weights of a pruned architecture, as if it had been built at its widths.

Networks draw a layer's weights with a deviation that depends on how many numbers are added up in it, or on how many
places its gradient comes from. A slice of the large layer's draw has the deviation of the large layer. What a network
goes by is read off all of its layers: the rule by which their deviations agree best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from models.pruning.groups import CONVOLUTIONS
from models.pruning.plan import Plan
from models.pruning.removal import remove

# Numbers that a drawn deviation is told from; the deviation of so many is known to a tenth.
ENOUGH = 64

Layers = Mapping[str, Any]
FANS: dict[str, Callable[[Any], float]] = {
    "none": lambda layer: 1.0,
    "in": lambda layer: layer.weight[0].numel(),
    "out": lambda layer: layer.weight.numel() / layer.weight.shape[1],
    "out of a group": lambda layer: layer.weight.numel() / layer.weight.shape[1] / getattr(layer, "groups", 1),
}


def shrink(network: nn.Module, plan: Plan, afresh: bool) -> None:
    """Makes a network what it is by a plan, in place.

    Args:
        network: The unpruned network.
        plan: For it.
        afresh: Whether its weights are random and become those that a network of these widths is drawn with, others
            than the large network begins with at the same seed; else what is left keeps its weights.

    Raises:
        Mistake: The plan is for another network.
    """
    before = {}
    if afresh:
        before = deviations(network)
        scatter(network)
    remove(network, plan)
    rescale(network, before)


def deviations(network: nn.Module) -> dict[str, tuple[str, float]]:
    """The rule that each convolution and linear layer was drawn by, and what it goes by, by the layer's name.

    Args:
        network: With its random weights.
    """
    found: dict[str, tuple[str, float]] = {}
    for kinds in (CONVOLUTIONS, (nn.Linear,)):
        layers = {name: module for name, module in network.named_modules() if isinstance(module, kinds)}
        rule = _rule(layers)
        found |= {name: (rule, FANS[rule](layer)) for name, layer in layers.items()}
    return found


@torch.no_grad()
def scatter(network: nn.Module) -> None:
    """Moves the numbers of each convolution and linear layer to other places in it, in place.

    The channels that a plan keeps of a network would otherwise begin as those did that it was made of, which is the
    winning ticket and not training from scratch.

    Args:
        network: With its random weights.
    """
    for module in network.modules():
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            weight = module.weight
            order = torch.randperm(weight.numel(), device=weight.device)
            weight.copy_(weight.flatten()[order].view_as(weight))


@torch.no_grad()
def rescale(network: nn.Module, before: Mapping[str, tuple[str, float]]) -> None:
    """Gives layers that have become smaller the deviation of their own sizes, in place.

    Args:
        network: Without the channels that were removed.
        before: What `deviations` said of it with them.
    """
    left: dict[str, Any] = dict(network.named_modules())
    for name, (rule, fan) in before.items():
        layer = left.get(name)
        if layer is None:
            # Of a branch that is gone.
            continue
        layer.weight.mul_(math.sqrt(fan / FANS[rule](layer)))


def _rule(layers: Layers) -> str:
    """The rule for which deviation times the root of its number differs least between the layers."""
    drawn = [(layer, float(layer.weight.detach().std())) for layer in layers.values() if layer.weight.numel() >= ENOUGH]
    drawn = [(layer, deviation) for layer, deviation in drawn if deviation > 0]
    if len(drawn) < 2:
        return "in"
    spread = {
        rule: torch.tensor([math.log(deviation) + math.log(fan(layer)) / 2 for layer, deviation in drawn]).var()
        for rule, fan in FANS.items()
    }
    return min(spread, key=lambda rule: float(spread[rule]))
