"""What pruning leaves of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from drawing.figures import IN_CAPTION
from drawing.texts import short


def channels_kept(names: Sequence[str], widths: Sequence[int], kept: Sequence[int], title: str = "") -> Figure:
    """One bar for each layer, from the input on: its channels, and those of them that are kept.

    Args:
        names: of the layers.
        widths: channels of each before.
        kept: channels of each that are kept.
        title: above the figure.
    """
    figure = Figure(figsize=(max(5.0, 0.16 * len(names) + 2.0), 4.2), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(names))
    axes.bar(places, widths, color="lightgrey", label="unpruned")
    axes.bar(places, kept, color="tab:blue", label="kept")
    axes.set(ylabel="channels", title=title, xlim=(-0.8, len(names) - 0.2))
    axes.set_xticks(places, [short(name, IN_CAPTION) for name in names], rotation=90, fontsize=6)
    for place, width, left in zip(places, widths, kept, strict=True):
        axes.text(place, left, f"{left / width:.0%}", ha="center", va="bottom", fontsize=5, rotation=90)
    axes.legend(frameon=False)
    return figure


def kernel_patterns(names: Sequence[str], patterns: np.ndarray, title: str = "") -> Figure:
    """How many of the weights at each position of a kernel are kept, one panel for each layer, from the input on.

    Args:
        names: of the layers.
        patterns: shares [n, size, size].
        title: above the figure.
    """
    columns = min(6, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(1.5 * columns + 1.2, 1.7 * rows + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for place, (name, pattern) in enumerate(zip(names, patterns, strict=True)):
        axes = figure.add_subplot(rows, columns, place + 1)
        # Each by itself: late layers keep so few that a common scale would hide where.
        most = max(float(pattern.max()), 1e-9)
        axes.imshow(pattern, cmap="viridis", vmin=0.0, vmax=most)
        axes.set_title(f"{short(name, IN_CAPTION)}\n{pattern.mean():.1%} kept", fontsize=6)
        axes.set_xticks([])
        axes.set_yticks([])
        for (row, column), share in np.ndenumerate(pattern):
            colour = "black" if share > 0.6 * most else "white"
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=5, color=colour)
    return figure
