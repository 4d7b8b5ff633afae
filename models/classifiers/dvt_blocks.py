"""The blocks of the Dynamic Vision Transformer: attention and MLP that reuse what an earlier transformer has found.

Reference: "Not All Images are Worth 16x16 Words: Dynamic Transformers for Efficient Image Recognition", arXiv
2105.15075, sections 3.2 (features) and 3.3 (relationships).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from models.mistakes import Mistake


class Upsample(nn.Module):
    """Class token and n x n tokens to class token and m x m tokens, m > n, along any one axis of a tensor.

    The published resampling, nearest to 2n x 2n and then adaptive average pooling to m x m, written as what it is:
    along each side a new token is the weighted mean of at most two neighbouring old ones. The class token stays.

    Args:
        n: Tokens along each side before.
        m: Tokens along each side after.

    Raises:
        Mistake: The new grid is not finer.
    """

    row_pairs: Tensor
    row_shares: Tensor
    column_pairs: Tensor
    column_shares: Tensor

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        if not 0 < n < m:
            raise Mistake(f"tokens are upsampled to a finer grid only, not from {n} to {m} tokens a side")
        side = []
        for i in range(m):
            # The pooling window in the doubled side, the old tokens where it begins and ends, the share of the latter.
            start, end = 2 * n * i // m, math.ceil(2 * n * (i + 1) / m)
            low, high = start // 2, (end - 1) // 2
            side.append((low, high, (end - 2 * high) / (end - start)))
        rows = [(1 + low * n + j, 1 + high * n + j, share) for low, high, share in side for j in range(n)]
        columns = [(1 + i * n + low, 1 + i * n + high, share) for i in range(m) for low, high, share in side]
        for name, steps in (("row", rows), ("column", columns)):
            lows, highs, shares = zip((0, 0, 0.0), *steps, strict=True)
            self.register_buffer(f"{name}_pairs", torch.tensor([lows, highs]), persistent=False)
            self.register_buffer(f"{name}_shares", torch.tensor(shares), persistent=False)

    def forward(self, x: Tensor, dim: int) -> Tensor:
        """[..., 1 + n^2, ...] to [..., 1 + m^2, ...], where the tokens lie along axis `dim`."""
        for (low, high), shares in ((self.row_pairs, self.row_shares), (self.column_pairs, self.column_shares)):
            shares = shares.to(x.dtype).reshape([-1] + [1] * (x.ndim - 1 - dim % x.ndim))
            x = torch.lerp(x.index_select(dim, low), x.index_select(dim, high), shares)
        return x


class FeatureReuse(nn.Module):
    """What a block reads of the stage before: E = upsample(MLP(LN(last tokens))), with zeros for the class token.

    Args:
        dim: Channels of the tokens.
        hidden_dim: Channels inside the MLP.
        reuse_dim: Channels of E.
        n: Tokens along each side of the stage before.
        m: Tokens along each side of this stage.
        norm_eps: Epsilon of the norm.
    """

    def __init__(self, dim: int, hidden_dim: int, reuse_dim: int, n: int, m: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, hidden_dim, reuse_dim)
        self.upsample = Upsample(n, m)

    def forward(self, tokens: Tensor) -> Tensor:
        """Last tokens of the stage before, before its final norm, [B, 1 + n^2, dim] to [B, 1 + m^2, reuse_dim]."""
        reused = F.pad(self.mlp(self.norm(tokens))[:, 1:], (0, 0, 1, 0))
        return self.upsample(reused, dim=1)


class RelationReuse(nn.Module):
    """What is added to the attention logits: R = upsample(MLP(logits of all blocks and heads of the stage before)).

    Args:
        depth: Blocks of either stage.
        num_heads: Heads of every block.
        n: Tokens along each side of the stage before.
        m: Tokens along each side of this stage.
    """

    def __init__(self, depth: int, num_heads: int, n: int, m: int) -> None:
        super().__init__()
        self.depth = depth
        maps = depth * num_heads
        self.mlp = Mlp(maps, 3 * maps, use_conv=True)
        self.upsample = Upsample(n, m)

    def forward(self, relations: Sequence[Tensor]) -> list[Tensor]:
        """Logits [B, num_heads, 1 + n^2, 1 + n^2] of every block to those added, with 1 + m^2."""
        maps = self.mlp(torch.cat(list(relations), dim=1))
        # The last axis first, while the maps are small: entries are not contiguous along it.
        maps = self.upsample(self.upsample(maps, dim=3), dim=2)
        return list(maps.chunk(self.depth, dim=1))


class Attention(nn.Module):
    """Multi-head self-attention whose logits can be read and added to: softmax(A) v, A = q k^T / sqrt(d) + R.

    Args:
        dim: Channels of the tokens.
        num_heads: Heads; they divide the channels.
        qkv_bias: Whether queries, keys and values have a bias.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, reused: Tensor | None = None, hand_on: bool = False) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            x: Tokens [B, N, dim].
            reused: R, [B, num_heads, N, N]; None for none.
            hand_on: Whether A is wanted. Where it is not, it is never stored.

        Returns:
            Tokens [B, N, dim], and A [B, num_heads, N, N] or None.
        """
        query, key, value = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        relation = None
        if hand_on:
            relation = query @ key.mT / math.sqrt(query.shape[-1])
            if reused is not None:
                relation = relation + reused
            attended = relation.softmax(-1) @ value
        else:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=reused)
        return self.proj(attended.transpose(1, 2).flatten(2)), relation


class Block(nn.Module):
    """Pre-norm transformer block that may read the stage before: x + attention(LN(x)), then x + MLP(LN([x, E])).

    Args:
        dim: Channels of the tokens.
        num_heads: Heads of the attention.
        mlp_ratio: Channels inside the MLP, divided by `dim`.
        qkv_bias: See `Attention`.
        norm_eps: Epsilon of the norms.
        drop_path: Probability that a branch of a sample is dropped.
        feature_reuse: Makes E; None for a block that reads no features.
        reuse_dim: Channels of E, 0 for none.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        norm_eps: float,
        drop_path: float = 0.0,
        feature_reuse: FeatureReuse | None = None,
        reuse_dim: int = 0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.feature_reuse = feature_reuse
        self.norm2 = nn.LayerNorm(dim + reuse_dim, eps=norm_eps)
        self.mlp = Mlp(dim + reuse_dim, int(dim * mlp_ratio), dim)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(
        self, x: Tensor, tokens: Tensor | None = None, relation: Tensor | None = None, hand_on: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Run the block.

        Args:
            x: Tokens [B, N, dim].
            tokens: Last tokens of the stage before [B, N', dim], for a block that reuses features.
            relation: What to add to the attention logits, [B, num_heads, N, N]; None for nothing.
            hand_on: Whether the attention logits are wanted.

        Returns:
            Tokens [B, N, dim], and attention logits [B, num_heads, N, N] or None.
        """
        attended, relation = self.attn(self.norm1(x), relation, hand_on)
        x = x + self.drop_path(attended)
        z = x if self.feature_reuse is None else torch.cat([x, self.feature_reuse(tokens)], dim=2)
        return x + self.drop_path(self.mlp(self.norm2(z))), relation
