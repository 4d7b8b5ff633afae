"""Tiny ADP-C networks and masks for them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TINY: dict[str, Any] = {
    "num_classes": 5,
    "stages": [(1, [1], [4]), (1, [1] * 2, [4, 6]), (2, [1] * 3, [4, 6, 8]), (1, [1] * 4, [4, 6, 8, 10])],
    "pooled_dim": 6,
    "init_std": None,
}


def settled(network: nn.Module) -> Any:
    """In evaluation mode, with norms that are not the identity."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
    return network.eval()


def blobs(batch: int, size: tuple[int, int], kept: tuple[float, ...]) -> list[Tensor]:
    """Coherent masks that lie within each other."""
    noise = torch.randn(batch, 1, size[0] // 8, size[1] // 8, generator=torch.Generator().manual_seed(2))
    score = F.interpolate(noise, size=size, mode="bicubic", align_corners=False)[:, 0]
    return [score > (torch.quantile(score, 1 - share) if share < 1 else -torch.inf) for share in kept]
