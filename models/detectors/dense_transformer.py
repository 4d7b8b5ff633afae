"""The transformer of DETR: every token attends to every token, with room for a bias on its cross-attention.

SMCA is this transformer with such a bias. Parameters have the names of the official checkpoints.

Reference: "End-to-End Object Detection with Transformers", arXiv 2005.12872, section 3.2 and appendix A.3.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.feed_forward import FeedForward
from models.layers.xavier import xavier_matrices
from models.mistakes import Mistake

# From the index of a decoder layer and the content of its queries [B, Q, D], [B, heads, Q, S] to add to its scores.
Bias = Callable[[int, Tensor], Tensor]


class Memory(NamedTuple):
    """What the encoder made of a batch of B images, S tokens each.

    Attributes:
        tokens: [B, S, D].
        position: Position encodings of the tokens [B, S, D].
        padding: True on tokens of padding [B, S].
    """

    tokens: Tensor
    position: Tensor
    padding: Tensor


class Attention(nn.Module):
    """Multi-head attention, `softmax(q k^T / sqrt(D / heads) + bias) v`, of queries, keys and values that differ.

    Args:
        hidden_dim: D.
        num_heads: Heads, a divisor of D.
        dropout: Probability that a weight is dropped.

    Raises:
        Mistake: A D that the heads do not divide.
    """

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise Mistake(f"num_heads divides hidden_dim: {num_heads} does not divide {hidden_dim}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_dim, hidden_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_dim))
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            query: [B, Q, D].
            key, value: [B, S, D].
            padding: [B, S], bool; keys where it is True get no weight.
            bias: [B, heads, Q, S], added to the scores.

        Returns:
            [B, Q, D].
        """
        q, k, v = (self._project(x, part) for part, x in enumerate((query, key, value)))
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=_mask(padding, bias), dropout_p=dropout)
        return self.out_proj(x.transpose(1, 2).flatten(2))

    def weights(self, query: Tensor, key: Tensor, padding: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """The weights of the keys [B, heads, Q, S], each row adding up to one; arguments as in `forward`."""
        q, k = self._project(query, 0), self._project(key, 1)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        mask = _mask(padding, bias)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        return scores.softmax(-1)

    def _project(self, x: Tensor, part: int) -> Tensor:
        weight, bias = self.in_proj_weight.chunk(3)[part], self.in_proj_bias.chunk(3)[part]
        return F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _mask(padding: Tensor | None, bias: Tensor | None) -> Tensor | None:
    if padding is None:
        return bias
    padding = padding[:, None, None]
    return ~padding if bias is None else bias.masked_fill(padding, -torch.inf)


class EncoderLayer(FeedForward):
    """Self-attention and a feed-forward network, each with dropout, a residual and a norm.

    Post-norm: `x = norm(x + branch(x))`. Pre-norm: `x = x + branch(norm(x))`.

    Args:
        hidden_dim: D.
        num_heads: Heads.
        feedforward_dim: Hidden features of the feed-forward network.
        dropout: Probability, everywhere.
        pre_norm: Whether norms come before the branches.
    """

    def __init__(
        self, hidden_dim: int, num_heads: int, feedforward_dim: int, dropout: float = 0.1, pre_norm: bool = False
    ) -> None:
        super().__init__(hidden_dim, feedforward_dim, dropout)
        self.pre_norm = pre_norm
        self.self_attn = Attention(hidden_dim, num_heads, dropout)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)

    def forward(self, tokens: Tensor, position: Tensor, padding: Tensor | None = None) -> Tensor:
        """Tokens [B, S, D] with their position [B, S, D] and padding [B, S] to tokens [B, S, D]."""

        def attend(x: Tensor) -> Tensor:
            placed = x + position
            return self.self_attn(placed, placed, x, padding)

        tokens = _residual(tokens, attend, self.norm1, self.dropout, self.pre_norm)
        return _residual(tokens, self.feed_forward, self.norm2, self.dropout, self.pre_norm)


