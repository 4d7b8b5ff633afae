"""How averaged weights follow those that are trained."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from drawing.figures import IN_CAPTION, Series
from drawing.texts import short


def smoothing_curve(
    lines: Mapping[str, Mapping[str, Series]], layers: Mapping[str, Mapping[str, Series]], title: str = ""
) -> Figure:
    """A panel of lines for each quantity of all weights, and a map of layers over the steps for each of a layer's.

    Args:
        lines: quantity -> line name -> (steps, values).
        layers: quantity -> layer -> (steps, values), the same steps for all layers.
        title: above the figure.
    """
    layers = {name: rows for name, rows in layers.items() if any(len(steps) for steps, _ in rows.values())}
    most = max((len(rows) for rows in layers.values()), default=0)
    panels = len(lines) + len(layers)
    figure = Figure(figsize=(5.2 * panels, max(3.8, 0.18 * most + 1.2)), layout="constrained")
    figure.suptitle(title)
    for i, (quantity, named) in enumerate(lines.items()):
        axes = figure.add_subplot(1, panels, i + 1)
        for name, (steps, values) in named.items():
            axes.plot(steps, values, label=name, linewidth=1.3, marker="o" if len(steps) < 40 else "", markersize=3)
        axes.set(xlabel="optimiser steps", ylabel=quantity)
        axes.grid(alpha=0.3)
        if len(named) > 1:
            axes.legend(frameon=False)
    for i, (quantity, rows) in enumerate(layers.items()):
        axes = figure.add_subplot(1, panels, len(lines) + i + 1)
        steps = next(iter(rows.values()))[0]
        grid = np.array([row for _, row in rows.values()])
        extent = (steps[0], steps[-1] if len(steps) > 1 else steps[0] + 1, len(rows) - 0.5, -0.5)
        picture = axes.imshow(grid, aspect="auto", interpolation="nearest", extent=extent, cmap="viridis", vmin=0)
        axes.set_yticks(range(len(rows)), [short(name, IN_CAPTION) for name in rows], fontsize=7)
        axes.set(xlabel="optimiser steps", title=quantity)
        figure.colorbar(picture, ax=axes)
    return figure
