"""Multi-scale deformable attention: a query reads a few points of several feature maps, each bilinearly.

The output of a head is a sum of rows of the value: 4 corners of each of levels x points samples, weighted with the
attention times the bilinear weights. PyTorch has a kernel for exactly that, `embedding_bag`, which never stores the
rows that it adds. The gradient of the rows is the same sum with rows and queries swapped; it needs no atomic addition,
whose order would change from run to run.

Reference: "Deformable DETR", arXiv 2010.04159, equations 2 and 3.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.mistakes import Mistake


class Levels(NamedTuple):
    """Sizes of the feature maps whose tokens stand one after the other, row by row.

    Args:
        sizes: (height, width) of each map, in cells.
        extent: (width, height) of each map [L, 2], float32.
        starts: Index of the first token of each map [L], float32.
    """

    sizes: list[tuple[int, int]]
    extent: Tensor
    starts: Tensor

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]], device: torch.device) -> "Levels":
        """The levels of maps of these (height, width), with tensors on a device."""
        table, start = [], 0
        for height, width in sizes:
            table.append((width, height, start))
            start += height * width
        if torch.compiler.is_exporting():
            # Sizes may be those of any image.
            numbers = torch.stack(
                [torch.stack([torch.full((), torch.sym_float(n), device=device) for n in row]) for row in table]
            )
            return cls(list(sizes), numbers[:, :2], numbers[:, 2])
        # One transfer for a whole forward pass.
        numbers = torch.tensor(table, dtype=torch.float32, device=device)
        return cls(list(sizes), numbers[:, :2], numbers[:, 2])


class SamplingPoints(NamedTuple):
    """Where queries look, and how much each look counts.

    Args:
        locations: (x, y) as fractions of the padded maps [..., heads, levels, points, 2]; outside of [0, 1] there is
            nothing to read.
        weights: Attention [..., heads, levels, points], which sums to one over levels and points.
    """

    locations: Tensor
    weights: Tensor


class DeformableAttention(nn.Module):
    """Attention of each query to `num_points` points on each of `num_levels` maps.

    Offsets count in cells of the map when the reference is a point; when it is a box, `num_points` of them make half of
    its side. Locations are float32 whatever the autocast type, values and sums have the type of the projections.

    Args:
        hidden_dim: Width of queries and tokens.
        num_heads: Heads; a divisor of `hidden_dim`.
        num_levels: Feature maps.
        num_points: Points of each head on each map.

    Raises:
        Mistake: Heads that do not divide the width.
    """

    def __init__(self, hidden_dim: int, num_heads: int = 8, num_levels: int = 4, num_points: int = 4) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise Mistake(f"num_heads must divide hidden_dim, not {num_heads=} with {hidden_dim=}")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(hidden_dim, 2 * samples)
        self.attention_weights = nn.Linear(hidden_dim, samples)
        self.value_proj = nn.Linear(hidden_dim, hidden_dim)
        self.output_proj = nn.Linear(hidden_dim, hidden_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform attention to points on rays: head m looks in direction 2 pi m / heads, point p in p + 1 cells."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        rays = torch.stack([angles.cos(), angles.sin()], -1)
        rays = rays / rays.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = torch.einsum("mc,p->mpc", rays, steps)[:, None].expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())

    def forward(
        self, query: Tensor, references: Tensor, memory: Tensor, levels: Levels, padding: Tensor | None = None
    ) -> Tensor:
        """Reads the memory around a reference of each query.

        Args:
            query: [N, Q, hidden_dim].
            references: Points (x, y) or boxes (cx, cy, w, h) for each level [N, Q, L, 2 or 4], as fractions of the
                padded maps.
            memory: Tokens of all levels [N, S, hidden_dim].
            levels: Their sizes.
            padding: True where a token is padding [N, S]; it is read as zero.

        Returns:
            [N, Q, hidden_dim].
        """
        value = self.value_proj(memory)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        x, y, weights = self._cells(query, references, levels)
        return self.output_proj(weighted_samples(value.unflatten(-1, (self.num_heads, -1)), levels, x, y, weights))

    def sampling_points(self, query: Tensor, references: Tensor, levels: Levels) -> SamplingPoints:
        """Where `forward` reads for these arguments; both results begin with [N, Q]."""
        x, y, weights = self._cells(query, references, levels)
        grid = (-1, (self.num_levels, self.num_points))
        cells = torch.stack([x.unflatten(*grid), y.unflatten(*grid)], -1)
        return SamplingPoints((cells + 0.5) / levels.extent[:, None], weights.unflatten(*grid))

    def _cells(self, query: Tensor, references: Tensor, levels: Levels) -> tuple[Tensor, Tensor, Tensor]:
        """Column, row and attention of every sample [N, Q, heads, levels * points], float32; cell i is at i."""
        offsets = self.sampling_offsets(query).float().unflatten(-1, (self.num_heads, -1, 2))
        weights = self.attention_weights(query).float().unflatten(-1, (self.num_heads, -1)).softmax(-1)
        references = references.float()
        centre = references[..., :2] * levels.extent - 0.5
        x, y = self._per_sample(centre)
        if references.shape[-1] == 2:
            return offsets[..., 0] + x, offsets[..., 1] + y, weights
        width, height = self._per_sample(references[..., 2:] * levels.extent * (0.5 / self.num_points))
        return torch.addcmul(x, offsets[..., 0], width), torch.addcmul(y, offsets[..., 1], height), weights

    def _per_sample(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        # Repeated for the points here, while there is no axis of heads: broadcasting over few inner numbers is slow.
        first, second = pairs[:, :, None].repeat_interleave(self.num_points, 3).unbind(-1)
        return first, second


def weighted_samples(value: Tensor, levels: Levels, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Sum of bilinear samples of the maps, zero outside of them (equation 3).

    Args:
        value: Tokens of all levels [N, S, M, D] for M heads.
        levels: Their sizes.
        x: Column of each sample [N, Q, M, L * P], level by level, in cells of its map; the centre of cell i is at i.
        y: Row of each sample.
        weights: Its weight.

    Returns:
        [N, Q, M * D], in the type of `value`; differentiable once with respect to all four tensors.
    """
    points = x.shape[-1] // len(levels.sizes)
    if torch.compiler.is_exporting():
        return _sampled(value, levels, x, y, weights, points)
    width, height = levels.extent.repeat_interleave(points, 0).unbind(-1)
    starts = levels.starts.repeat_interleave(points)
    return _WeightedSamples.apply(value, x, y, weights, width, height, starts)


