"""A block of timm's vision transformer, taken apart for layers that leave tokens out on the way.

The layers keep their names, so that weights of the host fit as they are.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from models.mistakes import Mistake

# Of a row of attention whose kept tokens have all but no weight beside a dropped one's.
_EPS = 1e-6


class ReducedBlock(nn.Module):
    """The two branches of a transformer block, to be run one at a time.

    Args:
        block: Whose layers these are from now on.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1, self.attn = block.norm1, block.attn
        self.ls1, self.drop_path1 = block.ls1, block.drop_path1
        self.norm2, self.mlp = block.norm2, block.mlp
        self.ls2, self.drop_path2 = block.ls2, block.drop_path2
        first: Any = block.mlp.fc1
        self.dim, self.hidden = first.in_features, first.out_features

    def attended(self, x: Tensor, bias: Tensor | None = None, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens after the branch of attention.

        Args:
            x: [B, N, C].
            bias: Added to the logits of each key [B, N].
            kept: Of each token whether others see it, 1 or 0, with a gradient [B, N].

        Returns:
            Tokens [B, N, C], and the keys of all heads [B, h, N, d].
        """
        attn: Any = self.attn
        normed = self.norm1(x)
        queries, keys, values = attn.qkv(normed).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys = attn.q_norm(queries), attn.k_norm(keys)
        dropout = attn.attn_drop.p if self.training else 0.0
        if kept is None:
            mask = None if bias is None else bias[:, None, None].to(queries.dtype)
            y = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
        else:
            y = F.dropout(_seen(queries @ keys.transpose(2, 3) * attn.scale, kept), dropout).to(values.dtype) @ values
        y = attn.norm(y.transpose(1, 2).flatten(2))
        if attn.gate is not None:
            y = y * attn.gate(normed).sigmoid()
        return x + self.drop_path1(self.ls1(attn.proj_drop(attn.proj(y)))), keys

    def fed(self, x: Tensor) -> Tensor:
        """Tokens [B, N, C] after the branch of the MLP."""
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    def macs(self, tokens: Any) -> Any:
        """Multiply-adds of both branches for a number of tokens, or for numbers [B]."""
        return tokens * (4 * self.dim**2 + 2 * self.dim * self.hidden) + 2 * tokens**2 * self.dim


def _seen(logits: Tensor, kept: Tensor) -> Tensor:
    """Softmax over the tokens that are kept, and over each token itself (equations 10 and 11 of arXiv 2106.02034).

    Args:
        logits: [B, h, N, N].
        kept: 1 or 0 [B, N], with a gradient, which a sum of -inf would not have.

    Returns:
        [B, h, N, N], float32 or finer.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    itself = torch.eye(kept.shape[1], dtype=logits.dtype, device=kept.device)
    visible = (itself + (1 - itself) * kept[:, None, :].to(logits.dtype))[:, None]
    weights = (logits - logits.detach().amax(3, keepdim=True)).exp() * visible
    return weights / (weights.sum(3, keepdim=True) + _EPS)


def blocks_of(network: nn.Module, what: str) -> Iterator[Block]:
    """The blocks of a vision transformer of timm's, to be replaced.

    Args:
        network: The host.
        what: What needs one, for the message.

    Raises:
        Mistake: Another network, or blocks of another kind.
    """
    if not isinstance(network, VisionTransformer):
        raise Mistake(
            f"{what} takes a vision transformer of timm's, such as deit_small_patch16_224, not {type(network).__name__}"
        )
    for i, block in enumerate(network.blocks):
        if type(block) is not Block or type(block.attn) is not Attention:
            raise Mistake(
                f"{what} takes plain transformer blocks; block {i} of {type(network).__name__} is "
                f"{type(block).__name__}"
            )
        yield block
