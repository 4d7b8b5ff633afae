"""A residual network with a scale on each of its branches, for Sparse Structure Selection."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from models.pruning.branches import scale_branches


def scaled_branches(network: nn.Module, branches: Sequence[str]) -> nn.Module:
    """A network each of whose blocks computes shortcut + scale * branch, the scales being parameters that begin at 1.

    `callbacks.StructureSelection` makes scales zero while it is trained, and `python -m exp prune --criterion
    branch_scale` removes branches. Reference: "Data-Driven Sparse Structure Selection", arXiv 1707.01213.

    Args:
        network: A residual network: a classifier, a detector, anything whose blocks can be traced by torch.fx.
        branches: Patterns of the names of the last layers of its branches, such as `layer*.bn3` of a ResNet-50.

    Returns:
        The network itself, with the same inputs and outputs.

    Raises:
        Mistake: A pattern that fits no layer.
    """
    scale_branches(network, branches)
    return network
