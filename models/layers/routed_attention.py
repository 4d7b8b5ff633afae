"""Self-attention that chooses, for each image, how far its tokens look: soft, hard or fixed mixtures of spans.

Reference: "TRAR: Routing the Attention Spans in Transformer for Visual Question Answering", ICCV 2021, section 3.
"""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.compute import has_values, record
from models.decisions import note
from models.layers.gumbel import gumbel_noise
from models.layers.occurrences import occurrences
from models.layers.spans import Size, Spans, attention_maps, scores, span_name
from models.layers.unbiased_norm import UnbiasedLayerNorm
from models.mistakes import Mistake

Routing = Literal["soft", "hard", "fixed"]
Pooling = Literal["avg", "attention", "fc"]
EvalRouting = Literal["mean", "argmax", "sample"]


class MultiHeadAttention(nn.Module):
    """Attention with linear maps of its own for values, keys, queries and the merged heads.

    Args:
        dim: Features of tokens.
        num_heads: Heads, which share them.
        dropout: Probability, of the attention maps.

    Raises:
        Mistake: Heads do not divide the features.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise Mistake(f"heads share the features of tokens: {num_heads} do not divide {dim}")
        self.num_heads = num_heads
        self.query, self.key, self.value, self.merge = (nn.Linear(dim, dim) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def heads(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, N, dim] and [B, M, dim] to q, k and v by head [B, heads, N or M, dim / heads]."""
        maps = ((self.query, queries), (self.key, keys), (self.value, keys))
        q, k, v = (linear(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for linear, x in maps)
        return q, k, v

    def merged(self, mixed: Tensor) -> Tensor:
        """Values by head [B, heads, N, dim / heads] to tokens [B, N, dim]."""
        return self.merge(mixed.transpose(1, 2).flatten(2))

    def forward(self, queries: Tensor, keys: Tensor, blocked: Tensor) -> Tensor:
        """Tokens that ask, and tokens that are asked.

        Args:
            queries: [B, N, dim].
            keys: [B, M, dim].
            blocked: Which of them are not looked at, bool [B, 1, 1, M].

        Returns:
            [B, N, dim].
        """
        q, k, v = self.heads(queries, keys)
        return self.merged(self.dropout(attention_maps(scores(q, k), blocked)) @ v)


class AttentionPool(nn.Module):
    """Weighted sums of tokens, whose weights a small network gives.

    Args:
        dim: Features of tokens.
        hidden_dim: Features between the layers of that network.
        out_dim: Features that come out.
        glimpses: Sums, which are put side by side.
        dropout: Probability.
    """

    def __init__(self, dim: int, hidden_dim: int, out_dim: int, glimpses: int = 1, dropout: float = 0.1) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, hidden_dim)
        self.score = nn.Linear(hidden_dim, glimpses)
        self.merge = nn.Linear(dim * glimpses, out_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, padding: Tensor, size: Size | None = None) -> Tensor:
        """Tokens [B, N, dim] to [B, out_dim].

        Args:
            x: Tokens.
            padding: Which are padding, bool [B, N].
            size: Height and width of the grid that they are the cells of, for what is noted.
        """
        given = self.score(self.dropout(F.relu(self.hidden(x)))).transpose(1, 2)
        maps = attention_maps(given, padding[:, None])
        note(self, "attention", maps if size is None else maps.unflatten(2, size), "token", ())
        return self.merge((maps @ x).flatten(1))


