"""What pruning leaves of a network."""

from __future__ import annotations

from collections.abc import Sequence

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
