"""Pictures of features: rows of images, points on a plane, and where a class token looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from drawing.figures import IN_CAPTION
from drawing.texts import short

# More classes than that are not told apart by colour.
MOST_COLOURS = 20


@dataclass(frozen=True)
class Captioned:
    """An image with what is said below it.

    Args:
        image: uint8 [H, W, 3].
        caption: of one line or two.
        colour: of the caption.
    """

    image: np.ndarray
    caption: str
    colour: str = "black"


def image_rows(rows: Sequence[Sequence[Captioned]], title: str = "") -> Figure:
    """Images in rows, of which the first column stands apart.

    Args:
        rows: each of about as many images.
        title: above the figure.
    """
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(1.6 * columns + 0.3, 1.85 * len(rows) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.add_gridspec(len(rows), columns + 1, width_ratios=[1, 0.12, *[1] * (columns - 1)])
    for i, row in enumerate(rows):
        for j, each in enumerate(row):
            axes = figure.add_subplot(grid[i, j + (j > 0)])
            size = max(each.image.shape[:2])
            axes.imshow(each.image, interpolation="nearest" if size < 64 else "antialiased")
            axes.set_title(short(each.caption, IN_CAPTION * 5 // 8), fontsize=6.5, color=each.colour, pad=2)
            axes.axis("off")
    return figure


def plane(points: np.ndarray, labels: np.ndarray | None, names: Sequence[str], title: str = "") -> Figure:
    """Points on a plane, coloured by class; of many classes, each name stands in the middle of its points.

    Args:
        points: [n, 2].
        labels: class of each, int64 [n]; None of images without.
        names: names of the classes.
        title: above the figure.
    """
    figure = Figure(figsize=(7.5, 6.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.add_subplot()
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    size = max(6.0, min(24.0, 8000 / max(1, len(points))))
    if labels is None:
        axes.scatter(points[:, 0], points[:, 1], s=size, linewidths=0, alpha=0.8)
        return figure
    present = np.unique(labels)
    few = len(present) <= MOST_COLOURS
    palette = matplotlib.colormaps["tab10" if len(present) <= 10 else "tab20" if few else "turbo"]
    for place, label in enumerate(present):
        own = points[labels == label]
        colour = palette(place if few else place / max(1, len(present) - 1))
        name = short(names[int(label)] if int(label) < len(names) else str(label), IN_CAPTION)
        axes.scatter(own[:, 0], own[:, 1], s=size, linewidths=0, alpha=0.8, color=colour, label=name)
        if not few:
            axes.annotate(name, np.median(own, 0), fontsize=5, ha="center", va="center")
    if few:
        axes.legend(frameon=False, fontsize=8, markerscale=1.6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def attention_sheet(images: Sequence[np.ndarray], maps: Sequence[np.ndarray], title: str = "") -> Figure:
    """Where each head looks, over each image: bright places get much attention, black ones none; each on its own scale.

    Args:
        images: uint8 [H, W, 3] each.
        maps: of each image, shares [heads, h, w].
        title: above the figure.
    """
    heads = len(maps[0])
    figure = Figure(figsize=(1.55 * (heads + 1) + 0.3, 1.7 * len(images) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for i, (image, shares) in enumerate(zip(images, maps, strict=True)):
        height, width = image.shape[:2]
        for j in range(heads + 1):
            axes = figure.add_subplot(len(images), heads + 1, i * (heads + 1) + j + 1)
            smooth = "nearest" if max(height, width) < 64 else "antialiased"
            if j == 0:
                axes.imshow(image, interpolation=smooth)
            else:
                # Faint, so that brightness says where a head looks, and not how bright the image is.
                axes.imshow(image.mean(2), cmap="gray", vmin=-128, vmax=320, interpolation=smooth)
                extent = (-0.5, width - 0.5, height - 0.5, -0.5)
                axes.imshow(shares[j - 1], cmap="inferno", alpha=0.65, extent=extent, interpolation="bilinear", vmin=0)
            axes.axis("off")
            if i == 0:
                axes.set_title(f"head {j}" if j else "image", fontsize=8)
    return figure
