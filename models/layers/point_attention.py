"""DPVT's deformable attention: every token reads a few points around its own place, each bilinearly.

Reference: the plain host `dpvt` of StevenGrove/vtpack at 38d5af0c; "Deformable DETR", arXiv 2010.04159.
"""

import torch
from torch import Tensor, nn

from models.layers.deformable_attention import Levels, weighted_samples
from models.layers.grained_regions import Ragged, Regions
from models.layers.query_attention import check_heads

_GRADIENT = 0.1


class PointAttention(nn.Module):
    """Sum of `num_points` values of a map per head, at learned offsets; beyond the map there is nothing to read.

    Places learn with a tenth of their gradient, as published.

    Args:
        dim: Features of a token.
        num_heads: Heads; a divisor of `dim`.
        num_points: Points that a head reads.
        bias: Whether values have a bias.

    Raises:
        Mistake: Heads that do not divide the features.
    """

    def __init__(self, dim: int, num_heads: int, num_points: int = 4, bias: bool = True) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads, self.num_points = num_heads, num_points
        self.v = nn.Linear(dim, dim, bias=bias)
        self.offsets = nn.Linear(dim, num_heads * num_points * 2)
        self.attn_weight = nn.Linear(dim, num_heads * num_points)
        self.proj = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, tokens: Tensor, regions: Regions, ragged: Ragged | None) -> Tensor:
        """Tokens [B, H * W, C], each of which is its own query, to [B, H * W, C]; `ragged` is None."""
        height, width = regions.size
        values = self.v(tokens).unflatten(2, (self.num_heads, -1))
        weights = self.attn_weight(queries).float().unflatten(2, (self.num_heads, -1)).softmax(-1)
        offsets = self.offsets(queries).float().unflatten(2, (self.num_heads, -1, 2))
        # The same places, with a tenth of the gradient.
        offsets = offsets.detach() + _GRADIENT * (offsets - offsets.detach())
        place = torch.arange(height * width, device=tokens.device)[:, None, None]
        x, y = offsets[..., 0] + place % width, offsets[..., 1] + place // width
        levels = Levels.of([regions.size], tokens.device)
        return self.proj(weighted_samples(values, levels, x, y, weights))
