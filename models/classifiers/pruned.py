"""A network without the channels that a plan of pruning leaves out."""

from __future__ import annotations

from typing import Any

from torch import nn

from models.pixels import pixels_of
from models.pruning.initialisation import shrink
from models.pruning.plan import Plan


def pruned(network: nn.Module, plan: dict[str, Any]) -> nn.Module:
    """A smaller architecture, built from the large one and a plan; weights of the large one are not needed.

    Random weights are drawn as for a network of these widths, and are others than the large network begins with at the
    same seed (`models.pruning.initialisation`); those that a network was built with, from a package or a hub, are kept.

    Args:
        network: The unpruned network: a classifier, a detector, anything with the layers that the plan names.
        plan: What `python -m exp prune` wrote as `plan.json`, in plain values; see `models.pruning.plan`.

    Returns:
        The network itself, smaller, with the same inputs and outputs.

    Raises:
        Mistake: The plan is for another network; the message names the first layer that differs.
    """
    shrink(network, Plan.of(plan), afresh=not pixels_of(network))
    return network
