"""Dynamic Grained Encoder: a transformer block whose queries are as fine as each region of the image needs.

The map of tokens is cut into regions, and a router picks for each how many queries it gets: one, four or sixteen for a
region of 4x4 tokens. A query is the mean of the tokens that it stands for; keys and values stay dense. What the block
changed a query by is added to every token that the query stands for, so that the map keeps its fine detail.

Reference: "Dynamic Grained Encoder for Vision Transformers", arXiv 2301.03831; StevenGrove/vtpack at 38d5af0c.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from models.compute import has_values, record
from models.decisions import note
from models.layers.grained_regions import Ragged, Regions
from models.layers.gumbel import gumbel_noise, straight_through
from models.mistakes import Mistake

Formula = Literal["official", "exact"]
DropPathUnit = Literal["query", "sample"]
BudgetGate = Literal["sampled", "noise_free"]

_FINEST_AT_FIRST = 0.95


@dataclass(frozen=True)
class Grain:
    """How a host's blocks choose their queries; one for all of them.

    Args:
        splits: Cells along a side of a region that the router chooses from, finest first; the first is the side of a
            region in tokens, and the others divide it.
        sparse_train: Whether training computes the chosen queries only. The router then learns through the choice
            that was made; otherwise all queries are computed, and it learns from every alternative.
        formula: What multiply-adds are recorded: by the `official` formula, with which the published budgets were
            kept, or the `exact` ones.
        budget_gate: What a budget sees in training: the `sampled` choice, as published, or the `noise_free` one that
            an evaluation would make.
        drop_path_unit: What stochastic depth drops: single queries, as published, or whole samples.
        shuffled: Whether an evaluation deals the granularities that an image's regions got to these regions at random,
            always in the same way: what a network is worth that knows how much to look at, and not where.

    Raises:
        Mistake: An unknown option, or splits that are not whole numbers in falling order which divide the first.
    """

    splits: tuple[int, ...] = (4, 2, 1)
    sparse_train: bool = False
    formula: Formula = "official"
    budget_gate: BudgetGate = "sampled"
    drop_path_unit: DropPathUnit = "query"
    shuffled: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("formula", self.formula, Formula),
            ("budget_gate", self.budget_gate, BudgetGate),
            ("drop_path_unit", self.drop_path_unit, DropPathUnit),
        ):
            if value not in get_args(known):
                raise Mistake(f"{name}={value!r} is unknown; choose one of {', '.join(get_args(known))}")
        splits = self.splits
        if not splits or min(splits) < 1 or list(splits) != sorted(set(splits), reverse=True):
            raise Mistake(f"splits are different numbers of cells, finest first, not {list(splits)}")
        if any(splits[0] % split for split in splits):
            raise Mistake(f"every one of the splits divides the first, the side of a region, unlike {list(splits)}")


class Cost(NamedTuple):
    """Multiply-adds of a part of a block: `fixed` for its tokens, and `per_query` for each query."""

    fixed: float
    per_query: float


class Router(nn.Module):
    """Scores of the granularities of each region: its mean token through a linear layer.

    At first the finest has probability 0.95.

    Args:
        dim: Features of a token.
        splits: See `Grain`. A buffer, as published weights hold them.
    """

    splits: Tensor

    def __init__(self, dim: int, splits: Sequence[int]) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, len(splits))
        self.register_buffer("splits", torch.tensor(list(splits)))
        self._expected = list(splits)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh weights; to be called after the host's own initialisation."""
        nn.init.trunc_normal_(self.gate.weight, std=0.01)
        nn.init.zeros_(self.gate.bias)
        if (others := len(self._expected) - 1) > 0:
            # softmax([b, -b, ..., -b]) has 0.95 in front.
            odds = math.log(math.sqrt(_FINEST_AT_FIRST * others / (1 - _FINEST_AT_FIRST)))
            with torch.no_grad():
                self.gate.bias.fill_(-odds)
                self.gate.bias[0] = odds

    def forward(self, means: Tensor) -> Tensor:
        """Means of regions [B, h, w, C] to scores [B, h, w, S], float32 or finer."""
        scores: Tensor = self.gate(means)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        given = state_dict.get(f"{prefix}splits")
        if given is not None and given.tolist() != self._expected:
            raise Mistake(f"{prefix}splits: the weights chose from {given.tolist()}, the network from {self._expected}")
        super()._load_from_state_dict(state_dict, prefix, *args)


