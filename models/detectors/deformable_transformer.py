"""The encoder and decoder of Deformable DETR and SOLQ, and the proposals of its two-stage variant.

Boxes and reference points are relative to an image without its padding; attention works on the padded maps. The valid
ratio, which part of a padded map is image, turns the first into the second.

Reference: "Deformable DETR", arXiv 2010.04159, sections 4.1 to 4.3 and appendix A.4.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.deformable_attention import DeformableAttention, Levels
from models.layers.feed_forward import FeedForward
from models.layers.mlp import MLP
from models.layers.xavier import xavier_matrices
from models.mistakes import Mistake


class Memory(NamedTuple):
    """What the encoder made of a batch of B images, S tokens each.

    Attributes:
        tokens: [B, S, D].
        padding: True on tokens of padding [B, S].
        levels: Which tokens belong to which map.
        valid_ratios: (width, height) of the image as a fraction of each padded map [B, L, 2].
    """

    tokens: Tensor
    padding: Tensor
    levels: Levels
    valid_ratios: Tensor


class Queries(NamedTuple):
    """What the decoder starts from.

    Attributes:
        content: Initial state of the queries [B, Q, D].
        position: What is added to the state before it is compared [B, Q, D].
        references: Points (x, y) or boxes (cx, cy, w, h) [B, Q, 2 or 4], relative to the image without padding.
    """

    content: Tensor
    position: Tensor
    references: Tensor


class BoxHead(MLP):
    """Boxes from the states of queries, as corrections of their references.

    Args:
        hidden_dim: Width of the states.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__(hidden_dim, hidden_dim, 4, 3)

    def forward(self, x: Tensor, references: Tensor | None = None) -> Tensor:
        """sigmoid(MLP(x) + logit(reference)), float32 whatever the autocast type.

        Args:
            x: States [..., D].
            references: Points (x, y), which correct the centre alone, or boxes [..., 2 or 4], in [0, 1].

        Returns:
            (cx, cy, w, h) in [0, 1] [..., 4]; the corrections themselves where there are no references.
        """
        corrections = super().forward(x).float()
        if references is None:
            return corrections
        logits = inverse_sigmoid(references)
        return (corrections + F.pad(logits, (0, 4 - logits.shape[-1]))).sigmoid()


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of a number in [0, 1], of which neither it nor one minus it counts as less than `eps`."""
    x = x.float().clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


class EncoderLayer(nn.Module):
    """Deformable self-attention of the tokens, then a feed-forward network, each with the norm after the addition.

    Args:
        hidden_dim: Width of the tokens.
        feedforward_dim: Width inside the feed-forward network.
        num_heads: Attention heads.
        num_levels: Feature maps.
        num_points: Points of each head on each map.
        dropout: Rate.
    """

    def __init__(
        self,
        hidden_dim: int,
        feedforward_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.attention = DeformableAttention(hidden_dim, num_heads, num_levels, num_points)
        self.attention_norm = nn.LayerNorm(hidden_dim)
        self.ffn = FeedForward(hidden_dim, feedforward_dim, dropout)
        self.ffn_norm = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, position: Tensor, references: Tensor, levels: Levels, padding: Tensor) -> Tensor:
        """Tokens, their positions [B, S, D] and references [B, S, L, 2] to tokens [B, S, D]."""
        read = self.attention(tokens + position, references, tokens, levels, padding)
        tokens = self.attention_norm(tokens + self.dropout(read))
        return self.ffn_norm(tokens + self.dropout(self.ffn(tokens)))


class DecoderLayer(nn.Module):
    """Self-attention of the queries, deformable attention to the memory, a feed-forward network; norms after each.

    Args:
        hidden_dim: Width of queries and tokens.
        feedforward_dim: Width inside the feed-forward network.
        num_heads: Heads of both attentions.
        num_levels: Feature maps.
        num_points: Points of each head on each map.
        dropout: Rate.
    """

    def __init__(
        self,
        hidden_dim: int,
        feedforward_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(hidden_dim, num_heads, dropout, batch_first=True)
        self.self_norm = nn.LayerNorm(hidden_dim)
        self.cross_attention = DeformableAttention(hidden_dim, num_heads, num_levels, num_points)
        self.cross_norm = nn.LayerNorm(hidden_dim)
        self.ffn = FeedForward(hidden_dim, feedforward_dim, dropout)
        self.ffn_norm = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, content: Tensor, position: Tensor, references: Tensor, memory: Memory) -> Tensor:
        """One layer of the decoder.

        Args:
            content: State of the queries [B, Q, D].
            position: What is added to it before it is compared [B, Q, D].
            references: Points or boxes [B, Q, 2 or 4], relative to the image without padding.
            memory: What the encoder made of the images.

        Returns:
            New state [B, Q, D].
        """
        query = content + position
        mixed, _ = self.self_attention(query, query, content, need_weights=False)
        content = self.self_norm(content + self.dropout(mixed))
        ratios = memory.valid_ratios.repeat(1, 1, references.shape[-1] // 2)
        places = references[:, :, None] * ratios[:, None]
        read = self.cross_attention(content + position, places, memory.tokens, memory.levels, memory.padding)
        content = self.cross_norm(content + self.dropout(read))
        return self.ffn_norm(content + self.dropout(self.ffn(content)))


class DeformableTransformer(nn.Module):
    """Encoder over the tokens of L maps, and decoder of Q queries (section 4.2).

    Args:
        hidden_dim: Width, D.
        feedforward_dim: Width inside the feed-forward networks.
        num_heads: Heads of every attention.
        num_levels: Feature maps, L.
        encoder_layers: Layers of the encoder.
        decoder_layers: Layers of the decoder.
        encoder_points: Points of each head on each map, in the encoder.
        decoder_points: Points of each head on each map, in the decoder.
        dropout: Rate.
    """

    def __init__(
        self,
        hidden_dim: int,
        feedforward_dim: int,
        num_heads: int = 8,
        num_levels: int = 4,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        encoder_points: int = 4,
        decoder_points: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        sizes = (hidden_dim, feedforward_dim, num_heads, num_levels)
        self.level_embed = nn.Parameter(torch.randn(num_levels, hidden_dim))
        self.encoder = nn.ModuleList(EncoderLayer(*sizes, encoder_points, dropout) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(*sizes, decoder_points, dropout) for _ in range(decoder_layers))
        for layer in (*self.encoder, *self.decoder):
            xavier_matrices(layer)
            for module in layer.modules():
                if isinstance(module, DeformableAttention):
                    module.reset_parameters()

    def encode(self, maps: Sequence[Tensor], paddings: Sequence[Tensor], positions: Sequence[Tensor]) -> Memory:
        """The encoder.

        Args:
            maps: Feature maps [B, D, h, w], one a level.
            paddings: True on padding [B, h, w].
            positions: Position encodings [B, D, h, w], without the levels' own.
        """
        levels = Levels.of([(x.shape[-2], x.shape[-1]) for x in maps], maps[0].device)
        ratios = torch.stack([valid_ratio(padding) for padding in paddings], 1)
        references = token_centres(levels, ratios)[:, :, None] * ratios[:, None]
        tokens = torch.cat([x.flatten(2).mT for x in maps], 1)
        padding = torch.cat([x.flatten(1) for x in paddings], 1)
        embedded = zip(positions, self.level_embed, strict=True)
        position = torch.cat([x.flatten(2).mT + level for x, level in embedded], 1)
        for layer in self.encoder:
            tokens = layer(tokens, position, references, levels, padding)
        return Memory(tokens, padding, levels, ratios)

    def decode(
        self, memory: Memory, queries: Queries, box_heads: Sequence[BoxHead] | nn.ModuleList = ()
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The decoder; with one box head a layer, it refines the references from layer to layer (appendix A.4).

        Args:
            memory: What `encode` returned.
            queries: What it starts from.
            box_heads: One a layer, to refine; none, and all layers keep the references.

        Returns:
            State of the queries after each layer, [B, Q, D] each, and the boxes of the heads [B, Q, 4], if any. A
            layer looks around the boxes of the one before, through which no gradient flows.
        """
        content, position, references = queries
        states, boxes = [], []
        for i, layer in enumerate(self.decoder):
            content = layer(content, position, references, memory)
            states.append(content)
            if box_heads:
                boxes.append(box_heads[i](content, references))
                references = boxes[-1].detach()
        return states, boxes


