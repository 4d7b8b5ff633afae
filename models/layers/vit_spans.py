"""Routed spans in the attention layers of timm's vision transformers, which keep their weights and the names of these.

The spans are over the grid of patches. Class and register tokens, which have no place on it, look at all tokens, and
all look at them. What chooses a span for an image sees its patches alone.

Reference: "TRAR: Routing the Attention Spans in Transformer for Visual Question Answering", ICCV 2021, section 3, which
has it in a decoder of its own.
"""

from collections.abc import Sequence
from typing import Any

from timm.layers import Attention
from torch import Tensor, nn

from models.layers.routed_attention import Routing, SpanMixing, share_maker
from models.layers.spans import Size, SpanMasks, Spans
from models.mistakes import Mistake


class PatchGrid(nn.Module):
    """The grid that the tokens of a network are on, which its layers have in common.

    It is told by a forward hook of the patch embedding, `register_forward_hook(grid.see)`.

    Args:
        orders: Spans, see `models.layers.spans.SpanMasks`.
        prefix: Tokens before the patches.
    """

    def __init__(self, orders: Sequence[int], prefix: int) -> None:
        super().__init__()
        self.masks = SpanMasks(orders, prefix)
        self.size: Size = (0, 0)

    def see(self, embedding: Any, inputs: tuple[Tensor, ...], tokens: Tensor) -> None:
        """Notes the height and width of the grid that images [B, C, H, W] are cut into."""
        height, width = embedding.dynamic_feat_size(inputs[0].shape[-2:])
        self.size = (height, width)

    def forward(self, x: Tensor) -> Spans:
        """The spans of tokens [B, prefix + N, dim].

        Raises:
            Mistake: There are not as many tokens as the grid has.
        """
        tokens = self.masks.prefix + self.size[0] * self.size[1]
        if x.shape[1] != tokens:
            raise Mistake(
                f"spans of attention need every patch in its place: a grid of {self.size[0]}x{self.size[1]} has "
                f"{tokens} tokens with those before it, and there are {x.shape[1]}. Set patch_drop_rate to 0"
            )
        return self.masks(self.size, None, x.device)


class RoutedViTAttention(nn.Module):
    """Self-attention of a timm network in which every image looks as far as it should.

    It takes over all layers of the one in whose place it is, and adds what chooses the spans, `controller`. With the
    whole grid as the only span it is what that one was.

    Args:
        host: The layer in whose place it is.
        grid: Of the network.
        routing: `soft`, `hard` or `fixed`, see `models.layers.routed_attention.RoutedAttention`.
        options: Of the `PathController`.

    Raises:
        Mistake: An option that is none of those.
    """

    def __init__(self, host: Attention, grid: PatchGrid, routing: Routing = "soft", **options: Any) -> None:
        super().__init__()
        self.num_heads, self.grid = host.num_heads, grid
        self.qkv, self.q_norm, self.k_norm = host.qkv, host.q_norm, host.k_norm
        self.norm, self.gate, self.proj, self.proj_drop = host.norm, host.gate, host.proj, host.proj_drop
        num_spans = len(grid.masks.orders)
        self.controller = share_maker(host.qkv.in_features, num_spans, routing, **options)
        self.mixing = SpanMixing(num_spans, num_spans == 1 or self.controller.one_hot, host.attn_drop.p)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens [B, prefix + N, dim] to tokens.

        Args:
            x: Tokens.
            attn_mask, is_causal: Of timm's blocks; there are no masks but those of the spans.

        Raises:
            Mistake: A mask.
        """
        if attn_mask is not None or is_causal:
            raise Mistake("attention with routed spans takes no other mask")
        spans = self.grid(x)
        shares = self.controller(x[:, spans.prefix :], None)
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.mixing(self.q_norm(q), self.k_norm(k), v, shares, spans)
        x_out = self.norm(mixed.transpose(1, 2).flatten(2))
        if self.gate is not None:
            x_out = x_out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(x_out))
