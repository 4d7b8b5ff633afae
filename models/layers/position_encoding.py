"""Where a cell of a feature map is, as a vector: sines of many wavelengths, or learned.

Reference: "End-to-End Object Detection with Transformers", arXiv 2005.12872, appendix A.4.
"""

import math

import torch
from torch import Tensor, nn

from models.mistakes import Mistake


def sine_position_encoding(
    padding: Tensor, num_feats_per_axis: int, offset: float = 0.0, temperature: float = 10000.0
) -> Tensor:
    """Sines and cosines of the place of each cell within the unpadded part of its map.

    With y the number of rows of the image down to a cell, and Y that of the last row, `v = 2 pi (y + offset) / Y`;
    feature i of the F of an axis is `sin(v / t_i)` for even i and `cos(v / t_i)` for odd i,
    `t_i = temperature ^ (2 floor(i / 2) / F)`.

    Args:
        padding: [B, H, W], bool, True on padding.
        num_feats_per_axis: F, even.
        offset: 0 in DETR and SMCA, -0.5 in Deformable DETR and SOLQ.
        temperature: Largest wavelength, in units of 2 pi.

    Returns:
        [B, 2 F, H, W], float32: F features of y, then F of x.

    Raises:
        Mistake: An odd F.
    """
    if num_feats_per_axis % 2:
        raise Mistake(f"sines and cosines come in pairs: num_feats_per_axis is even, not {num_feats_per_axis}")
    inside = (~padding).float()
    exponents = torch.arange(0, num_feats_per_axis, 2, dtype=torch.float32, device=padding.device) / num_feats_per_axis
    wavelengths = temperature**exponents
    axes = []
    for dim in (1, 2):
        counts = inside.cumsum(dim)
        # A row of nothing but padding has a count of zero.
        place = (counts + offset) / (counts.narrow(dim, -1, 1) + 1e-6) * (2 * math.pi)
        angles = place[..., None] / wavelengths
        axes.append(torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2))
    return torch.cat(axes, dim=-1).permute(0, 3, 1, 2)


class LearnedPositionEncoding(nn.Module):
    """A learned vector for each column and each row.

    Args:
        num_feats_per_axis: F.
        size: Rows, and columns, that have a vector.
    """

    def __init__(self, num_feats_per_axis: int, size: int = 50) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(size, num_feats_per_axis)
        self.col_embed = nn.Embedding(size, num_feats_per_axis)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, padding: Tensor) -> Tensor:
        """Encode the cells of a map.

        Args:
            padding: [B, H, W]; only its shape counts.

        Returns:
            [B, 2 F, H, W]: F features of x, then F of y.

        Raises:
            Mistake: A map larger than `size`.
        """
        batch, height, width = padding.shape
        size = self.row_embed.num_embeddings
        if max(height, width) > size:
            raise Mistake(f"positions are learned for {size} x {size} cells, and the map has {height} x {width}")
        columns = self.col_embed.weight[:width].expand(height, -1, -1)
        rows = self.row_embed.weight[:height, None].expand(-1, width, -1)
        return torch.cat([columns, rows], dim=-1).permute(2, 0, 1).expand(batch, -1, -1, -1)
