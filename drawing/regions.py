"""Pictures of what a region-aware layer does where, as matplotlib figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

PAIRS_IN_A_ROW = 3


def region_overlay(
    images: Sequence[np.ndarray], regions: Sequence[np.ndarray], num_regions: int, title: str = "", opacity: float = 0.6
) -> Figure:
    """Each image beside itself in grey under its region map, and a legend with the share of every region.

    Args:
        images: uint8 [H, W, 3] each, of any sizes; at least one.
        regions: whole numbers [h, w] each, of any size: a position covers its part of the image.
        num_regions: colours to use; a region has the same one in every picture.
        title: above the figure.
        opacity: how much the map hides of the image, from 0 to 1.

    Raises:
        ValueError: No image, another number of maps than of images, or a region that there is not.
    """
    if not images or len(images) != len(regions):
        raise ValueError(f"every image has one region map, not {len(images)} images and {len(regions)} maps")
    occupied = [np.unique(each) for each in regions]
    if min(each[0] for each in occupied) < 0 or max(each[-1] for each in occupied) >= num_regions:
        raise ValueError(
            f"regions are numbered from 0 to {num_regions - 1}, not {np.unique(np.concatenate(occupied)).tolist()}"
        )
    columns = min(PAIRS_IN_A_ROW, math.ceil(math.sqrt(len(images))))
    rows = math.ceil(len(images) / columns)
    entries = min(2 * columns, num_regions)
    inches = 2.4 * rows + 0.5 + 0.25 * math.ceil(num_regions / entries)
    figure = Figure(figsize=(4.4 * columns, inches), layout="constrained")
    figure.suptitle(title)
    colours = region_colours(num_regions)
    for i, (image, assigned) in enumerate(zip(images, regions, strict=True)):
        height, width = image.shape[:2]
        interpolation = "nearest" if max(height, width) < 64 else "antialiased"
        # Colours of the image would mix with those of the regions.
        for j, shown in enumerate((image, image.mean(2))):
            axes = figure.add_subplot(rows, 2 * columns, 2 * i + j + 1)
            axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation=interpolation, extent=(0, width, height, 0))
            axes.axis("off")
        axes.imshow(
            assigned,
            cmap=ListedColormap(colours),
            vmin=-0.5,
            vmax=num_regions - 0.5,
            alpha=opacity,
            interpolation="nearest",
            extent=(0, width, height, 0),
        )
    shares = np.mean([np.bincount(each.ravel(), minlength=num_regions) / each.size for each in regions], axis=0)
    patches = [
        Patch(color=colour, label=f"region {region}: {share:.0%}")
        for region, (colour, share) in enumerate(zip(colours, shares, strict=True))
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=entries, frameon=False)
    return figure


def region_colours(num_regions: int) -> np.ndarray:
    """Colours that are told apart, RGBA [num_regions, 4] from 0 to 1; alike ones beyond twenty regions."""
    if num_regions > 20:
        return matplotlib.colormaps["turbo"](np.linspace(0, 1, num_regions))
    return matplotlib.colormaps["tab10" if num_regions <= 10 else "tab20"](np.arange(num_regions))