def _sampled(value: Tensor, levels: Levels, x: Tensor, y: Tensor, weights: Tensor, points: int) -> Tensor:
    """The same in an operator that other programs have, sampling of a grid; it stores every sample."""
    batch, _, heads, _ = value.shape
    tokens = value.split([height * width for height, width in levels.sizes], 1)
    parts = zip(tokens, levels.sizes, *(each.split(points, -1) for each in (x, y, weights)), strict=True)
    sums = []
    for rows, (height, width), columns, lines, shares in parts:
        maps = rows.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, (height, width))
        places = torch.stack([(2 * columns + 1) / width - 1, (2 * lines + 1) / height - 1], -1)
        grid = places.transpose(1, 2).flatten(0, 1).to(maps.dtype)
        samples = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        sums.append((samples * shares.transpose(1, 2).flatten(0, 1)[:, None].to(maps.dtype)).sum(-1))
    return sum(sums[1:], sums[0]).unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)


class _Axis(NamedTuple):
    """The two cells on either side of each sample along one axis, and their share; zero where there is no cell."""

    low: Tensor
    high: Tensor
    low_share: Tensor
    high_share: Tensor
    low_inside: Tensor
    high_inside: Tensor


def _axis(position: Tensor, size: Tensor) -> _Axis:
    floor = position.floor()
    fraction = position - floor
    next = floor + 1
    # Of a NaN, fmax and fmin take the other number: an index stays one, and the weight carries the NaN on.
    zero, last = size.new_zeros(()), size - 1
    low, high = floor.fmax(zero).fmin(last), next.fmax(zero).fmin(last)
    low_inside, high_inside = low == floor, high == next
    low_share, high_share = torch.where(low_inside, 1 - fraction, zero), torch.where(high_inside, fraction, zero)
    return _Axis(low, high, low_share, high_share, low_inside, high_inside)


