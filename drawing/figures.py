"""Pictures of training and evaluation, as matplotlib figures."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib.figure import Figure

from drawing.texts import plain_texts, short

# Pixels of the longer side of an image that a picture has use for: of one of many on a sheet, and of one alone.
SMALL, LARGE = 512, 1400
# Letters of a line that a small picture and a large one have room for.
IN_CAPTION, IN_TITLE = 32, 110
Series = tuple[Sequence[float], Sequence[float]]
T = TypeVar("T")


def learning_curve(panels: Mapping[str, Mapping[str, Series]], title: str = "") -> Figure:
    """One panel per quantity, one line per split.

    Args:
        panels: quantity -> line name -> (steps, values).
        title: above the figure.
    """
    panels = {name: lines for name, lines in panels.items() if any(len(x) for x, _ in lines.values())}
    figure = Figure(figsize=(5.2 * max(1, len(panels)), 3.8), layout="constrained")
    figure.suptitle(title)
    for i, (quantity, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for name, (steps, values) in lines.items():
            if len(steps):
                axes.plot(steps, values, label=name, marker="o" if len(steps) < 40 else "", markersize=3, linewidth=1.3)
        axes.set(xlabel="optimiser steps", ylabel=quantity)
        positive = [v for _, values in lines.values() for v in values]
        if quantity == "loss" and min(positive) > 0 and max(positive) / min(positive) > 20:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


def confusion_matrix(counts: np.ndarray, names: Sequence[str], title: str = "") -> Figure:
    """Rows are true classes, columns predicted ones; colour is the share of the row, numbers are counts.

    Args:
        counts: [K, K] samples of class i predicted as class j.
        names: names of the K classes.
        title: above the figure.
    """
    classes = len(names)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(14.0, max(4.5, 0.45 * classes + 1.5))
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, label="share of the true class", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    if classes <= 50:
        labels = [short(name, IN_CAPTION) for name in names]
        axes.set_xticks(range(classes), labels, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(classes), labels)
    if classes <= 20:
        for i, j in zip(*np.nonzero(counts), strict=True):
            colour = "white" if share[i, j] > 0.5 else "black"
            axes.text(j, i, str(int(counts[i, j])), ha="center", va="center", fontsize=8, color=colour)
    return figure


def contact_sheet(
    images: Sequence[np.ndarray], captions: Sequence[str], title: str = "", colours: Sequence[str] | None = None
) -> Figure:
    """Small pictures in rows, each with a caption.

    Args:
        images: uint8 [H, W, 3] each, of any sizes.
        captions: one for each image.
        title: above the figure.
        colours: a colour for each caption.
    """
    columns = min(6, max(1, math.ceil(math.sqrt(len(images)))))
    rows = max(1, math.ceil(len(images) / columns))
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    figure = Figure(figsize=(max(4.0, 1.9 * columns), (1.9 + 0.16 * lines) * rows + 0.5), layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(title, int(13 * max(4.0, 1.9 * columns)))), fontsize=10)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.imshow(image, interpolation="nearest" if max(image.shape[:2]) < 64 else "antialiased")
        axes.set_title(short(caption, IN_CAPTION), fontsize=8, color=colours[i] if colours else "black")
        axes.axis("off")
    return figure


def evenly(things: Sequence[T], most: int) -> list[T]:
    """At most so many of some things, evenly over their order: a split may be sorted by class, a network by depth."""
    places = np.linspace(0, len(things) - 1, min(most, len(things))).round().astype(int)
    return [things[place] for place in places]


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with plain_texts(figure):
        figure.savefig(path, dpi=130)
    return path
