"""Pictures of what segmenters predict, and at which cost, as matplotlib figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from drawing.figures import IN_CAPTION, IN_TITLE
from drawing.texts import short

VOID = 255
OPACITY = 0.55
MOST_BARS = 40
MOST_IN_LEGEND = 24
# Of a panel, in inches.
PANEL_WIDTH = 2.4
CAPTION = 0.22


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet.

    Args:
        pixels: uint8 [H, W, 3], or values from 0 to 1 [H, W].
        caption: Above it.
    """

    pixels: np.ndarray
    caption: str


def coloured(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Classes [H, W] as colours, uint8 [H, W, 3]; void is black.

    Args:
        labels: Classes, and 255 for void.
        palette: uint8 [K, 3].
    """
    table = np.zeros((VOID + 1, 3), np.uint8)
    table[: len(palette)] = palette
    return table[labels]


def blended(image: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """An image under the colours of its classes; void is left as it is.

    Args:
        image: uint8 [H, W, 3].
        labels: Classes [h, w], stretched to the image.
        palette: uint8 [K, 3].
    """
    rows, columns = (np.arange(n) * m // n for n, m in zip(image.shape[:2], labels.shape, strict=True))
    labels = labels[rows[:, None], columns]
    mixed = (1 - OPACITY) * image + OPACITY * coloured(labels, palette)
    return np.where((labels == VOID)[..., None], image, np.rint(mixed)).astype(np.uint8)


def class_pixels(labels: np.ndarray, classes: int) -> np.ndarray:
    """Pixels of each class, int64 [classes]; those of a photograph are counted row by row, eight bytes a pixel.

    Args:
        labels: Classes [h, w], and 255 for void.
        classes: How many there are.
    """
    counts = np.zeros(VOID + 1, np.int64)
    for row in labels:
        counts += np.bincount(row, minlength=VOID + 1)
    return counts[:classes]


def overlay(image: np.ndarray, labels: np.ndarray, palette: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """One image under its classes, with a legend of them and of their shares.

    Args:
        image: uint8 [H, W, 3].
        labels: Classes [h, w].
        palette: uint8 [K, 3].
        names: Names of the K classes.
        title: Above the figure.
    """
    height, width = image.shape[:2]
    figure = Figure(figsize=(9.0, 7.0 * height / width + 0.4), layout="constrained")
    figure.suptitle(short(title, IN_TITLE), fontsize=9)
    axes = figure.add_subplot()
    axes.imshow(blended(image, labels, palette))
    axes.axis("off")
    counts = class_pixels(labels, len(names))
    shown = [k for k in np.argsort(-counts, kind="stable")[:MOST_IN_LEGEND] if counts[k]]
    captions = {k: f"{names[k]} {counts[k] / labels.size:.1%}" for k in shown}
    figure.legend(handles=_patches(captions, palette), loc="outside right upper", frameon=False, fontsize=8)
    return figure


def panel_sheet(
    rows: Sequence[Sequence[Panel | None]],
    palette: np.ndarray,
    names: Sequence[str],
    present: Sequence[int],
    title: str = "",
) -> Figure:
    """Panels in rows, and a legend of the classes below.

    Args:
        rows: As many panels in each, at least one; None leaves a place empty.
        palette: uint8 [K, 3].
        names: Names of the K classes.
        present: Classes in the legend.
        title: Above the figure.
    """
    columns = len(rows[0])
    first = next(panel for row in rows for panel in row if panel is not None).pixels
    # Inches. A layout engine would take seconds for so many panels.
    panel_height = PANEL_WIDTH * first.shape[0] / first.shape[1]
    captions = {k: names[k] for k in present[:MOST_IN_LEGEND]}
    in_line = max(3, 2 * columns)
    scaled = any(panel is not None and panel.pixels.ndim == 2 for row in rows for panel in row)
    scale, above = 0.5 if scaled else 0.0, 0.7
    below = 0.22 * math.ceil(len(captions) / in_line) + 0.2 + scale
    width, height = PANEL_WIDTH * columns + 0.2, (panel_height + CAPTION) * len(rows) + below + above
    figure = Figure(figsize=(width, height))
    figure.suptitle(title, y=1 - 0.15 / height, va="top")
    grid = figure.subplots(
        len(rows),
        columns,
        squeeze=False,
        gridspec_kw={
            "left": 0.1 / width,
            "right": 1 - 0.1 / width,
            "bottom": below / height,
            "top": 1 - above / height,
            "wspace": 0.04,
            "hspace": CAPTION / panel_height,
        },
    )
    for axes, panel in zip(grid.ravel(), [panel for row in rows for panel in row], strict=True):
        axes.axis("off")
        if panel is not None:
            axes.imshow(panel.pixels, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(panel.caption, fontsize=7)
    if scaled:
        bar = figure.add_axes((0.3, (below - 0.25) / height, 0.4, 0.1 / height))
        figure.colorbar(ScalarMappable(Normalize(0, 1), "viridis"), cax=bar, orientation="horizontal")
        bar.tick_params(labelsize=6, pad=1, length=2)
        bar.set_title("panels without photographs: 0 none or unsure, 1 all or sure", fontsize=6, pad=2)
    figure.legend(handles=_patches(captions, palette), loc="lower center", ncols=in_line, frameon=False, fontsize=7)
    return figure


def class_bars(names: Sequence[str], exits: Mapping[str, Sequence[float]], title: str = "") -> Figure:
    """Intersection over union of each class, the best one above; a bar for the last exit, a mark for each other.

    Args:
        names: Names of the classes.
        exits: Exit -> [K]; NaN for classes that do not count.
        title: Above the figure.
    """
    *earlier, last = exits
    values = np.asarray(exits[last], float)
    order = [k for k in np.argsort(-values, kind="stable") if not np.isnan(values[k])]
    if len(order) > MOST_BARS:
        title += f"\nthe best and the worst {MOST_BARS // 2} of {len(order)} classes"
        order = order[: MOST_BARS // 2] + order[-MOST_BARS // 2 :]
    figure = Figure(figsize=(6.8, 0.24 * len(order) + 1.4), layout="constrained")
    axes = figure.add_subplot(title=title)
    places = np.arange(len(order))
    axes.barh(places, values[order], color="tab:blue", alpha=0.75, label=last)
    for i, exit in enumerate(earlier):
        axes.plot(np.asarray(exits[exit], float)[order], places, "o", color=f"C{i + 1}", markersize=4, label=exit)
    axes.set_yticks(places, [names[k] for k in order], fontsize=8)
    axes.set(xlabel="intersection over union", xlim=(0, 1), ylim=(len(order) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.3)
    if earlier:
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def miou_curve(macs: Sequence[float], miou: Sequence[float], title: str = "") -> Figure:
    """Mean intersection over union of each exit over what was executed up to it.

    Args:
        macs: Multiply-adds an image up to each exit.
        miou: Mean intersection over union of each exit.
        title: Above the figure.
    """
    unit, name = (1e9, "G") if macs[-1] >= 1e9 else (1e6, "M")
    costs = np.asarray(macs, float) / unit
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot(title=title)
    axes.plot(costs, miou, "o-", linewidth=1.3)
    for exit, place in enumerate(zip(costs, miou, strict=True)):
        axes.annotate(f"exit {exit}", place, textcoords="offset points", xytext=(5, -11), fontsize=8)
    axes.set(xlabel=f"executed {name} multiply-adds an image", ylabel="mean intersection over union")
    axes.grid(alpha=0.3)
    return figure


def threshold_curve(
    exits: Mapping[str, Sequence[tuple[float, float]]],
    swept: Sequence[tuple[float, float, str]],
    chosen: Sequence[tuple[float, float]],
    cost: str,
    title: str = "",
) -> Figure:
    """What a network with exits reaches at which cost, under each threshold.

    Args:
        exits: Threshold -> cost and mean intersection over union of each exit, cheapest first.
        swept: Compute, mIoU and threshold of the last exit, by rising threshold; empty without thresholds.
        chosen: Budgets, and what was chosen within each; costs and budgets are shares of computing every pixel.
        cost: What is counted.
        title: Above the figure.
    """
    figure = Figure(figsize=(7.6, 5.0), layout="constrained")
    axes = figure.add_subplot(title=title)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(exits)))
    for (threshold, points), colour in zip(exits.items(), colours, strict=True):
        x, y = zip(*points, strict=True)
        axes.plot(100 * np.asarray(x), y, "o-", color=colour, linewidth=0.9, markersize=3, label=f"exits, {threshold}")
    if swept:
        x, y, names = zip(*swept, strict=True)
        axes.plot(100 * np.asarray(x), y, "s--", color="black", linewidth=1.4, label="last exit, every threshold")
        for place in zip(100 * np.asarray(x), y, names, strict=True):
            axes.annotate(place[2], place[:2], textcoords="offset points", xytext=(4, -11), fontsize=7)
    if chosen:
        x, y = zip(*chosen, strict=True)
        axes.step(100 * np.asarray(x), y, where="post", color="tab:red", linewidth=1.2, label="chosen for the budget")
    axes.set(xlabel=f"{cost} multiply-adds, % of computing every pixel", ylabel="mean intersection over union")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=7)
    return figure


@dataclass(frozen=True)
class Reliability:
    """How often one exit is right about pixels of which it is so sure.

    Args:
        confidence: Mean confidence of each bin of confidence, [bins]; NaN for an empty one.
        accuracy: Share of each bin's pixels that are right, [bins].
        share: Share of all pixels that are in each bin, [bins].
        label: What is said of the exit.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    share: np.ndarray
    label: str


def reliability(exits: Sequence[Reliability], title: str = "") -> Figure:
    """How often exits are right about pixels of which they are so sure; on the diagonal, as often as they say.

    Args:
        exits: Cheapest first.
        title: Above the figure.
    """
    figure = Figure(figsize=(5.6, 6.2), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    edges = np.linspace(0, 1, len(exits[0].share) + 1)
    for exit, found in enumerate(exits):
        colour = f"C{exit}"
        axes.plot(found.confidence, found.accuracy, "o-", color=colour, markersize=3, linewidth=1.2, label=found.label)
        below.stairs(found.share, edges, color=colour)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of the pixels that are right")
    axes.legend(frameon=False, fontsize=7, loc="upper left")
    below.set(xlabel="confidence", ylabel="share of the pixels", yscale="log")
    for each in (axes, below):
        each.grid(alpha=0.3)
    return figure


def _patches(captions: Mapping[int, str], palette: np.ndarray) -> list[Patch]:
    return [
        Patch(facecolor=palette[k] / 255, edgecolor="black", label=short(text, IN_CAPTION))
        for k, text in captions.items()
    ]