class Proposals(NamedTuple):
    """First stage: what every token proposes, and the best of them as queries.

    Attributes:
        logits: Class logits of every token [B, S, K].
        boxes: Proposed boxes (cx, cy, w, h) of every token [B, S, 4].
        chosen: Tokens that became queries [B, Q].
        queries: What the decoder makes of them; their boxes have no gradient.
    """

    logits: Tensor
    boxes: Tensor
    chosen: Tensor
    queries: Queries


class ProposalStage(nn.Module):
    """Two-stage variant: queries come from the boxes that the encoder's tokens propose (appendix A.4).

    Args:
        num_classes: Classes, K; the first one's logit ranks the proposals.
        num_queries: Proposals that become queries.
        hidden_dim: Width, D; even halves of it encode each coordinate of a box.

    Raises:
        Mistake: A width that is not a multiple of four.
    """

    def __init__(self, num_classes: int, num_queries: int, hidden_dim: int) -> None:
        super().__init__()
        if hidden_dim % 4:
            raise Mistake(f"two-stage proposals need a hidden_dim that is a multiple of 4, not {hidden_dim}")
        self.num_queries = num_queries
        self.token_proj = nn.Linear(hidden_dim, hidden_dim)
        self.token_norm = nn.LayerNorm(hidden_dim)
        self.query_proj = nn.Linear(2 * hidden_dim, 2 * hidden_dim)
        self.query_norm = nn.LayerNorm(2 * hidden_dim)
        xavier_matrices(self)
        self.class_embed = nn.Linear(hidden_dim, num_classes)
        self.bbox_embed = BoxHead(hidden_dim)

    def forward(self, memory: Memory) -> Proposals:
        """Proposals of a batch; as many queries as there are tokens, if those are fewer."""
        anchors, usable = self._anchors(memory)
        tokens = self.token_norm(self.token_proj(memory.tokens.masked_fill(~usable[..., None], 0.0)))
        logits = self.class_embed(tokens).float()
        # A token without an anchor proposes a box that nothing matches, the corner of the image.
        coordinates = self.bbox_embed(tokens) + torch.logit(anchors).masked_fill(~usable[..., None], math.inf)
        chosen = logits[..., 0].topk(torch.sym_min(self.num_queries, logits.shape[1]), 1).indices
        references = coordinates.detach().gather(1, chosen[..., None].expand(-1, -1, 4)).sigmoid()
        encoded = self.query_norm(self.query_proj(_encode_boxes(references, memory.tokens.shape[-1] // 2)))
        position, content = encoded.chunk(2, -1)
        return Proposals(logits, coordinates.sigmoid(), chosen, Queries(content, position, references))

    def _anchors(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """A box at each token [B, S, 4], twice as large on each coarser map, and whether it is usable [B, S]."""
        centres = token_centres(memory.levels, memory.valid_ratios)
        sides = torch.cat(
            [centres.new_full((h * w,), 0.05 * 2.0**level) for level, (h, w) in enumerate(memory.levels.sizes)]
        )
        anchors = torch.cat([centres, sides[:, None].expand_as(centres)], -1)
        inside = ((anchors > 0.01) & (anchors < 0.99)).all(-1)
        return anchors, inside & ~memory.padding


def valid_ratio(padding: Tensor) -> Tensor:
    """(width, height) of the image as a fraction of a padded map, from its padding [B, h, w]: [B, 2]."""
    valid = (~padding).float()
    return torch.stack([valid[:, 0].mean(1), valid[:, :, 0].mean(1)], -1)


def token_centres(levels: Levels, valid_ratios: Tensor) -> Tensor:
    """Centre (x, y) of each token relative to the image without padding [B, S, 2]; above one on padding."""
    centres = []
    for level, (height, width) in enumerate(levels.sizes):
        x = (torch.arange(width, device=valid_ratios.device) + 0.5) / width
        y = (torch.arange(height, device=valid_ratios.device) + 0.5) / height
        grid = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1)
        centres.append(grid.flatten(0, 1) / valid_ratios[:, level, None])
    return torch.cat(centres, 1)


def _encode_boxes(boxes: Tensor, num_feats: int) -> Tensor:
    """Sines and cosines of each of four coordinates in [0, 1]: [B, Q, 4 * num_feats]."""
    exponents = torch.arange(0, num_feats, 2, dtype=torch.float32, device=boxes.device) / num_feats
    angles = boxes[..., None] * (2 * math.pi) / 10000**exponents
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-3)
