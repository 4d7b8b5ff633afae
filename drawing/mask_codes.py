"""Pictures of what codes of masks keep, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure


def mask_code_curve(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], title: str = "") -> Figure:
    """Mean IoU over the length of a code.

    Args:
        curves: code -> (lengths, mean IoU at each).
        title: above the figure.
    """
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for name, (lengths, values) in curves.items():
        axes.plot(lengths, values, label=name, marker="o", markersize=3, linewidth=1.3)
    axes.set_xscale("log", base=2)
    ticks = sorted({length for lengths, _ in curves.values() for length in lengths})
    axes.set_xticks(ticks, [str(length) for length in ticks])
    axes.set(xlabel="numbers of a mask's code", ylabel="mean mask IoU", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
