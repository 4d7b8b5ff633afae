"""Where a network works: the pixels of a map that are computed, and maps stored as tiles that hold no others.

A `Region` says which pixels of the maps of one resolution are kept. In training, maps stay whole and masks are
multiplied. In inference, the maps of a region are [n, C, t, t] tiles: those squares of the map that hold a kept pixel
or one that a kept pixel reads. Norms, activations and sums need not know, as they work pixel by pixel; what looks at
neighbours gathers them by indices, which are found once and serve every layer of a stage.

Pixels that are neither kept nor read by a kept one have no defined value in tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Pixels a side of a tile: on a CPU, convolutions of tiles of 8 take about as long per pixel as those of whole maps, and
# of smaller ones up to three times as long. From this share of a map's pixels on, the whole map is taken.
TILE = 8
WHOLE_FROM = 0.85
# Steps in which the number of tiles grows, as a share of all: kernels are compiled for a shape when it is new.
_STEPS = 32
# Weights of the interpolation below this change no output by as much as rounding does.
_NEGLIGIBLE = 1e-8

Found = TypeVar("Found")


class Layout:
    """How maps of one resolution are stored: as whole images, or as tiles.

    Args:
        batch: Images.
        size: Height and width of the maps.
        tiles: int64 [n, 3], image, row and column of each tile, on the host; None for whole images.
        device: Where the maps are.
    """

    def __init__(self, batch: int, size: tuple[int, int], tiles: np.ndarray | None, device: torch.device) -> None:
        self.batch, self.size, self.whole = batch, size, tiles is None
        self.tiles = tiles
        pixels = torch.arange(batch * size[0] * size[1], device=device)
        if tiles is None:
            self.tile = size
            self.image = torch.arange(batch, device=device)
            self.top = self.left = torch.zeros_like(self.image)
            self.rows = pixels
        else:
            self.tile = (TILE, TILE)
            self.image, top, left = torch.from_numpy(tiles).to(device).unbind(1)
            self.top, self.left = top * TILE, left * TILE
            y, x, inside = self.window(self, 1, 1, 0)
            rows = torch.arange(inside.numel(), device=device)
            # One more entry takes in what lies beyond the border of the map.
            self.rows = torch.full_like(F.pad(pixels, (0, 1)), -1)
            self.rows[torch.where(inside, self.pixel(y, x), len(pixels)).flatten()] = rows
            self.rows = self.rows[:-1]

    def window(self, source: Layout, stride: int, kernel: int, padding: int) -> tuple[Tensor, Tensor, Tensor]:
        """What a convolution reads to compute every tile: coordinates in the source map, and whether they are in it.

        Returns:
            int64 [n, u, 1] and [n, 1, v], bool [n, u, v].
        """

        def along(start: Tensor, length: int, limit: int) -> tuple[Tensor, Tensor]:
            steps = torch.arange((length - 1) * stride + kernel, device=start.device)
            place = start[:, None] * stride - padding + steps
            return place.clamp(0, limit - 1), (place >= 0) & (place < limit)

        y, y_inside = along(self.top, self.tile[0], source.size[0])
        x, x_inside = along(self.left, self.tile[1], source.size[1])
        return y[:, :, None], x[:, None, :], y_inside[:, :, None] & x_inside[:, None, :]

    def outside(self, source: Layout, stride: int, kernel: int, padding: int) -> int:
        """How many of the pixels that `window` returns are not in the map, known without looking at the device."""
        starts = np.zeros((len(self.image), 3), np.int64) if self.tiles is None else self.tiles * TILE

        def inside(start: np.ndarray, length: int, limit: int) -> np.ndarray:
            steps = np.arange((length - 1) * stride + kernel)
            place = start[:, None] * stride - padding + steps
            return ((place >= 0) & (place < limit)).sum(1)

        rows = inside(starts[:, 1], self.tile[0], source.size[0])
        columns = inside(starts[:, 2], self.tile[1], source.size[1])
        height, width = ((length - 1) * stride + kernel for length in self.tile)
        return int(len(starts) * height * width - (rows * columns).sum())

    def pixel(self, y: Tensor, x: Tensor) -> Tensor:
        """Numbers of pixels, counted through all images: [n, u, 1] and [n, 1, v] to [n, u, v]."""
        return (self.image[:, None, None] * self.size[0] + y) * self.size[1] + x

    def to_rows(self, x: Tensor) -> Tensor:
        """Maps [n, C, h, w] to one row a pixel, [n * h * w, C]; a view where channels are last in memory."""
        return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])

    def to_maps(self, rows: Tensor, height: int | None = None, width: int | None = None) -> Tensor:
        """The inverse of `to_rows`, a view; of other than the layout's height and width if they are given."""
        height, width = height or self.tile[0], width or self.tile[1]
        return rows.view(len(self.image), height, width, -1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Extent:
    """What the host has to know of a region to store it: fetched for all regions of a mask at once.

    Args:
        active: bool [B, h, w], kept pixels and those that kept ones read, on the device.
        falloff: Weights [7, 7] of the interpolation that fills skipped pixels in, each the largest that any layer
            gives it.
        held: bool [B, rows, columns], tiles with an active pixel, on the host.
        kept: Kept pixels.
        filled: Active pixels that are not kept.
        reads: Kept pixels that these read, counted once for each of them.
    """

    active: Tensor
    falloff: Tensor
    held: np.ndarray
    kept: int
    filled: int
    reads: int


class Region:
    """The kept pixels of the maps of one resolution.

    Args:
        mask: bool [B, h, w], true where pixels are computed.
        finer: The region at twice the resolution; None for the finest.
        extent: What is computed beside them, and how much that is; None for maps that stay whole and masked.
    """

    def __init__(self, mask: Tensor, finer: Region | None = None, extent: Extent | None = None) -> None:
        self.mask, self.finer = mask, finer
        self.share = mask.float().mean((1, 2))
        self.layout: Layout | None = None
        self._found: dict[object, object] = {}
        if extent is None:
            return
        batch, height, width = mask.shape
        self.layout = Layout(batch, (height, width), _tiles(extent.held, mask.numel()), mask.device)
        rows = self.layout.rows
        self.kept = mask.flatten().nonzero_static(size=extent.kept).squeeze(1)
        self.kept_rows = rows[self.kept]
        image, y, x = (extent.active & ~mask).nonzero_static(size=extent.filled).unbind(1)
        self.filled_rows = rows[(image * height + y) * width + x]
        reach = extent.falloff.shape[0] // 2
        offset = torch.arange(-reach, reach + 1, device=mask.device)
        near_y, near_x = y[:, None, None] + offset[:, None], x[:, None, None] + offset
        inside = (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width)
        near = (image[:, None, None] * height + near_y.clamp(0, height - 1)) * width + near_x.clamp(0, width - 1)
        reads = (inside & mask.flatten()[near] & (extent.falloff > _NEGLIGIBLE)).flatten(1)
        self.fill_starts = F.pad(reads.sum(1).cumsum(0), (1, 0))[:-1]
        place = reads.flatten().nonzero_static(size=extent.reads).squeeze(1)
        self.fill_taps = place % reads.shape[1]
        self.fill_reads = rows[near.flatten()[place]]

    def once(self, key: object, find: Callable[[], Found]) -> Found:
        """What `find` returned when it was asked for this key for the first time."""
        if key not in self._found:
            self._found[key] = find()
        return self._found[key]  # type: ignore[return-value]

    def windows(self, x: Tensor, source: Layout, stride: int, kernel: int, padding: int) -> Tensor:
        """What a convolution reads for each tile, zeros beyond the border of the map.

        Args:
            x: Maps in the layout `source`.
            source: Layout of the map that is read.
            stride: Stride of the convolution.
            kernel: Its kernel size.
            padding: Its padding.

        Returns:
            [n, C, (t - 1) * stride + kernel, ...], channels last in memory.
        """
        layout = self.layout
        assert layout is not None

        def find() -> tuple[Tensor, Tensor, int, int]:
            y, x, inside = layout.window(source, stride, kernel, padding)
            pixels = (layout.image[:, None, None] * source.size[0] + y) * source.size[1] + x
            # What no tile holds is read for pixels whose value does not matter.
            index = source.rows[pixels].clamp(min=0).flatten()
            number = layout.outside(source, stride, kernel, padding)
            outside = (~inside).flatten().nonzero_static(size=number).squeeze(1)
            return index, outside, inside.shape[1], inside.shape[2]

        index, outside, height, width = self.once((source, stride, kernel, padding), find)
        rows = source.to_rows(x).index_select(0, index)
        if len(outside):
            rows.index_fill_(0, outside, 0)
        return layout.to_maps(rows, height, width)

    def place(self, x: Tensor, source: Layout) -> Tensor:
        """The same maps, from the layout `source` to the region's."""
        assert self.layout is not None
        if source.whole and self.layout.whole:
            return x
        return self.windows(x, source, 1, 1, 0)

    def combine(self, x: Tensor, source: Layout, key: object, reads: Callable[[], tuple[Tensor, Tensor]]) -> Tensor:
        """A weighted sum of pixels of a map for every pixel of the tiles.

        Args:
            x: Maps in the layout `source`.
            source: Layout of the map that is read.
            key: Names the sum.
            reads: Finds the rows that each pixel reads, int64 [p, k], and their weights [p, k].

        Returns:
            Maps in the region's layout.
        """
        assert self.layout is not None
        index, weights = self.once((key, source), reads)
        rows = source.to_rows(x)
        summed = F.embedding_bag(index, rows, mode="sum", per_sample_weights=weights.to(rows.dtype))
        return self.layout.to_maps(summed)

    def merge(self, kept: Tensor, skipped: Tensor) -> Tensor:
        """Results at kept pixels, others elsewhere.

        Args:
            kept: [n, C, t, t] in tiles or [B, C, h, w].
            skipped: [B, C, h, w].

        Returns:
            [B, C, h, w].
        """
        if self.layout is None:
            return torch.where(self.mask[:, None], kept, skipped)
        rows = skipped.permute(0, 2, 3, 1).flatten(0, 2).to(kept.dtype, copy=True)
        rows[self.kept] = self.layout.to_rows(kept)[self.kept_rows]
        return rows.unflatten(0, self.mask.shape).permute(0, 3, 1, 2)


def pyramid(mask: Tensor, num_levels: int, falloff: Tensor | None = None) -> list[Region]:
    """The regions of a mask at its resolution and at halves of it.

    A coarse pixel is kept where the fine pixel at its upper left corner is (nearest resizing, floored).

    Args:
        mask: bool [B, h, w], true where pixels are computed.
        num_levels: Resolutions; h and w are divisible by 2 ** (num_levels - 1).
        falloff: See `Extent`; None for maps that stay whole and masked.

    Returns:
        Regions, finest first.
    """
    kept = [mask[:, :: 2**level, :: 2**level] for level in range(num_levels)]
    extents: Sequence[Extent | None] = [None] * num_levels if falloff is None else _extents(kept, falloff)
    regions: list[Region] = []
    for at_level, extent in zip(kept, extents, strict=True):
        regions.append(Region(at_level, regions[-1] if regions else None, extent))
    return regions


def layout_of(region: Region | None) -> Layout | None:
    """How the maps of a region are stored; None for maps that stay whole."""
    return None if region is None else region.layout


def upsample(x: Tensor, coarse: Region | None, fine: Region | None, factor: int, mode: str) -> Tensor:
    """Resizes a map to a finer one.

    Args:
        x: Map, in the layout of `coarse`.
        coarse: Its region; None for maps without regions.
        fine: Region of the result.
        factor: Ratio of the sizes, a power of two.
        mode: `bilinear` (not aligned to corners) or `nearest`.

    Returns:
        Map, in the layout of `fine`.
    """
    source, target = layout_of(coarse), layout_of(fine)
    if source is None or target is None or (source.whole and target.whole):
        return F.interpolate(x, scale_factor=factor, mode=mode, align_corners=None if mode == "nearest" else False)
    assert fine is not None

    def reads() -> tuple[Tensor, Tensor]:
        y, x, _ = target.window(target, 1, 1, 0)
        if mode == "nearest":
            corners = [(y // factor, x // factor, torch.ones((), device=y.device))]
        else:
            corners = [
                (row, column, row_weight * column_weight)
                for row, row_weight in _between(y, factor, source.size[0])
                for column, column_weight in _between(x, factor, source.size[1])
            ]
        return _reads(target, source, corners)

    return fine.combine(x, source, (mode, factor), reads)


def average_pool(x: Tensor, fine: Region | None, coarse: Region | None) -> Tensor:
    """Means of 2x2 pixels: a map in the layout of `fine` to one in the layout of `coarse`."""
    source, target = layout_of(fine), layout_of(coarse)
    if source is None or target is None or (source.whole and target.whole):
        return F.avg_pool2d(x, 2)
    assert coarse is not None

    def reads() -> tuple[Tensor, Tensor]:
        y, x, _ = target.window(target, 1, 1, 0)
        quarter = torch.full((), 0.25, device=y.device)
        return _reads(target, source, [(2 * y + i, 2 * x + j, quarter) for i in (0, 1) for j in (0, 1)])

    return coarse.combine(x, source, "pool", reads)


def _reads(target: Layout, source: Layout, corners: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    index, weights = [], []
    for y, x, weight in corners:
        pixels = (target.image[:, None, None] * source.size[0] + y) * source.size[1] + x
        index.append(source.rows[pixels].clamp(min=0).flatten())
        weights.append(weight.expand(pixels.shape).flatten())
    return torch.stack(index, 1), torch.stack(weights, 1)


def _between(place: Tensor, factor: int, limit: int) -> list[tuple[Tensor, Tensor]]:
    # The two coarse coordinates that a fine one lies between, and how much each counts.
    exact = ((place + 0.5) / factor - 0.5).clamp(min=0)
    low = exact.floor()
    share = exact - low
    first = low.long()
    return [(first, 1 - share), ((first + 1).clamp(max=limit - 1), share)]


def _extents(kept: Sequence[Tensor], falloff: Tensor) -> list[Extent]:
    """Extents of the regions of a mask, finest first; the host waits for the device once."""
    taps = falloff > _NEGLIGIBLE
    reach = len(taps) // 2
    actives: list[Tensor] = []
    helds: list[Tensor] = []
    numbers: list[Tensor] = []
    for mask in kept:
        # A 3x3 convolution reads one pixel around a kept one, and resizing reads one around the coarse pixel that a
        # fine one lies in.
        actives.append(_grow(mask | _pool(actives[-1], 2) if actives else mask))
        helds.append(_pool(actives[-1], TILE))
        filled = actives[-1] & ~mask
        # Not by a convolution, which would count as the network's.
        near = F.pad(mask, (reach, reach, reach, reach)).unfold(1, len(taps), 1).unfold(2, len(taps), 1)
        numbers += [mask.sum(), filled.sum(), (near & taps & filled[..., None, None]).sum()]
    told = torch.cat([torch.stack(numbers), *[held.flatten() for held in helds]]).cpu().numpy()
    counts, rest = told[: len(numbers)].reshape(-1, 3).tolist(), told[len(numbers) :]
    extents = []
    for active, held, (pixels, filled_pixels, read) in zip(actives, helds, counts, strict=True):
        here, rest = rest[: held.numel()] > 0, rest[held.numel() :]
        extents.append(Extent(active, falloff, here.reshape(held.shape), pixels, filled_pixels, read))
    return extents


def _tiles(held: np.ndarray, pixels: int) -> np.ndarray | None:
    """The tiles that hold an active pixel, int64 [n, 3]; None where the whole map is cheaper."""
    tiles = np.argwhere(held)
    step = -(-held.size // _STEPS)
    number = max(1, -(-len(tiles) // step)) * step
    if number * TILE**2 >= WHOLE_FROM * pixels:
        return None
    # Those that make up the number are tiles without an active pixel.
    return np.concatenate([tiles, np.argwhere(~held)[: number - len(tiles)]])


def _pool(mask: Tensor, size: int) -> Tensor:
    return F.max_pool2d(mask[:, None].float(), size, ceil_mode=True)[:, 0] > 0


def _grow(mask: Tensor) -> Tensor:
    return F.max_pool2d(mask[:, None].float(), 3, 1, 1)[:, 0] > 0
