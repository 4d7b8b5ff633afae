"""The counter of "Rethinking the Value of Network Pruning", arXiv 1810.05270, and the epochs that it grants.

It counts multiplications and additions apart, about twice the multiply-adds of `models.compute`: of a convolution 2 k k
C_in / groups + 1 with a bias for each element of its output, of a linear layer 2 in + 1, of a two-dimensional batch
norm 2 for each element, of a ReLU module 1, of a pooling module its k k for each element of its output. Functional
pooling, other norms and sums are not counted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.compute import inference

_POOLS = (nn.MaxPool2d, nn.AvgPool2d)


def published_flops(network: nn.Module, images: Tensor, non_zero: bool = False) -> float:
    """What an inference costs by the published counter, per image.

    Args:
        network: Any; it is left in its mode.
        images: [B, C, H, W].
        non_zero: Whether only weights of convolutions that are not zero count, as for masked networks.
    """
    total = 0.0

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            weights = float((module.weight != 0).sum()) if non_zero else float(module.weight.numel())
            positions = output.numel() / output.shape[1]
            total += (2 * weights + (0 if module.bias is None else output.shape[1])) * positions
        elif isinstance(module, nn.Linear):
            bias = 0 if module.bias is None else module.bias.numel()
            total += len(output) * (2 * module.weight.numel() + bias)
        elif isinstance(module, nn.BatchNorm2d):
            total += 2 * inputs[0].numel()
        elif isinstance(module, nn.ReLU):
            total += inputs[0].numel()
        elif isinstance(module, _POOLS):
            total += _area(module.kernel_size) * output.numel()
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            total += inputs[0].numel()

    hooks = [module.register_forward_hook(add) for module in network.modules()]
    try:
        with inference(network):
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return total / len(images)


def scratch_b_epochs(epochs: int, full: float, pruned: float, cap: float | None = None) -> int:
    """Epochs that the pruned architecture is trained from scratch with the compute of the large network's training.

    Args:
        epochs: That the large network is trained.
        full, pruned: What an image costs in the large and in the pruned network, in the same unit.
        cap: Largest ratio that is granted; 2 on ImageNet in the paper, none on CIFAR.
    """
    ratio = full / pruned
    return int(epochs * (ratio if cap is None else min(ratio, cap)))


def _area(size: int | tuple[int, ...]) -> int:
    return size * size if isinstance(size, int) else int(torch.tensor(size).prod())
