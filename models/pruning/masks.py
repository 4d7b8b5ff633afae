"""Pruning of single weights: masks beside a network, so that a weight which becomes zero by chance is not pruned.

A mask has the shape of a parameter and is known by its name, `layer1.0.conv1.weight`. Gradients are multiplied by it
before each step of the optimiser, which has to be a fresh one: momentum of an earlier training, or decoupled decay,
would move a weight that has no gradient.

References: "Learning both Weights and Connections", arXiv 1506.02626; "The Lottery Ticket Hypothesis", arXiv
1803.03635; "Rethinking the Value of Network Pruning", arXiv 1810.05270, section 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def conv_weights(network: nn.Module) -> dict[str, Tensor]:
    """Weights of the two-dimensional convolutions of a network, by name, in the order of its modules."""
    return {
        f"{name}.weight" if name else "weight": module.weight
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    }


@torch.no_grad()
def apply_masks(network: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Sets the weights that are not kept to zero, in place.

    Args:
        network: Has parameters of these names.
        masks: Bool, by the parameters' names.
    """
    for name, mask in masks.items():
        network.get_parameter(name).mul_(mask)


def mask_gradients(network: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Sets the gradients of weights that are not kept to zero, in place.

    Args:
        network, masks: See `apply_masks`.
    """
    for name, mask in masks.items():
        if (gradient := network.get_parameter(name).grad) is not None:
            gradient.mul_(mask)


def sparse_std(mask: Tensor) -> float:
    """Standard deviation that a masked convolution is drawn with, sqrt(2 / n), n = kept weights / input channels.

    Args:
        mask: Bool [out, in, kh, kw].

    Returns:
        The deviation; infinite where nothing is kept.
    """
    kept = float(mask.sum()) / mask.shape[1]
    return math.sqrt(2 / kept) if kept else math.inf


@torch.no_grad()
def redraw(network: nn.Module, masks: Mapping[str, Tensor], generator: torch.Generator | None = None) -> None:
    """Draws masked convolutions anew, in place, as a network of so few weights is trained from scratch.

    Args:
        network, masks: See `apply_masks`.
        generator: Of the device that the network is on.
    """
    for name, mask in masks.items():
        weight = network.get_parameter(name)
        if mask.any():
            weight.normal_(0, sparse_std(mask), generator=generator)
        weight.mul_(mask)


def rewound(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A winning ticket: an earlier state of the network with the masks of a later one.

    Args:
        state: Parameters and buffers of the beginning, or of the step that is rewound to.
        masks: Bool, by the parameters' names.
    """
    return {name: value * masks[name] if name in masks else value.clone() for name, value in state.items()}


def kernel_positions(weights: Mapping[str, Tensor], size: int = 3) -> Tensor:
    """Probability that a weight at each position of a kernel is kept [size, size], over all kernels of this size.

    Args:
        weights: Masked weights or masks [out, in, kh, kw], by name; those with other kernels are passed over.
        size: Side of the kernels.
    """
    kernels = [weight.detach() != 0 for weight in weights.values() if weight.shape[2:] == (size, size)]
    if not kernels:
        return torch.zeros(size, size)
    return torch.cat([kernel.flatten(0, 1) for kernel in kernels]).float().mean(0)
