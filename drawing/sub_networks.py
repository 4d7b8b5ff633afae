"""What the architectures of a space reach with weights that they share."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure


def sub_networks(points: Mapping[str, tuple[float, float]], quantity: str, title: str = "") -> Figure:
    """A metric against compute.

    Args:
        points: multiply-adds and metric of each architecture, by name; the drawn ones' names begin with `drawn`.
        quantity: what the metric is called.
        title: above the figure.
    """
    most = max(cost for cost, _ in points.values())
    unit, name = (1e9, "G") if most >= 1e9 else (1e6, "M") if most >= 1e6 else (1e3, "k")
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    kinds = {"drawn": ("tab:gray", "o"), "smallest": ("tab:blue", "v"), "largest": ("tab:red", "^")}
    for kind, (colour, marker) in kinds.items():
        chosen = [point for name, point in points.items() if name.startswith(kind)]
        costs, values = [cost / unit for cost, _ in chosen], [value for _, value in chosen]
        axes.plot(costs, values, marker, color=colour, markersize=7, label=kind)
    axes.set(xlabel=f"{name} multiply-adds an image", ylabel=quantity, title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="best")
    return figure
