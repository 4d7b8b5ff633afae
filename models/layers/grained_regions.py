"""Regions of a map of tokens, the queries they can have, and those that were chosen, without a loop over images."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Cells(NamedTuple):
    """The cells of one split: `side` x `side` tokens each, in `rows` x `columns`, from `start` on among all queries."""

    side: int
    rows: int
    columns: int
    start: int


class Ragged:
    """Queries of all images in a row, of some images more than of others.

    Args:
        image: Of each query [T], in order.
        place: Of each query among those of its image [T].
        length: Most queries of an image.
        batch_size: Images.
    """

    def __init__(self, image: Tensor, place: Tensor, length: int, batch_size: int) -> None:
        self.image, self.place, self.length, self.batch_size = image, place, length, batch_size

    @property
    def _even(self) -> bool:
        return self.length * self.batch_size == len(self.image)

    def pad(self, rows: Tensor) -> Tensor:
        """[T, C] to [B, length, C], with zeros behind the queries of an image that has fewer."""
        if self._even:
            return rows.unflatten(0, (self.batch_size, self.length))
        slots = self.image * self.length + self.place
        empty = rows.new_zeros(self.batch_size * self.length, rows.shape[1])
        return empty.index_copy(0, slots, rows).unflatten(0, (self.batch_size, self.length))

    def unpad(self, padded: Tensor) -> Tensor:
        """[B, length, C] to [T, C]."""
        rows = padded.flatten(0, 1)
        return rows if self._even else rows.index_select(0, self.image * self.length + self.place)


class Regions:
    """How the tokens of a map are cut into regions, and regions into cells; made once for all blocks on a map.

    Regions at the lower and the right border may lack rows or columns. Their cells are those that have a token, and a
    query is the mean of the tokens that are there: no token is made up.

    Args:
        size: Height and width of the map in tokens.
        splits: Cells along a side of a region, finest first; the first is the side of a region in tokens.
        extra: Tokens in front of the map's, which always are queries.
        device: Where the tokens are.
    """

    def __init__(self, size: tuple[int, int], splits: Sequence[int], extra: int, device: torch.device) -> None:
        self.size, self.splits, self.extra, self.device = size, tuple(splits), extra, device
        self.side = self.splits[0]
        self.grid = (math.ceil(size[0] / self.side), math.ceil(size[1] / self.side))
        self.tokens = extra + math.prod(size)
        self.cells: list[Cells] = []
        start = extra
        for split in self.splits:
            side = self.side // split
            cells = Cells(side, math.ceil(size[0] / side), math.ceil(size[1] / side), start)
            self.cells.append(cells)
            start += cells.rows * cells.columns
        self.query_range = (self.tokens, extra + self.cells[-1].rows * self.cells[-1].columns)

    def maps(self, x: Tensor) -> Tensor:
        """Tokens [B, extra + H * W, C] to maps [B, C, H, W]."""
        return x[:, self.extra :].transpose(1, 2).unflatten(2, self.size)

    def pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means of tokens.

        Args:
            x: Tokens [B, extra + H * W, C].

        Returns:
            All queries that there can be [B, M, C]: the extra tokens, the cells of the finest split row by row, those
            of the next ...; and the regions' own means [B, h, w, C].
        """
        maps = x[:, self.extra :].unflatten(1, self.size)
        means, side, queries = maps, 1, [x]
        for cells in self.cells[1:]:
            means, side = self._means(maps, means, side, cells.side), cells.side
            queries.append(means.flatten(1, 2))
        return torch.cat(queries, 1), self._means(maps, means, side, self.side)

    def _means(self, maps: Tensor, means: Tensor, side: int, wanted: int) -> Tensor:
        """Means of cells of `wanted` tokens a side, of the map or of the means of smaller cells."""
        if side == wanted:
            return means
        if wanted % side or any(length % wanted for length in self.size):
            # Cells that the border cuts are the means of the tokens that they have.
            return F.avg_pool2d(maps.permute(0, 3, 1, 2), wanted, ceil_mode=True).permute(0, 2, 3, 1)
        step = wanted // side
        # One axis after the other: a reduction of both at once is twenty times as slow on a CPU.
        return means.unflatten(1, (-1, step)).sum(2).unflatten(2, (-1, step)).sum(3) / step**2

    def mixed(self, change: Tensor, gate: Tensor) -> Tensor:
        """Changes of all queries [B, M, C], those of each split times its gate [B, h, w, S], to tokens [B, N, C]."""
        height, width = self.size
        total = change.new_zeros(())
        for i, cells in enumerate(self.cells):
            own = change[:, cells.start : cells.start + cells.rows * cells.columns]
            own = own.unflatten(1, (cells.rows, cells.columns))
            gates = _spread(gate[..., i, None], self.splits[i])[:, : cells.rows, : cells.columns]
            total = total + _spread(own * gates.to(own.dtype), cells.side)[:, :height, :width]
        return torch.cat([change[:, : self.extra], total.flatten(1, 2)], 1)

    def queries(self, gate: Tensor) -> Tensor:
        """Expected queries of each image [B], extra ones included, of gates [B, h, w, S]."""
        return (gate * self._counts.to(gate.dtype)).sum((1, 2, 3)) + self.extra

    def choose(self, choice: Tensor) -> "Chosen":
        """The queries of a granularity [B, h, w] of each region."""
        return Chosen(self, choice)

    @cached_property
    def _counts(self) -> Tensor:
        """Queries of each region by split [h, w, S]."""
        per_axis = []
        for length, regions in zip(self.size, self.grid, strict=True):
            left = length - self.side * torch.arange(regions, device=self.device)
            per_axis.append(
                [((left - 1) // c.side + 1).clamp(max=s) for c, s in zip(self.cells, self.splits, strict=True)]
            )
        return torch.stack([rows[:, None] * columns for rows, columns in zip(*per_axis, strict=True)], -1)

    @cached_property
    def order(self) -> tuple[Tensor, Tensor, Tensor]:
        """All queries in the order of a chosen image, extra ones first, then region by region, finest first.

        Each is told by its place among all queries, its region and its split, all [M]; an extra one's split is -1.
        """
        order = self.keys.argsort(stable=True)
        keys, splits = self.keys[order], len(self.splits)
        return order, keys.clamp(min=0) // splits, torch.where(keys < 0, keys, keys % splits)

    @cached_property
    def keys(self) -> Tensor:
        """Of each query [M], its region times S plus its split; an extra token's is negative."""
        keys = [torch.full((self.extra,), -1, device=self.device)]
        for i, cells in enumerate(self.cells):
            rows, columns = (torch.arange(n, device=self.device) * cells.side // self.side for n in cells[1:3])
            keys.append(((rows[:, None] * self.grid[1] + columns) * len(self.splits) + i).flatten())
        return torch.cat(keys)

    @cached_property
    def region(self) -> Tensor:
        """Of each of the map's tokens [H * W], its region."""
        return self.keys[self.extra : self.tokens] // len(self.splits)

    @cached_property
    def cover(self) -> Tensor:
        """The query that stands for each of the map's tokens, of each split, one split after the other [S * H * W]."""
        rows, columns = (torch.arange(n, device=self.device) for n in self.size)
        covers = [c.start + rows[:, None] // c.side * c.columns + columns // c.side for c in self.cells]
        return torch.stack(covers).flatten()

    @cached_property
    def places(self) -> Tensor:
        """Numbers of the map's tokens [H * W]."""
        return torch.arange(self.size[0] * self.size[1], device=self.device)


class Chosen:
    """The queries that were chosen, in a row: image by image, extra tokens first, then region by region.

    Args:
        regions: Of the maps.
        choice: Granularity of each region, int64 [B, h, w].
    """

    def __init__(self, regions: Regions, choice: Tensor) -> None:
        self.regions, self.choice = regions, choice.flatten(1)
        order, region, split = regions.order
        held = self.choice[:, region] == split
        held[:, : regions.extra] = True
        position = held.cumsum(1)
        self.lengths = position[:, -1]
        # The one wait for the device: how many queries there are, and in the image that has most.
        total, length = torch.stack([self.lengths.sum(), self.lengths.max()]).tolist()
        image, place = held.nonzero_static(size=total).unbind(1)
        self.query = order[place]
        self.ragged = Ragged(image, position[image, place] - 1, length, len(choice))

    def rows(self, pooled: Tensor) -> Tensor:
        """All queries [B, M, C] to the chosen ones [T, C]."""
        return pooled.flatten(0, 1).index_select(0, self.ragged.image * pooled.shape[1] + self.query)

    def gates(self, gate: Tensor) -> Tensor:
        """Gate [B, h, w, S] of each query's own choice [T]; one for extra tokens."""
        keys = self.regions.keys[self.query]
        values = gate.flatten(1)[self.ragged.image, keys.clamp(min=0)]
        return torch.where(keys < 0, torch.ones_like(values), values)

    def unpool(self, change: Tensor) -> Tensor:
        """What queries [T, C] are changed by, to all tokens [B, extra + H * W, C]."""
        regions, batch = self.regions, len(self.choice)
        row = self.query.new_zeros(batch, len(regions.keys))
        row[self.ragged.image, self.query] = torch.arange(len(change), device=change.device)
        covered = regions.cover[self.choice[:, regions.region] * len(regions.places) + regions.places]
        rows = torch.cat([row[:, : regions.extra], row.gather(1, covered)], 1)
        return change.index_select(0, rows.flatten()).unflatten(0, (batch, -1))


def _spread(x: Tensor, factor: int) -> Tensor:
    """Maps [B, h, w, C] with every cell repeated along both sides."""
    if factor == 1:
        return x
    batch, height, width, chans = x.shape
    wide = x[:, :, None, :, None].expand(batch, height, factor, width, factor, chans)
    return wide.reshape(batch, height * factor, width * factor, chans)
