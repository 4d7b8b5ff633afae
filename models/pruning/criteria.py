"""How much a filter matters: one score for each output channel of a layer, larger for what is kept.

References: "Pruning Filters for Efficient ConvNets", arXiv 1608.08710 (L1 norm); "Soft Filter Pruning", arXiv
1808.06866 (L2 norm); "Learning Efficient Convolutional Networks through Network Slimming", arXiv 1708.06519 (scale of a
batch norm); "Importance Estimation for Neural Network Pruning", arXiv 1906.10771 (Taylor).
"""

from __future__ import annotations

import torch
from torch import Tensor


def l1_norm(weight: Tensor) -> Tensor:
    """Sum of the absolute weights of each filter [out].

    Args:
        weight: Of a convolution or linear layer [out, in, ...].
    """
    return weight.detach().flatten(1).abs().sum(1)


def l2_norm(weight: Tensor) -> Tensor:
    """Euclidean norm of each filter [out].

    Args:
        weight: Of a convolution or linear layer [out, in, ...].
    """
    return weight.detach().flatten(1).norm(dim=1)


def random(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Scores that say nothing, which every criterion has to beat [out].

    Args:
        weight: Of a convolution or linear layer [out, in, ...].
        generator: On the CPU.
    """
    return torch.rand(len(weight), generator=generator).to(weight.device)


def batch_norm_scale(gamma: Tensor) -> Tensor:
    """Absolute scale by which a batch norm multiplies each channel [out].

    Args:
        gamma: Weight of the norm [out].
    """
    return gamma.detach().abs()


def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """Squared first-order estimate of what the loss changes by without each filter, equation 8 [out].

    Args:
        weight: Of a convolution or linear layer [out, in, ...].
        gradient: Of the loss by it, of the same shape; a sum over as many batches as there were.
    """
    return (weight.detach() * gradient).flatten(1).sum(1).square()
