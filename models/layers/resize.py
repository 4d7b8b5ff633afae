"""Bilinear resizing, by each of the conventions that published networks follow."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Mode = Literal["centres", "corners", "antialiased", "official"]


def resize(maps: Tensor, size: Sequence[int], mode: Mode = "centres") -> Tensor:
    """Bilinear resize; maps that have the size already are returned as they are.

    Args:
        maps: [B, C, H, W].
        size: Height and width to resize to.
        mode: Which points of both grids lie on each other. `centres`: pixels are areas, and the borders of the first
            and last ones coincide. `corners`: the centres of the first and last pixels coincide. `antialiased`: as
            `centres`, and a smaller map averages over all that a pixel of it covers. `official`: what DRNet's published
            weights were evaluated with, MindSpore's default; the source coordinate of pixel i is `i * in / out`, the
            neighbour beyond the edge is the edge, nothing is averaged.

    Returns:
        [B, C, *size].
    """
    size = tuple(size)
    if maps.shape[-2:] == size:
        return maps
    if mode == "official":
        return _from_first_pixels(maps, size)
    return F.interpolate(maps, size, mode="bilinear", align_corners=mode == "corners", antialias=mode == "antialiased")


def _from_first_pixels(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    for dim, length in ((-2, size[0]), (-1, size[1])):
        last = maps.shape[dim] - 1
        source = torch.arange(length, device=maps.device, dtype=torch.float32) * (maps.shape[dim] / length)
        low = source.floor().long().clamp(max=last)
        weight = (source - low).to(maps.dtype).view(-1, *[1] * (-1 - dim))
        upper = maps.index_select(dim, (low + 1).clamp(max=last))
        maps = torch.lerp(maps.index_select(dim, low), upper, weight)
    return maps
