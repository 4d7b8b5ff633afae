"""A stage of a pyramid of tokens: patches of a map, learned positions, and blocks.

Reference: "Pyramid Vision Transformer", arXiv 2102.12122.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from models.layers.grained_regions import Regions


class PlainBlock(nn.Module):
    """A pre-norm transformer block on tokens of a map.

    Args:
        dim: Features of a token.
        attention: Called with the normed tokens as queries and as tokens, `Regions` and None.
        mlp_ratio: Hidden features of the MLP, as a multiple of `dim`.
        drop_path: Probability of stochastic depth.
    """

    def __init__(self, dim: int, attention: nn.Module, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, regions: Regions) -> Tensor:
        """Tokens [B, extra + H * W, C] to tokens of the same shape."""
        normed = self.norm1(x)
        x = x + self.drop_path(self.attn(normed, normed, regions, None))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """Patches of a map to tokens: a convolution, and a norm.

    Args:
        in_chans: Channels that come in.
        dim: Features of a token.
        patch_size: Side of a patch.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, maps: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B, in_chans, H, W] to tokens [B, h * w, dim] and (h, w); zeros fill up the last patches."""
        height, width = maps.shape[2:]
        maps = self.proj(F.pad(maps, (0, -width % self.patch_size, 0, -height % self.patch_size)))
        return self.norm(maps.flatten(2).transpose(1, 2)), (maps.shape[2], maps.shape[3])


class Stage(nn.Module):
    """Patch embedding, positions and blocks at one resolution.

    Args:
        in_chans, dim, patch_size: See `PatchEmbedding`.
        grid: Side of the map that positions are learned for.
        extra: Positions of extra tokens, in front.
        blocks: What follows.
    """

    def __init__(
        self, in_chans: int, dim: int, patch_size: int, grid: int, extra: int, blocks: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.grid, self.extra = grid, extra
        self.patch_embed = PatchEmbedding(in_chans, dim, patch_size)
        self.pos_embed = nn.Parameter(torch.empty(1, extra + grid**2, dim))
        self.blocks = nn.ModuleList(blocks)

    def positions(self, size: tuple[int, int]) -> Tensor:
        """Positions [1, extra + h * w, C] of a map of h x w tokens."""
        if size == (self.grid, self.grid):
            return self.pos_embed
        learned = self.pos_embed[:, self.extra :].transpose(1, 2).unflatten(2, (self.grid, self.grid))
        resized = F.interpolate(learned, size, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
        return torch.cat([self.pos_embed[:, : self.extra], resized], 1)
