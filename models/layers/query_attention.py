"""Attention of some queries to all tokens, for blocks that choose their queries (`models.layers.grained`)."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.grained_regions import Ragged, Regions
from models.mistakes import Mistake


class QueryAttention(nn.Module):
    """A vision transformer's attention whose queries need not be its tokens; weights are those of timm's.

    Args:
        dim: Features of a token.
        num_heads: Heads; a divisor of `dim`.
        qkv_bias: Whether queries, keys and values have a bias.

    Raises:
        Mistake: Heads that do not divide the features.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, tokens: Tensor, regions: Regions, ragged: Ragged | None) -> Tensor:
        """Queries [B, Q, C], or [T, C] in the order of `ragged`, read tokens [B, N, C]; shaped like the queries."""
        dim, weight, bias = self.proj.in_features, self.qkv.weight, self.qkv.bias
        own = F.linear(queries, weight[:dim], None if bias is None else bias[:dim])
        keys, values = F.linear(tokens, weight[dim:], None if bias is None else bias[dim:]).chunk(2, -1)
        return self.proj(attend(own, keys, values, self.num_heads, ragged))

    def cost(self, regions: Regions, official: bool) -> tuple[float, float]:
        """Multiply-adds for the tokens, and for each query; the official ones count a softmax, too."""
        dim, tokens = self.proj.in_features, regions.tokens
        softmax = 3 * tokens * self.num_heads if official else 0
        return 2 * tokens * dim**2, 2 * dim**2 + 2 * tokens * dim + softmax


class ReducedAttention(nn.Module):
    """Pyramid Vision Transformer's attention, to keys and values of a map that a convolution has reduced.

    Maps that the reduction does not divide are filled up with zeros.

    Args:
        dim, num_heads, qkv_bias: See `QueryAttention`.
        reduction: Tokens along a side that become one key; 1 for all tokens.

    Raises:
        Mistake: Heads that do not divide the features.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, reduction: int) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads, self.reduction = num_heads, reduction
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, stride=reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, tokens: Tensor, regions: Regions, ragged: Ragged | None) -> Tensor:
        """Queries [B, Q, C], or [T, C] in the order of `ragged`, read tokens [B, N, C]; shaped like the queries."""
        if self.reduction > 1:
            height, width = regions.size
            maps = F.pad(regions.maps(tokens), (0, -width % self.reduction, 0, -height % self.reduction))
            tokens = self.norm(self.sr(maps).flatten(2).transpose(1, 2))
        keys, values = self.kv(tokens).chunk(2, -1)
        return self.proj(attend(self.q(queries), keys, values, self.num_heads, ragged))

    def cost(self, regions: Regions, official: bool) -> tuple[float, float]:
        """Multiply-adds for the tokens, and for each query; the official ones count attention's product once."""
        dim, tokens, reduction = self.proj.in_features, regions.tokens, self.reduction
        if official:
            keys = tokens / reduction**2
            fixed = (tokens * dim**2 + keys * dim) if reduction > 1 else 0
            return fixed + 2 * keys * dim**2, 2 * dim**2 + keys * dim + 3 * keys * self.num_heads
        if reduction == 1:
            return 2 * tokens * dim**2, 2 * dim**2 + 2 * tokens * dim
        keys = math.prod(math.ceil(side / reduction) for side in regions.size)
        return keys * reduction**2 * dim**2 + 2 * keys * dim**2, 2 * dim**2 + 2 * keys * dim


def attend(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int, ragged: Ragged | None = None) -> Tensor:
    """Softmax attention with heads.

    Args:
        queries: [B, Q, C], or [T, C] in the order of `ragged`.
        keys, values: [B, N, C].
        num_heads: Heads.
        ragged: Which image each query is of.

    Returns:
        Of the shape of the queries.
    """
    padded = queries if ragged is None else ragged.pad(queries)
    q, k, v = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (padded, keys, values))
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return out if ragged is None else ragged.unpad(out)


def check_heads(dim: int, num_heads: int) -> None:
    """Refuses heads that do not divide the features."""
    if dim % num_heads:
        raise Mistake(f"num_heads must divide the features of a token, not {num_heads=} with {dim}")
