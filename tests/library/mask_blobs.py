"""Masks of one piece."""

import torch
from torch import Tensor


def blobs(count: int, size: int, seed: int = 0) -> Tensor:
    """Masks of half planes, which no two are alike and none of which is empty or full."""
    draw = torch.Generator().manual_seed(seed)
    normals = torch.randn(count, 2, generator=draw)
    axis = torch.arange(size) - (size - 1) / 2
    heights = normals[:, :1, None] * axis[:, None] + normals[:, 1:, None] * axis
    return heights > 0.1
