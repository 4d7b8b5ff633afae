"""Pictures of the routes that images take through a grid of cells, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

COLOURS = matplotlib.colormaps["plasma_r"]
# Inches.
IMAGE_WIDTH, ROW_HEIGHT, TITLE, LEGEND = 2.6, 2.1, 0.5, 0.7
# Of a layer: wide grids are packed, as far as they stay readable.
WIDEST_LAYER, NARROWEST_LAYER, GRID_WIDTH = 0.7, 0.36, 9.0
# Of a figure, for its legend.
NARROWEST = 9.4


@dataclass(frozen=True)
class RouteUse:
    """How an image, or images on average, use the edges of a grid of cells; arrays [layers, levels, ways].

    Args:
        exists: Edges of the network.
        share: Share of the images that each is open for.
        weight: Mean gate weight over the images that it is open for; NaN for none.
        cells: Share of the images that each cell computes for [layers, levels].
        kept: Share of the images that have something here which a closed cell passes on as it is [layers, levels].
        steps: How many levels each way leads on by, [ways].
        levels: Names of the levels.
    """

    exists: np.ndarray
    share: np.ndarray
    weight: np.ndarray
    cells: np.ndarray
    kept: np.ndarray
    steps: Sequence[int]
    levels: Sequence[str]

    @property
    def open_share(self) -> float:
        """Share of the network's edges that are open, the mean over the images."""
        return float(self.share[self.exists].mean())


@dataclass(frozen=True)
class RoutedImage:
    """An image beside its route.

    Args:
        image: uint8 [H, W, 3].
        caption: Above the route.
        use: The route.
    """

    image: np.ndarray
    caption: str
    use: RouteUse


def route_sheet(title: str, images: Sequence[RoutedImage], average: RouteUse | None = None) -> Figure:
    """Grids of cells with the edges that are used: layers to the right, coarser levels further down.

    Wide edges are open for many images, dark ones carry a large gate weight; a cell is as dark as the share of images
    that it computes for. Where a closed cell passes its input on, the line is dashed.

    Args:
        title: Above the figure; may be empty.
        images: A row each.
        average: The use by all images, in a row of its own above; None for no such row.
    """
    uses = [*([average] if average is not None else []), *(each.use for each in images)]
    layers = len(uses[0].exists) + 2.6
    left = (IMAGE_WIDTH + 0.2 if images else 0.0) + 0.7
    grid = max(NARROWEST - left, layers * min(WIDEST_LAYER, max(NARROWEST_LAYER, GRID_WIDTH / layers)))
    width, height = left + grid + 0.1, ROW_HEIGHT * len(uses) + (TITLE if title else 0.0) + LEGEND
    # A layout engine would take seconds.
    figure = Figure(figsize=(width, height))
    figure.suptitle(title, fontsize=10, y=1 - 0.12 / height, va="top")
    for row, use in enumerate(uses):
        bottom = (LEGEND + ROW_HEIGHT * (len(uses) - 1 - row) + 0.35) / height
        axes = figure.add_axes((left / width, bottom, grid / width, (ROW_HEIGHT - 0.65) / height))
        _draw(axes, use)
        place = row - (len(uses) - len(images))
        if place < 0:
            axes.set_title("all images", fontsize=8, loc="left")
        else:
            axes.set_title(images[place].caption, fontsize=8, loc="left")
            inset = (0.1 / width, bottom, IMAGE_WIDTH / width, (ROW_HEIGHT - 0.65) / height)
            picture = figure.add_axes(inset, anchor="E")
            picture.imshow(images[place].image)
            picture.axis("off")
    axes.set_xlabel("layer", fontsize=8, labelpad=1)
    _legend(figure, len(uses) > len(images), width, height)
    return figure


def _draw(axes: Axes, use: RouteUse) -> None:
    layers, levels = np.nonzero(use.exists.any(2))
    last = len(use.exists) - 1
    edges = np.argwhere(use.exists)
    # Rare edges below frequent ones.
    edges = edges[np.argsort(use.share[tuple(edges.T)], kind="stable")]
    shares, weights = use.share[tuple(edges.T)], use.weight[tuple(edges.T)]
    steps, depth = np.array(use.steps), len(use.levels)
    starts = edges[:, :2].astype(float)
    lines = np.stack([starts, starts + np.stack([np.ones(len(edges)), steps[edges[:, 2]]], 1)], 1)
    closed = shares == 0
    axes.add_collection(
        LineCollection(list(lines[closed]), colors="0.8", linewidths=0.6, linestyles="dotted", zorder=1)
    )
    colours = COLOURS(np.nan_to_num(weights))
    colours[:, 3] = 0.3 + 0.7 * shares
    opened = ~closed
    axes.add_collection(
        LineCollection(list(lines[opened]), colors=colours[opened], linewidths=_widths(shares[opened]), zorder=2)
    )
    passing = np.argwhere(use.kept > 0).astype(float)
    kept = use.kept[use.kept > 0]
    lines = np.stack([passing, passing + np.array([1.0, 0.0])], 1)
    axes.add_collection(
        LineCollection(list(lines), colors="0.45", linewidths=_widths(kept) / 2, linestyles="--", zorder=2)
    )
    axes.plot([-1, 0], [0, 0], color="black", linewidth=1.2, zorder=1)
    axes.plot([last + 1] * 2, [0, depth - 1], color="black", linewidth=4, solid_capstyle="round", zorder=3)
    axes.text(-1.1, 0, "stem", fontsize=7, ha="right", va="center", rotation=90)
    axes.text(last + 1.3, (depth - 1) / 2, "decoder", fontsize=7, ha="left", va="center", rotation=90)
    shade = use.cells[layers, levels]
    axes.scatter(
        layers, levels, c=shade, cmap="Greys", vmin=0, vmax=1, s=26, edgecolors="0.3", linewidths=0.7, zorder=4
    )
    axes.set(xlim=(-1.6, last + 2), ylim=(depth - 0.6, -0.4))
    axes.set_xticks(range(0, last + 1, 1 if last <= 20 else 3))
    axes.set_yticks(range(depth), use.levels)
    axes.tick_params(labelsize=7, length=0)
    axes.spines[:].set_visible(False)


def _widths(shares: np.ndarray) -> np.ndarray:
    return 0.6 + 2.6 * shares


def _legend(figure: Figure, shared: bool, width: float, height: float) -> None:
    shares = (0.1, 0.5, 1.0) if shared else (1.0,)
    handles = [
        Line2D([], [], color=(*COLOURS(0.9)[:3], 0.3 + 0.7 * share), linewidth=float(_widths(np.array(share))))
        for share in shares
    ]
    labels = [f"open for {share:.0%} of the images" for share in shares] if shared else ["open"]
    handles += [Line2D([], [], color="0.45", linestyle="--"), Line2D([], [], color="0.8", linestyle="dotted")]
    labels += ["closed cell: its input is passed on", "never open" if shared else "closed"]
    handles.append(Line2D([], [], color="0.3", linestyle="", marker="o", markersize=5, markerfacecolor="black"))
    labels.append("cell, the darker the more images it computes for" if shared else "cell that computes")
    figure.legend(handles, labels, loc="lower left", ncols=3, frameon=False, fontsize=7, bbox_to_anchor=(0, 0))
    bar = figure.add_axes((1 - 2.2 / width, 0.4 / height, 2.0 / width, 0.1 / height))
    figure.colorbar(ScalarMappable(cmap=COLOURS), cax=bar, orientation="horizontal")
    bar.tick_params(labelsize=6, length=2)
    bar.set_title("mean weight of open gates" if shared else "weight of the gate", fontsize=7, pad=2)