class PathController(nn.Module):
    """How much of each span an image gets: `W2 ReLU(W1 pool(x)) + b`, softly or by a draw.

    With l the result, `soft` mixes by softmax(l), in training and evaluation. `hard` draws in training, with Gumbel
    noise g: softmax((log softmax(l) + g) / temperature), which stays a mixture.

    Args:
        dim: Features of tokens.
        num_spans: Spans.
        routing: `soft` or `hard`.
        pooling: `avg`, the mean over the tokens; `attention`, an `AttentionPool`; `fc`, a sum weighted by a linear map.
        temperature: Of `hard`; a buffer, so that it can change while training goes on. It is no part of the state dict.
        eval_routing: What `hard` does in evaluation: `mean`, softmax(l); `argmax`, the best span alone; `sample`, what
            it does in training, as published: no two evaluations are the same. `soft` knows no draw, and `sample` is
            the `mean`.
        binarize: Whether evaluation takes the largest share alone: of `mean` that is `argmax`, of `sample` a draw.
        pool_padding: Whether padding is pooled too, as published.
    """

    temperature: Tensor

    def __init__(
        self,
        dim: int,
        num_spans: int,
        routing: Literal["soft", "hard"] = "soft",
        pooling: Pooling = "avg",
        temperature: float = 10.0,
        eval_routing: EvalRouting = "mean",
        binarize: bool = False,
        pool_padding: bool = True,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("pooling", pooling, get_args(Pooling)),
            ("eval_routing", eval_routing, get_args(EvalRouting)),
        ):
            if value not in known:
                raise Mistake(f"{name} is one of {', '.join(known)}, not {value!r}")
        if temperature <= 0:
            raise Mistake(f"the temperature of hard routing is above 0, not {temperature}")
        self.routing = routing
        self.eval_routing = eval_routing
        self.binarize = binarize
        self.pool_padding = pool_padding
        self.pool: nn.Module | None = None
        self.norm: nn.Module | None = None
        if pooling == "attention":
            # Its dropout is the published one, whatever that of the network is.
            self.pool, self.norm = AttentionPool(dim, dim, dim), UnbiasedLayerNorm(dim)
        elif pooling == "fc":
            self.pool = nn.Linear(dim, 1)
        self.reduce = nn.Linear(dim, dim // 2, bias=False)
        self.score = nn.Linear(dim // 2, num_spans)
        self.register_buffer("temperature", torch.tensor(float(temperature)), persistent=False)

    @property
    def one_hot(self) -> bool:
        """Whether an image gets one span alone in evaluation."""
        return self.binarize or self.eval_routing == "argmax"

    def pooled(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Tokens [B, N, dim] and which are padding, bool [B, N] or None, to [B, dim]."""
        if self.pool_padding:
            padding = None
        if self.pool is None:
            return x.mean(1) if padding is None else _mean_of_given(x, padding)
        # Tokens that are exactly zero, of which a trained network has none, are left out as published.
        ignored = (x == 0).all(-1)
        if padding is not None:
            ignored = ignored | padding
        if self.norm is not None:
            return self.norm(self.pool(x, ignored))
        return (attention_maps(self.pool(x).transpose(1, 2), ignored[:, None]) @ x).squeeze(1)

    def logits(self, pooled: Tensor) -> Tensor:
        """[B, dim] to [B, spans]."""
        return self.score(F.relu(self.reduce(pooled)))

    def noise(self, logits: Tensor) -> Tensor:
        """Gumbel noise for each of the logits."""
        return gumbel_noise(torch.rand_like(logits))

    def route(self, logits: Tensor) -> Tensor:
        """Logits [B, spans] to the share of each span [B, spans]."""
        if self.routing == "hard" and (self.training or self.eval_routing == "sample"):
            shares = ((logits.log_softmax(1) + self.noise(logits)) / self.temperature).softmax(1)
        else:
            shares = logits.softmax(1)
        if self.one_hot and not self.training:
            return F.one_hot(shares.argmax(1), shares.shape[1]).to(shares.dtype)
        return shares

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Tokens [B, N, dim] and which are padding, bool [B, N] or None, to the share of each span [B, spans]."""
        return self.route(self.logits(self.pooled(x, padding)))


class LearnedShares(nn.Module):
    """Shares of spans that are the same for all images: `softmax(constants)`; of a single span nothing is learned.

    Args:
        num_spans: Spans.
    """

    one_hot = False

    def __init__(self, num_spans: int) -> None:
        super().__init__()
        self.constants = nn.Parameter(torch.zeros(num_spans)) if num_spans > 1 else None

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Tokens [B, N, dim] to the share of each span [B, spans]."""
        logits = x.new_zeros(1) if self.constants is None else self.constants
        return logits.softmax(0).expand(x.shape[0], -1)


def share_maker(dim: int, num_spans: int, routing: Routing, **options: Any) -> PathController | LearnedShares:
    """What says how much of each span an image gets: tokens and padding to shares [B, spans].

    Args:
        dim: Features of tokens.
        num_spans: Spans.
        routing: `soft` or `hard`, see `PathController`; `fixed`: `LearnedShares`.
        options: Of the `PathController`.

    Raises:
        Mistake: An option that is none of those.
    """
    if routing == "fixed":
        return LearnedShares(num_spans)
    if routing not in get_args(Routing):
        raise Mistake(f"routing is one of {', '.join(get_args(Routing))}, not {routing!r}")
    return PathController(dim, num_spans, routing, **options)


class SpanMixing(nn.Module):
    """Attention by the maps of several spans, mixed: `(sum_i a_i softmax(q k^T / sqrt(d) | span i)) v`.

    Where each image gets one span alone, that span is computed and no other; images of a batch that got the same one
    are computed together, and the host waits once to know how many there are of each.

    Args:
        num_spans: Spans.
        single: Whether an image gets one span alone in evaluation.
        dropout: Probability, of each span's map by itself.
    """

    def __init__(self, num_spans: int, single: bool, dropout: float) -> None:
        super().__init__()
        self.num_spans = num_spans
        self.single = single
        self.dropout = nn.Dropout(dropout)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, shares: Tensor, spans: Spans) -> Tensor:
        """Mixes values.

        Args:
            q, k, v: [B, heads, N, features of a head].
            shares: Of each span [B, spans].
            spans: Of the batch.

        Returns:
            [B, heads, N, features of a head].
        """
        note(self, "mixture", shares, "span", [span_name(order) for order in spans.orders])
        if self.single and self.num_spans > 1:
            self._record(v, shares, spans)
        if self.training or not self.single or not has_values(q) or torch.compiler.is_compiling():
            given = scores(q, k)
            maps = [
                share[:, None, None, None] * self.dropout(attention_maps(given, blocked))
                for share, blocked in zip(shares.unbind(1), spans.blocked, strict=True)
            ]
            return sum(maps[1:], maps[0]) @ v
        if self.num_spans == 1:
            return spans.attend(0, q, k, v, spans.padding)
        choice = shares.argmax(1)
        counts = occurrences(choice, self.num_spans).tolist()
        if max(counts) == len(q):
            return spans.attend(counts.index(len(q)), q, k, v, spans.padding)
        order = choice.argsort(stable=True)
        queries, keys, values = (each[order].split(counts) for each in (q, k, v))
        padding = [None] * self.num_spans if spans.padding is None else spans.padding[order].split(counts)
        parts = zip(queries, keys, values, padding, strict=True)
        mixed = [spans.attend(i, *part) for i, part in enumerate(parts) if counts[i]]
        return torch.cat(mixed)[order.argsort()]

    def _record(self, v: Tensor, shares: Tensor, spans: Spans) -> None:
        dim = v.shape[1] * v.shape[3]
        macs = [2 * dim * float(spans.products(i, v.shape[2])) for i in range(self.num_spans)]
        expected = sum(share * cost for share, cost in zip(shares.float().unbind(1), macs, strict=True))
        assert isinstance(expected, Tensor)
        record(self, expected, 2 * dim * float(v.shape[2] ** 2), min(macs))


class RoutedAttention(MultiHeadAttention):
    """Self-attention in which every image looks as far as it should: `merge` of what `SpanMixing` makes.

    All spans share queries, keys and values.

    Args:
        dim: Features of tokens.
        num_heads: Heads.
        num_spans: Spans.
        routing: `soft` or `hard`, see `PathController`; `fixed`, see `LearnedShares`, which with a single span is plain
            attention.
        dropout: Probability, of each span's map by itself.
        options: Of the `PathController`.

    Raises:
        Mistake: An option that is none of those.
    """

    def __init__(
        self, dim: int, num_heads: int, num_spans: int, routing: Routing = "soft", dropout: float = 0.1, **options: Any
    ) -> None:
        super().__init__(dim, num_heads, dropout)
        self.controller = share_maker(dim, num_spans, routing, **options)
        self.mixing = SpanMixing(num_spans, num_spans == 1 or self.controller.one_hot, dropout)

    def forward(self, x: Tensor, spans: Spans) -> Tensor:  # type: ignore[override]
        """Tokens [B, N, dim], row by row of the grid, to [B, N, dim].

        Args:
            x: Tokens.
            spans: Of the batch, from `SpanMasks`.
        """
        return self.merged(self.mixing(*self.heads(x, x), self.controller(x, spans.padding), spans))


def _mean_of_given(x: Tensor, padding: Tensor) -> Tensor:
    """Mean of the tokens [B, N, dim] that are not padding, and of all where all are."""
    padding = padding & ~padding.all(1, keepdim=True)
    given = (~padding).to(x.dtype)[..., None]
    return (x * given).sum(1) / given.sum(1)
