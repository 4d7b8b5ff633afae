"""Pictures of mixtures that layers have learned, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

COLOURS = ("tab:red", "tab:blue", "tab:green", "tab:orange")


def balances(layers: Mapping[str, np.ndarray], names: Sequence[str], title: str = "") -> Figure:
    """Coefficients by layer and head: a line for each branch through its means, and a dot for each head.

    Args:
        layers: name -> coefficients [heads, branches], from the image on.
        names: of the branches, four at most.
        title: above the figure.
    """
    figure = Figure(figsize=(max(4.0, 0.42 * len(layers) + 1.6), 3.6), layout="constrained")
    axes = figure.add_subplot()
    for branch, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        means = [coefficients[:, branch].mean() for coefficients in layers.values()]
        axes.plot(means, "-", color=colour, linewidth=1.2, label=name)
        for place, coefficients in enumerate(layers.values()):
            heads = coefficients[:, branch]
            axes.plot(np.full(len(heads), place), heads, "o", color=colour, markersize=4, alpha=0.6)
    axes.set_xticks(range(len(layers)), list(layers), rotation=90, fontsize=7)
    axes.set(ylabel="coefficient", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="best")
    return figure
