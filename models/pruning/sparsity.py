"""What makes channels and branches small while a network is trained, before any is removed.

References: "Learning Efficient Convolutional Networks through Network Slimming", arXiv 1708.06519; "Data-Driven Sparse
Structure Selection for Deep Neural Networks", arXiv 1707.01213; "Soft Filter Pruning", arXiv 1808.06866.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from models.pruning.criteria import l2_norm
from models.pruning.selection import soft_filter_mask

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def batch_norms(network: nn.Module, one_dimensional: bool = False) -> dict[str, nn.Module]:
    """Batch norms with a scale of a network, by name.

    Args:
        network: Any.
        one_dimensional: Whether those of vectors count, too, as between the linear layers of a VGG.
    """
    kinds = _BATCH_NORMS if one_dimensional else nn.BatchNorm2d
    return {name: m for name, m in network.named_modules() if isinstance(m, kinds) and m.weight is not None}


@torch.no_grad()
def add_sparsity_gradient(gammas: Iterable[nn.Parameter], s: float) -> None:
    """Adds s sign(gamma), the gradient of s sum |gamma|, to the gradients of scales, in place.

    Args:
        gammas: Weights of batch norms [C_i]; those without a gradient are passed over.
        s: Strength, 1e-4 for VGG and 1e-5 for residual and dense networks in the paper's code.
    """
    for gamma in gammas:
        if gamma.grad is not None:
            gamma.grad.add_(gamma.sign(), alpha=s)


@torch.no_grad()
def zero_channels(norm: nn.Module, mask: Tensor) -> None:
    """Sets scale and shift of channels that are not kept to zero, in place; with the shift they would stay a constant.

    Args:
        norm: A batch norm of C channels.
        mask: Bool [C], the channels that are kept.
    """
    norm.get_parameter("weight").mul_(mask)
    norm.get_parameter("bias").mul_(mask)


def mask_norm_gradients(norms: Iterable[nn.Module], masks: Iterable[Tensor]) -> None:
    """Sets the gradients of channels that are not kept to zero, in place.

    Args:
        norms: Batch norms.
        masks: Bool, of the channels that each of them keeps.
    """
    for norm, mask in zip(norms, masks, strict=True):
        for parameter in norm.parameters(recurse=False):
            if parameter.grad is not None:
                parameter.grad.mul_(mask)


@torch.no_grad()
def proximal_step(
    scale: Tensor, velocity: Tensor, gradient: Tensor, lr: float, momentum: float, penalty: float
) -> None:
    """One step of the accelerated proximal gradient for the scale of residual branches, in place, equations 10 to 12.

    z = scale - lr gradient; v' = S(z) - scale + momentum v; scale' = S(z) + momentum v', where S shrinks by
    lr penalty towards zero.

    Args:
        scale: Of the branches; those at zero can be removed.
        velocity: As large; zero at the beginning.
        gradient: Of the loss without the penalty.
        lr: Learning rate.
        momentum: In [0, 1).
        penalty: Weight of sum |scale| in the loss.
    """
    z = scale - lr * gradient
    shrunk = z.sign() * (z.abs() - lr * penalty).clamp(min=0)
    velocity.mul_(momentum).add_(shrunk).sub_(scale)
    scale.copy_(shrunk + momentum * velocity)


@torch.no_grad()
def soft_prune(weights: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
    """Sets the filters of smallest Euclidean norm of each layer to zero, in place; all of them may grow again.

    Args:
        weights: Of convolutions [out, in, kh, kw], by name.
        keep: Share of each layer's filters that is kept.

    Returns:
        The filters that were kept, bool [out] by name.
    """
    masks = {name: soft_filter_mask(l2_norm(weight), keep) for name, weight in weights.items()}
    for name, mask in masks.items():
        weights[name].mul_(mask.view(-1, *[1] * (weights[name].ndim - 1)))
    return masks
