"""Anchors: boxes of a few sizes and shapes in every cell of every level.

References: "Faster R-CNN", arXiv 1506.01497, section 3.1; "Focal Loss for Dense Object Detection", arXiv 1708.02002,
section 4.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from models.detectors.conventions import Convention

RATIOS = (0.5, 1.0, 2.0)


def grid(size: tuple[int, int], stride: int, like: Tensor) -> Tensor:
    """Corners of cells.

    Args:
        size: Rows and columns.
        stride: Side of a cell in pixels.
        like: Any tensor on the device of the result.

    Returns:
        [rows * columns, 2], x and y in pixels, row by row, float32.
    """
    y, x = (torch.arange(n, device=like.device, dtype=torch.float32) * stride for n in size)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)


def cell_anchors(sizes: Sequence[float], convention: Convention) -> list[tuple[float, float, float, float]]:
    """Anchors of the cell at the origin: every size in every one of `RATIOS` (height / width).

    Args:
        sizes: Square roots of areas, in pixels.
        convention: Decides rounding and order.

    Returns:
        Boxes x1 y1 x2 y2 in pixels, centred on the origin.
    """
    if convention.rounded_anchors:
        sizes = [int(size) for size in sizes]
    if convention.size_major:
        pairs = [(size, ratio) for size in sizes for ratio in RATIOS]
    else:
        pairs = [(size, ratio) for ratio in RATIOS for size in sizes]
    halves = [(size / math.sqrt(ratio) / 2, size * math.sqrt(ratio) / 2) for size, ratio in pairs]
    if convention.rounded_anchors:
        # Half a pixel goes to the even neighbour, as in torch.round.
        halves = [(float(round(x)), float(round(y))) for x, y in halves]
    return [(-x, -y, x, y) for x, y in halves]


def anchors(
    features: Sequence[Tensor], strides: Sequence[int], sizes: Sequence[Sequence[float]], convention: Convention
) -> list[Tensor]:
    """Anchors of every level.

    Args:
        features: Maps [B, C, h, w], one per level.
        strides: Pixels of the image per cell, one a level.
        sizes: Sizes of the anchors of each level (see `cell_anchors`).
        convention: Decides rounding and order.

    Returns:
        For each level, [h * w * A, 4], x1 y1 x2 y2 in pixels, cell by cell, float32.
    """
    levels = []
    for feature, stride, level_sizes in zip(features, strides, sizes, strict=True):
        corners = grid((feature.shape[-2], feature.shape[-1]), stride, feature).repeat(1, 2)
        cell = corners.new_tensor(cell_anchors(level_sizes, convention))
        levels.append((corners[:, None] + cell).flatten(0, 1))
    return levels


def flatten_outputs(output: Tensor, width: int) -> Tensor:
    """Output of a dense head in the order of the anchors.

    Args:
        output: [B, A * width, h, w].
        width: Values per anchor.

    Returns:
        [B, h * w * A, width].
    """
    return output.unflatten(1, (-1, width)).permute(0, 3, 4, 1, 2).flatten(1, 3)
