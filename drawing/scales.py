"""Pictures of what each scale of a pyramid does for which images, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from drawing.figures import IN_CAPTION
from drawing.texts import short

COLOURS = matplotlib.colormaps["viridis_r"]
# Inches.
IMAGE, LEVEL, BARS_WIDTH = 1.5, 0.2, 9.4


@dataclass(frozen=True)
class ScaledImage:
    """An image with the option that each level took.

    Args:
        image: uint8 [H, W, 3].
        name: of its file.
        choices: option of each level, finest first.
        share: what they cost together, of all that the levels can cost.
    """

    image: np.ndarray
    name: str
    choices: Sequence[int]
    share: float


def scale_sheet(
    title: str, shares: np.ndarray, costs: np.ndarray, options: Sequence[str], images: Sequence[ScaledImage]
) -> Figure:
    """How many images take which option at each level, and below it some images with theirs.

    Dark options are dear ones. Below an image stands a bar for each level, the finest on top, as long as the root of
    the cost of the option that it took.

    Args:
        title: above the figure.
        shares: of the images that take each option [levels, options].
        costs: of each option, as shares of all that the levels can cost [levels, options].
        options: their names.
        images: from left to right.
    """
    levels = len(shares)
    dearest = costs.max(0)
    colours = COLOURS(0.1 + 0.85 * dearest / dearest.max())
    bars, below = 0.45 + 0.3 * levels, IMAGE + LEVEL * levels + 0.75
    height = 0.75 + bars + 0.55 + below
    figure = Figure(figsize=(BARS_WIDTH, height))
    figure.suptitle(title, fontsize=10, y=1 - 0.1 / height, va="top")
    axes = figure.add_axes((0.2, (below + 0.55) / height, 0.77, (bars - 0.25) / height))
    start = np.zeros(levels)
    for option, share in enumerate(shares.T):
        axes.barh(range(levels), share, left=start, color=colours[option], edgecolor="white", linewidth=0.6)
        start = start + share
    labels = [f"level {i}: {cost:.0%} of the compute" for i, cost in enumerate(costs.max(1))]
    axes.set_yticks(range(levels), labels, fontsize=8)
    axes.set(xlim=(0, 1), ylim=(levels - 0.5, -0.5))
    axes.set_xlabel("share of the images", fontsize=8, labelpad=1)
    axes.tick_params(axis="x", labelsize=7)
    patches = [Patch(color=colour, label=name) for colour, name in zip(colours, options, strict=True)]
    axes.legend(
        handles=patches,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=len(options),
        fontsize=7,
        frameon=False,
        handlelength=1,
        borderaxespad=0.1,
    )
    for place, image in enumerate(images):
        left = (0.1 + place * (BARS_WIDTH - 0.2) / len(images)) / BARS_WIDTH
        width = ((BARS_WIDTH - 0.2) / len(images) - 0.12) / BARS_WIDTH
        picture = figure.add_axes((left, (LEVEL * levels + 0.35) / height, width, IMAGE / height), anchor="S")
        picture.imshow(image.image)
        picture.axis("off")
        picture.set_title(f"{short(image.name, IN_CAPTION // 2)}\n{image.share:.0%}", fontsize=7, pad=3)
        below_it = figure.add_axes((left, 0.25 / height, width, LEVEL * levels / height))
        _levels(below_it, costs, colours, image.choices)
    return figure


def _levels(axes: Axes, costs: np.ndarray, colours: np.ndarray, choices: Sequence[int]) -> None:
    rows, longest = np.arange(len(costs)), costs.max()
    # A square root, as every level costs several times what the next one does.
    axes.barh(rows, np.sqrt(costs.max(1) / longest), color="0.93")
    taken = np.sqrt(costs[rows, list(choices)] / longest)
    axes.barh(rows, taken, color=[colours[choice] for choice in choices])
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xticks=[], yticks=[])
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
