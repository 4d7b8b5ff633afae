"""Pictures of early exit: accuracy against compute, and which images leave where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

Points = tuple[Sequence[float], Sequence[float]]


def exit_curve(
    anytime: Points, budgeted: Points | None = None, random: Points | None = None, title: str = ""
) -> Figure:
    """Accuracy against compute.

    Args:
        anytime: multiply-adds up to each exit, rising, and its accuracy. All images stop at the best exit that is paid
            for, so steps join the exits.
        budgeted: mean multiply-adds and accuracy where images leave when they are sure enough.
        random: the same where as many leave at each exit, whichever they are.
        title: above the figure.
    """
    costs, accuracy = np.asarray(anytime[0], float), np.asarray(anytime[1], float)
    unit, name = (1e9, "G") if costs[-1] >= 1e9 else (1e6, "M") if costs[-1] >= 1e6 else (1e3, "k")
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    best = np.maximum.accumulate(accuracy)
    axes.step(costs / unit, best, where="post", color="tab:blue", linewidth=1.2, label="one exit for all")
    axes.plot(costs / unit, accuracy, "o", color="tab:blue", markersize=5)
    lines = (("an exit for each image", budgeted, "tab:red", "-"), ("as many, at random", random, "tab:gray", "--"))
    for label, points, colour, style in lines:
        if points is not None:
            axes.plot(np.asarray(points[0]) / unit, points[1], style, color=colour, linewidth=1.5, label=label)
    axes.set(xlabel=f"{name} multiply-adds an image", ylabel="accuracy", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="best")
    return figure


def exit_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[Sequence[str]],
    right: Sequence[Sequence[bool]],
    labels: Sequence[str],
    title: str = "",
) -> Figure:
    """Which images leave early: a row for each exit.

    Args:
        rows: images that leave at an exit, uint8 [H, W, 3] each, of any sizes; a row may be empty.
        captions: one for each image.
        right: whether each is classified rightly; captions of the others are red.
        labels: what is said above each row.
        title: above the figure.
    """
    columns = max(1, *map(len, rows))
    heights = [2.0 if row else 0.4 for row in rows]
    figure = Figure(figsize=(max(1.4 * columns, 4.5), sum(heights) + 0.4), layout="constrained")
    figure.suptitle(title)
    for part, images, names, hits, label in zip(
        figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0],
        rows,
        captions,
        right,
        labels,
        strict=True,
    ):
        part.suptitle(label, fontsize=9)
        for i, axes in enumerate(part.subplots(1, columns, squeeze=False)[0]):
            axes.axis("off")
            if i < len(images):
                small = max(images[i].shape[:2]) < 64
                axes.imshow(images[i], interpolation="nearest" if small else "antialiased")
                axes.set_title(names[i], fontsize=7, color="black" if hits[i] else "tab:red")
    return figure