class DecoderLayer(FeedForward):
    """Self-attention of the queries, cross-attention to the memory, and a feed-forward network.

    Args:
        hidden_dim: D.
        num_heads: Heads of both attentions.
        feedforward_dim: Hidden features of the feed-forward network.
        dropout: Probability, everywhere.
        pre_norm: Whether norms come before the branches.
    """

    def __init__(
        self, hidden_dim: int, num_heads: int, feedforward_dim: int, dropout: float = 0.1, pre_norm: bool = False
    ) -> None:
        super().__init__(hidden_dim, feedforward_dim, dropout)
        self.pre_norm = pre_norm
        self.self_attn = Attention(hidden_dim, num_heads, dropout)
        self.multihead_attn = Attention(hidden_dim, num_heads, dropout)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.norm3 = nn.LayerNorm(hidden_dim)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        memory: Tensor,
        memory_position: Tensor,
        padding: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Refine the content of the queries.

        Args:
            content: State of the queries [B, Q, D].
            position: What is added to it before it is compared [B, Q, D].
            memory: Encoded tokens [B, S, D].
            memory_position: Position encodings of the tokens [B, S, D].
            padding: True on tokens of padding [B, S].
            bias: What is added to the scores of the cross-attention [B, heads, Q, S].

        Returns:
            New state [B, Q, D].
        """

        def attend(x: Tensor) -> Tensor:
            placed = x + position
            return self.self_attn(placed, placed, x)

        def look(x: Tensor) -> Tensor:
            return self.multihead_attn(x + position, memory + memory_position, memory, padding, bias)

        content = _residual(content, attend, self.norm1, self.dropout, self.pre_norm)
        content = _residual(content, look, self.norm2, self.dropout, self.pre_norm)
        return _residual(content, self.feed_forward, self.norm3, self.dropout, self.pre_norm)


def _residual(
    x: Tensor, branch: Callable[[Tensor], Tensor], norm: nn.Module, dropout: nn.Module, pre_norm: bool
) -> Tensor:
    return x + dropout(branch(norm(x))) if pre_norm else norm(x + dropout(branch(x)))


class Encoder(nn.Module):
    """Encoder layers, and a norm after them where they are pre-norm."""

    def __init__(self, layers: list[EncoderLayer], hidden_dim: int, pre_norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(hidden_dim) if pre_norm else nn.Identity()

    def forward(self, tokens: Tensor, position: Tensor, padding: Tensor) -> Memory:
        """Tokens [B, S, D] with their position [B, S, D] and padding [B, S] to the memory."""
        for layer in self.layers:
            tokens = layer(tokens, position, padding)
        return Memory(self.norm(tokens), position, padding)


class Decoder(nn.Module):
    """Decoder layers, and one norm for what leaves each of them."""

    def __init__(self, layers: list[DecoderLayer], hidden_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, position: Tensor, memory: Memory, bias: Bias | None = None) -> Tensor:
        """Decode queries whose content starts at zero.

        Args:
            position: Positions of the queries [B, Q, D].
            memory: What the encoder returned.
            bias: What is added to the scores of the cross-attention, from a layer's index and its content.

        Returns:
            Normed state of the queries after each layer [L, B, Q, D].
        """
        content = torch.zeros_like(position)
        states = []
        for i, layer in enumerate(self.layers):
            added = None if bias is None else bias(i, content)
            content = layer(content, position, memory.tokens, memory.position, memory.padding, added)
            states.append(self.norm(content))
        return torch.stack(states)


class DenseTransformer(nn.Module):
    """Encoder of a feature map and decoder of queries.

    Args:
        hidden_dim: D.
        num_heads: Heads of every attention.
        feedforward_dim: Hidden features of every feed-forward network.
        encoder_layers, decoder_layers: How many.
        dropout: Probability, everywhere.
        pre_norm: Whether norms come before the branches.
    """

    def __init__(
        self,
        hidden_dim: int = 256,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        dropout: float = 0.1,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        options = (hidden_dim, num_heads, feedforward_dim, dropout, pre_norm)
        self.encoder = Encoder([EncoderLayer(*options) for _ in range(encoder_layers)], hidden_dim, pre_norm)
        self.decoder = Decoder([DecoderLayer(*options) for _ in range(decoder_layers)], hidden_dim)
        xavier_matrices(self)

    def encode(self, x: Tensor, position: Tensor, padding: Tensor) -> Memory:
        """The encoder.

        Args:
            x, position: Feature map and position encoding [B, D, h, w].
            padding: True on padding [B, h, w].
        """
        return self.encoder(x.flatten(2).mT, position.flatten(2).mT, padding.flatten(1))

    def decode(self, memory: Memory, position: Tensor, bias: Bias | None = None) -> Tensor:
        """The decoder.

        Args:
            memory: What `encode` returned.
            position: Positions of the queries [Q, D], the same for every image.
            bias: What is added to the scores of the cross-attention, from a layer's index and its content.

        Returns:
            Normed state of the queries after each layer [L, B, Q, D].
        """
        # Not a view: without gradients one of a parameter claims to need them, and PyTorch's FLOP counter stumbles.
        return self.decoder(position.repeat(memory.tokens.shape[0], 1, 1), memory, bias)
