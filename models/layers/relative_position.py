"""Learned embeddings of how far one token lies from another on a map, for queries to look at and values to gain.

Reference: "Self-Attention with Relative Position Representations", arXiv 1803.02155, for maps as in AutoFormer, arXiv
2107.00651; microsoft/Cream 4a13c4091e78.
"""

from __future__ import annotations

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn


def distances(size: tuple[int, int], extra: int, largest: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of the two tables for all pairs of tokens: how many rows, and columns, the second lies from the first.

    A distance d is clipped to `largest` and has row d + largest + 1. Row 0 is of pairs with a token that has no place.

    Args:
        size: Rows and columns of the map, whose tokens come row by row.
        extra: Tokens without a place that come before them.
        largest: Largest distance that is told from others.
        device: Where they are needed.

    Returns:
        int64 [N, N] down the map and [N, N] across it, of N = extra + rows * columns tokens.
    """
    down, across = (
        (place[None] - place[:, None]).clamp(-largest, largest) + largest + 1
        for place in (torch.arange(side, device=device) for side in size)
    )
    rows, columns = size
    shape = (rows, columns, rows, columns)
    of_maps = down[:, None, :, None].expand(shape), across[None, :, None, :].expand(shape)
    both = [each.reshape(rows * columns, rows * columns) for each in of_maps]
    vertical, horizontal = (nn.functional.pad(each, (extra, 0, extra, 0)) for each in both)
    return vertical, horizontal


class RelativePosition2d(nn.Module):
    """An embedding of each pair of tokens: one of its vertical distance and one of its horizontal distance, added up.

    Args:
        dim: Features of an embedding.
        largest: Largest distance that is told from others.
    """

    def __init__(self, dim: int, largest: int) -> None:
        super().__init__()
        self.embeddings_table_v = nn.Parameter(torch.empty(2 * largest + 2, dim))
        self.embeddings_table_h = nn.Parameter(torch.empty(2 * largest + 2, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws both tables anew."""
        trunc_normal_(self.embeddings_table_v, std=0.02)
        trunc_normal_(self.embeddings_table_h, std=0.02)

    def forward(self, vertical: Tensor, horizontal: Tensor) -> Tensor:
        """Rows of the tables [N, N] and [N, N], of `distances`, to embeddings [N, N, dim]."""
        return self.embeddings_table_v[vertical] + self.embeddings_table_h[horizontal]
