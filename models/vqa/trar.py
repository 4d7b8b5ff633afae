"""TRAR: a Transformer that answers questions about an image, and routes the spans of its attention.

Reference: "TRAR: Routing the Attention Spans in Transformer for Visual Question Answering", ICCV 2021. Its encoder and
decoder are those of MCAN, "Deep Modular Co-Attention Networks for Visual Question Answering", arXiv 1906.10770.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.layers.feed_forward import FeedForward
from models.layers.routed_attention import AttentionPool, MultiHeadAttention, RoutedAttention, Routing
from models.layers.spans import Size, SpanMasks, Spans
from models.layers.unbiased_norm import UnbiasedLayerNorm
from models.mistakes import Mistake

# Of question tokens that are none.
PAD = 0


class EncoderLayer(nn.Module):
    """Self-attention of the words of a question, and a feed-forward network, each with a norm after it.

    Args:
        dim: Features of tokens.
        feedforward_dim: Features inside of the feed-forward network.
        num_heads: Heads.
        dropout: Probability.
    """

    def __init__(self, dim: int, feedforward_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads, dropout)
        self.feed_forward = FeedForward(dim, feedforward_dim, dropout)
        self.norm1, self.norm2 = UnbiasedLayerNorm(dim), UnbiasedLayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, words: Tensor, padding: Tensor) -> Tensor:
        """Words [B, T, dim] and which are padding, bool [B, T], to words."""
        words = self.norm1(words + self.dropout(self.attention(words, words, padding[:, None, None])))
        return self.norm2(words + self.dropout(self.feed_forward(words)))


class DecoderLayer(nn.Module):
    """Routed self-attention of the cells of an image, attention to the question, and a feed-forward network.

    Args:
        dim, feedforward_dim, num_heads, dropout: See `EncoderLayer`.
        num_spans: Spans of the self-attention.
        options: Of the `RoutedAttention`.
    """

    def __init__(
        self, dim: int, feedforward_dim: int, num_heads: int, dropout: float, num_spans: int, **options: Any
    ) -> None:
        super().__init__()
        self.self_attention = RoutedAttention(dim, num_heads, num_spans, dropout=dropout, **options)
        self.cross_attention = MultiHeadAttention(dim, num_heads, dropout)
        self.feed_forward = FeedForward(dim, feedforward_dim, dropout)
        self.norm1, self.norm2, self.norm3 = (UnbiasedLayerNorm(dim) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, cells: Tensor, spans: Spans, words: Tensor, padding: Tensor) -> Tensor:
        """Cells [B, N, dim] to cells.

        Args:
            cells: Tokens of the image.
            spans: Theirs.
            words: The encoded question [B, T, dim].
            padding: Which of them are padding, bool [B, T].
        """
        cells = self.norm1(cells + self.dropout(self.self_attention(cells, spans)))
        cells = self.norm2(cells + self.dropout(self.cross_attention(cells, words, padding[:, None, None])))
        return self.norm3(cells + self.dropout(self.feed_forward(cells)))


class Adapter(nn.Module):
    """Features of cells, perhaps with boxes, to tokens; cells whose features are all zero are padding.

    Args:
        in_chans: Features of a cell.
        dim: Features of a token.
        box_dim: What a box is brought to beside the features; None where there are no boxes.
    """

    def __init__(self, in_chans: int, dim: int, box_dim: int | None = None) -> None:
        super().__init__()
        self.box = None if box_dim is None else nn.Linear(5, box_dim)
        self.linear = nn.Linear(in_chans + (box_dim or 0), dim)

    def forward(self, features: Tensor, boxes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features to tokens.

        Args:
            features: [B, N, in_chans].
            boxes: x1, y1, x2, y2 as shares of the image's sides [B, N, 4].

        Returns:
            Tokens [B, N, dim], and which are padding, bool [B, N].

        Raises:
            Mistake: Boxes for a network that takes none, or none for one that does.
        """
        padding = (features == 0).all(-1)
        if (boxes is None) != (self.box is None):
            raise Mistake("boxes go with a network that has box_dim, and such a network with boxes")
        if self.box is not None and boxes is not None:
            x1, y1, x2, y2 = boxes.unbind(-1)
            area = (x2 - x1) * (y2 - y1)
            features = torch.cat([features, self.box(torch.cat([boxes, area[..., None]], -1))], -1)
        return self.linear(features), padding


class Encoded(NamedTuple):
    """A question and an image that have seen each other.

    Args:
        words: [B, T, dim].
        cells: [B, N, dim].
        word_padding: Which words are padding, bool [B, T].
        cell_padding: Which cells are, bool [B, N].
        size: Height and width of the grid of cells; None for regions.
    """

    words: Tensor
    cells: Tensor
    word_padding: Tensor
    cell_padding: Tensor
    size: Size | None