class GrainedBlock(nn.Module):
    """A pre-norm transformer block with dynamic granularity.

    With q the pooled tokens x: q1 = q + Attn(LN1(q), LN1(x)), q2 = q1 + MLP(LN2(q1)), and y = x + Unpool(q2 - q).

    Evaluation computes the chosen queries only, all images of a batch together; a training without `sparse_train`, and
    a compiled network, whose shapes must not depend on the choice, compute all of them and keep the chosen ones. Both
    give the same output. The granularity of each region is noted in `models.decisions`.

    Args:
        dim: Features of a token.
        attention: Called with queries, tokens, `Regions` and `Ragged` (see `models.layers.query_attention`); its
            `cost` says what it takes.
        mlp_ratio: Hidden features of the MLP, as a multiple of `dim`.
        drop_path: Probability of stochastic depth.
        grain: How queries are chosen.
    """

    def __init__(self, dim: int, attention: nn.Module, mlp_ratio: float, drop_path: float, grain: Grain) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.router = Router(dim, grain.splits)
        self.drop_path = drop_path
        self.grain = grain

    def forward(self, x: Tensor, regions: Regions) -> Tensor:
        """Tokens [B, extra + H * W, C], extra ones first, to tokens of the same shape."""
        pooled, means = regions.pool(x)
        scores = self.router(means)
        fixed, per_query = self._cost(regions)
        dense, least = (fixed + per_query * number for number in regions.query_range)
        if not has_values(x):
            record(self, x.new_full((len(x),), dense), dense, least)
            normed = self.norm1(x)
            return x + self._change(x, normed, normed, regions, None)
        if not self.training:
            return self._evaluated(x, pooled, scores, regions)
        gate = self._straight_through(scores, gumbel_noise(torch.rand_like(scores)))
        choice = gate.argmax(3)
        self._note(choice)
        budgeted = self._straight_through(scores, 0.0) if self.grain.budget_gate == "noise_free" else gate
        record(self, fixed + per_query * regions.queries(budgeted), dense, least)
        if not self.grain.sparse_train or torch.compiler.is_compiling():
            return x + self._all(pooled, regions, gate)
        chosen = regions.choose(choice)
        queries = chosen.rows(pooled)
        change = self._change(queries, self.norm1(queries), self.norm1(x), regions, chosen.ragged)
        return x + chosen.unpool(change * chosen.gates(gate)[:, None].to(change.dtype))

    def _evaluated(self, x: Tensor, pooled: Tensor, scores: Tensor, regions: Regions) -> Tensor:
        choice = scores.argmax(3)
        if self.grain.shuffled:
            choice = _dealt(choice)
        self._note(choice)
        fixed, per_query = self._cost(regions)
        dense, least = (fixed + per_query * number for number in regions.query_range)
        if torch.compiler.is_compiling():
            gate = F.one_hot(choice, scores.shape[3]).to(scores.dtype)
            record(self, fixed + per_query * regions.queries(gate), dense, least)
            return x + self._all(pooled, regions, gate)
        chosen = regions.choose(choice)
        record(self, fixed + per_query * chosen.lengths.to(scores.dtype), dense, least)
        queries = chosen.rows(pooled)
        change = self._change(queries, self.norm1(queries), self.norm1(x), regions, chosen.ragged)
        return x + chosen.unpool(change)

    def _note(self, choice: Tensor) -> None:
        note(self, "map", choice, "granularity", [f"{split} x {split} queries" for split in self.grain.splits])

    def _all(self, pooled: Tensor, regions: Regions, gate: Tensor) -> Tensor:
        """Changes of all queries, of which the gate keeps the chosen ones, as one of each token."""
        normed = self.norm1(pooled)
        # Tokens are the queries of the finest split.
        return regions.mixed(self._change(pooled, normed, normed[:, : regions.tokens], regions, None), gate)

    def _change(
        self, queries: Tensor, normed: Tensor, tokens: Tensor, regions: Regions, ragged: Ragged | None
    ) -> Tensor:
        """What the block adds to queries, [B, Q, C] or, with `ragged`, those of all images in a row [T, C].

        Args:
            queries: As they are, for the residual.
            normed: The same after the first norm.
            tokens: [B, N, C], after the first norm.
            regions, ragged: Where they are.
        """
        first = self._drop(self.attn(normed, tokens, regions, ragged), ragged)
        return first + self._drop(self.mlp(self.norm2(queries + first)), ragged)

    @staticmethod
    def _straight_through(scores: Tensor, noise: Tensor | float) -> Tensor:
        rows = noise.flatten(0, 2) if isinstance(noise, Tensor) else noise
        return straight_through(scores.flatten(0, 2), rows, 1.0)[0].view_as(scores)

    def _drop(self, x: Tensor, ragged: Ragged | None) -> Tensor:
        if not self.training or not self.drop_path:
            return x
        keep = 1 - self.drop_path
        if self.grain.drop_path_unit == "query":
            kept = x.new_empty(*x.shape[:-1], 1).bernoulli_(keep)
        elif ragged is None:
            kept = x.new_empty(len(x), 1, 1).bernoulli_(keep)
        else:
            kept = x.new_empty(ragged.batch_size, 1).bernoulli_(keep)[ragged.image]
        return x * (kept / keep)

    def _cost(self, regions: Regions) -> Cost:
        official = self.grain.formula == "official"
        first: Any = self.mlp.fc1
        dim, hidden = first.in_features, first.out_features
        fixed, per_query = self.attn.cost(regions, official)  # type: ignore[operator]
        splits = len(self.grain.splits)
        if official:
            norms, router = 2 * regions.tokens * dim, regions.tokens / regions.side**2 * dim * (1 + splits)
            return Cost(fixed + norms + router, per_query + 2 * dim * hidden + hidden)
        return Cost(fixed + math.prod(regions.grid) * dim * splits, per_query + 2 * dim * hidden)


def _dealt(choice: Tensor) -> Tensor:
    """The choices of each image [B, h, w], dealt to its regions at random; always in the same way."""
    generator = torch.Generator(choice.device).manual_seed(0)
    flat = choice.flatten(1)
    order = torch.rand(flat.shape, device=choice.device, generator=generator).argsort(1)
    return flat.gather(1, order).view_as(choice)


def record_constant(part: nn.Module, x: Tensor, macs: float) -> None:
    """Records the same multiply-adds for every sample of a part that decides nothing."""
    record(part, x.new_full((x.shape[0],), float(macs), dtype=torch.float32), macs, macs)
