"""The maps of a pyramid as one sequence: their cells, which of them are padding, and where each is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.layers.position_encoding import sine_position_encoding

Size = tuple[int, int]


def sizes_of(images: Sequence[Tensor]) -> list[Size]:
    """Height and width of each image of a batch."""
    return [(image.shape[-2], image.shape[-1]) for image in images]


def finest_stride(images: Sequence[Tensor], features: Tensor) -> int:
    """Pixels of a cell of the finest map; batches are padded to a multiple of them."""
    return 2 ** round(math.log2(max(height for height, _ in sizes_of(images)) / features.shape[2]))


@dataclass(frozen=True)
class Memory:
    """All cells of all levels, row by row, in the order of the levels.

    Args:
        cells: [N, S, C].
        padding: bool [N, S], True on padding.
        position: [N, S, C], sines and cosines of each cell's place within its level.
        centres: [N, S, 2], x and y of each cell's middle relative to the image; None where nobody asks.
    """

    cells: Tensor
    padding: Tensor
    position: Tensor
    centres: Tensor | None = None

    @classmethod
    def of(cls, maps: Sequence[Tensor], sizes: Sequence[Size], padded: Size) -> Memory:
        """The memory of a batch.

        Args:
            maps: [N, C, H, W] of each level, C even.
            sizes: Height and width of each image, in pixels.
            padded: Of the batch that they were padded to.
        """
        cells, padding, position, centres = [], [], [], []
        extent = torch.tensor([(width, height) for height, width in sizes], device=maps[0].device)
        for features in maps:
            mask = padding_mask(features.shape[-2:], sizes, padded, features.device)
            cells.append(features.flatten(2).transpose(1, 2))
            padding.append(mask.flatten(1))
            position.append(sine_position_encoding(mask, features.shape[1] // 2).flatten(2).transpose(1, 2))
            centres.append(_centres(mask.shape[1:], padded, mask.device) / extent[:, None])
        joined = torch.cat(cells, 1)
        return cls(joined, torch.cat(padding, 1), torch.cat(position, 1).to(joined.dtype), torch.cat(centres, 1))


def _centres(cells: Sequence[int], padded: Size, device: torch.device) -> Tensor:
    """Where the middle of each cell of a level is, [H W, 2], x and y in pixels."""
    y = (torch.arange(cells[0], device=device) + 0.5) * (padded[0] / cells[0])
    x = (torch.arange(cells[1], device=device) + 0.5) * (padded[1] / cells[1])
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)


def padding_mask(cells: Sequence[int], sizes: Sequence[Size], padded: Size, device: torch.device) -> Tensor:
    """Which cells of a level are padding.

    A level's stride is the mean of both axes', and a cell that an image reaches into is the image's.

    Args:
        cells: Rows and columns of the level.
        sizes: Height and width of each image, in pixels.
        padded: Of the batch that they were padded to.
        device: Of the result.

    Returns:
        bool [N, H, W], True on padding.
    """
    rows, columns = cells
    stride = (padded[0] / rows + padded[1] / columns) / 2
    inside = torch.ceil(torch.tensor(sizes, dtype=torch.float64) / stride).to(device)
    down = torch.arange(rows, device=device)[:, None] >= inside[:, 0, None, None]
    across = torch.arange(columns, device=device) >= inside[:, 1, None, None]
    return down | across