class CoAttention(nn.Module):
    """A question and the cells of an image that see each other: TRAR without what answers.

    Args:
        vocabulary_size: Words it knows, with the one of padding, which is 0.
        in_chans: Features of a cell: 2048 of the detector for VQA v2, 1024 for CLEVR.
        dim: Features of tokens.
        feedforward_dim: Features inside of the feed-forward networks.
        num_heads: Heads of every attention.
        num_layers: Layers of the encoder, and of the decoder.
        dropout: Probability.
        orders: Spans of the self-attention of cells: 0, the whole grid; r, the (2r+1) x (2r+1) window.
        word_dim: Features of a word.
        box_dim: What the box of a cell is brought to; None where there are no boxes.
        routing: `soft`, `hard` or `fixed`, see `models.layers.routed_attention.RoutedAttention`.
        options: `pooling`, `temperature`, `eval_routing`, `binarize` and `pool_padding`, see
            `models.layers.routed_attention.PathController`.

    Raises:
        Mistake: An option that cannot be.
    """

    def __init__(
        self,
        vocabulary_size: int,
        in_chans: int = 2048,
        dim: int = 512,
        feedforward_dim: int = 2048,
        num_heads: int = 8,
        num_layers: int = 6,
        dropout: float = 0.1,
        orders: Sequence[int] = (0, 1, 2, 3),
        word_dim: int = 300,
        box_dim: int | None = None,
        routing: Routing = "soft",
        **options: Any,
    ) -> None:
        super().__init__()
        self.in_chans, self.dim, self.dropout = in_chans, dim, dropout
        self.embedding = nn.Embedding(vocabulary_size, word_dim)
        self.lstm = nn.LSTM(word_dim, dim, batch_first=True)
        self.adapter = Adapter(in_chans, dim, box_dim)
        self.spans = SpanMasks(orders)
        sizes = (dim, feedforward_dim, num_heads, dropout)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(num_layers))
        self.decoder = nn.ModuleList(
            DecoderLayer(*sizes, num_spans=len(self.spans.orders), routing=routing, **options)
            for _ in range(num_layers)
        )

    def encode(self, questions: Tensor, features: Tensor, boxes: Tensor | None = None) -> Encoded:
        """Question and image after all layers.

        Args:
            questions: Words by number, int64 [B, T], 0 behind the last one.
            features: Of cells [B, H, W, in_chans], of a grid of any height and width, zero where there is no image; or
                of regions [B, N, in_chans], which have no neighbours, so that `orders` is [0].
            boxes: Of the cells or regions, x1, y1, x2, y2 as shares of the image's sides [B, N, 4], with `box_dim`.

        Raises:
            Mistake: Features or boxes that do not go with the options.
        """
        word_padding = questions == PAD
        words = self.lstm(self.embedding(questions))[0]
        size = (features.shape[1], features.shape[2]) if features.ndim == 4 else None
        cells, cell_padding = self.adapter(features.flatten(1, -2), boxes)
        spans = self.spans(size, cell_padding)
        for encoder in self.encoder:
            words = encoder(words, word_padding)
        for decoder in self.decoder:
            cells = decoder(cells, spans, words, word_padding)
        return Encoded(words, cells, word_padding, cell_padding, size)


class TRAR(CoAttention):
    """Answers questions about images given as features of their cells: logits [B, num_answers].

    Args:
        num_answers: Answers it knows.
        vocabulary_size, in_chans: See `CoAttention`.
        pool_dim: Features inside of the two last poolings.
        glimpses: Sums that each of these takes.
        out_dim: Features that they make.
        options: Further ones of `CoAttention`.

    Raises:
        Mistake: An option that cannot be.
    """

    def __init__(
        self,
        num_answers: int,
        vocabulary_size: int,
        in_chans: int = 2048,
        pool_dim: int = 512,
        glimpses: int = 1,
        out_dim: int = 1024,
        **options: Any,
    ) -> None:
        super().__init__(vocabulary_size, in_chans, **options)
        self.num_answers = num_answers
        sizes = (self.dim, pool_dim, out_dim, glimpses, self.dropout)
        self.word_pool, self.cell_pool = (AttentionPool(*sizes) for _ in range(2))
        self.norm = UnbiasedLayerNorm(out_dim)
        self.classifier = nn.Linear(out_dim, num_answers)

    def forward(self, questions: Tensor, features: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Answers questions: logits [B, num_answers].

        Args:
            questions, features, boxes: See `encode`.

        Raises:
            Mistake: Features or boxes that do not go with the options.
        """
        seen = self.encode(questions, features, boxes)
        words = self.word_pool(seen.words, seen.word_padding)
        return self.classifier(self.norm(words + self.cell_pool(seen.cells, seen.cell_padding, seen.size)))