def _rows(value: Tensor, x: _Axis, y: _Axis, width: Tensor, starts: Tensor) -> Tensor:
    """Row of `value.flatten(0, 2)` of the four corners of each sample [N * Q * M, 4 * L * P], int32."""
    batch, tokens, heads, _ = value.shape
    first = torch.arange(batch, dtype=torch.int32, device=value.device)[:, None, None, None] * (tokens * heads)
    first = first + torch.arange(heads, dtype=torch.int32, device=value.device)[:, None]
    starts, width = starts * heads, width * heads
    above, below = (torch.addcmul(starts, row, width).int() + first for row in (y.low, y.high))
    left, right = (column.mul(heads).int() for column in (x.low, x.high))
    return torch.stack([above + left, above + right, below + left, below + right], 3).flatten(3).flatten(0, 2)


def _shares(x: _Axis, y: _Axis, weights: Tensor) -> Tensor:
    """Weight of the four corners of each sample [N * Q * M, 4 * L * P]."""
    above, below = y.low_share * weights, y.high_share * weights
    corners = [above * x.low_share, above * x.high_share, below * x.low_share, below * x.high_share]
    return torch.stack(corners, 3).flatten(3).flatten(0, 2)


class _WeightedSamples(torch.autograd.Function):
    """`weighted_samples`; keeps nothing for the backward pass but its arguments."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, x: Tensor, y: Tensor, weights: Tensor, width: Tensor, height: Tensor, starts: Tensor
    ) -> Tensor:
        ctx.save_for_backward(value, x, y, weights, width, height, starts)
        columns, lines = _axis(x, width), _axis(y, height)
        rows = _rows(value, columns, lines, width, starts)
        shares = _shares(columns, lines, weights).to(value.dtype)
        sums = F.embedding_bag(rows, value.flatten(0, 2), mode="sum", per_sample_weights=shares)
        return sums.view(*x.shape[:3], -1).flatten(2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        value, x, y, weights, width, height, starts = ctx.saved_tensors
        table = value.flatten(0, 2)
        gradient = gradients[0].unflatten(-1, value.shape[2:]).flatten(0, 2).contiguous()
        columns, lines = _axis(x, width), _axis(y, height)
        rows = _rows(value, columns, lines, width, starts)
        for_value = None
        if ctx.needs_input_grad[0]:
            for_value = _scatter(gradient, rows, _shares(columns, lines, weights), len(table)).view_as(value)
        return for_value, *_for_samples(gradient, table, rows, columns, lines, weights), None, None, None


def _scatter(gradient: Tensor, rows: Tensor, shares: Tensor, count: int) -> Tensor:
    """Sum over all corners that read it, for each of `count` rows: their share times the gradient of their query."""
    ordered, order = rows.flatten().sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(count, dtype=rows.dtype, device=rows.device)).to(rows.dtype)
    queries = (order // rows.shape[1]).to(rows.dtype)
    shares = shares.flatten()[order].to(gradient.dtype)
    return F.embedding_bag(queries, gradient, starts, mode="sum", per_sample_weights=shares)


def _for_samples(
    gradient: Tensor, table: Tensor, rows: Tensor, x: _Axis, y: _Axis, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to x, y and weights."""
    bags = torch.arange(len(rows), dtype=rows.dtype, device=rows.device)
    # The product of the gradient with every row that was read. Autograd calls this operator for `embedding_bag`; asked
    # for by itself, it comes without a second forward pass and without the dense gradient of the rows.
    products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        gradient, table, rows.flatten(), bags * rows.shape[1], bags.repeat_interleave(rows.shape[1]), 0
    )
    corners = products.to(weights.dtype).view(*weights.shape[:3], 4, -1)
    above_left, above_right, below_left, below_right = corners.unbind(3)
    above = above_left * x.low_share + above_right * x.high_share
    below = below_left * x.low_share + below_right * x.high_share
    for_weights = above * y.low_share + below * y.high_share
    for_y = weights * (torch.where(y.high_inside, below, 0.0) - torch.where(y.low_inside, above, 0.0))
    left = above_left * y.low_share + below_left * y.high_share
    right = above_right * y.low_share + below_right * y.high_share
    for_x = weights * (torch.where(x.high_inside, right, 0.0) - torch.where(x.low_inside, left, 0.0))
    return for_x, for_y, for_weights
