"""Pictures of questions about images, and of how far a network looked to answer them, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drawing.texts import short

# Letters of a line over an image, and of the name of a kind.
IN_QUESTION, IN_KIND = 60, 28
# Kinds on one picture.
MOST_KINDS = 30


@dataclass(frozen=True)
class Answered:
    """A question with what a network answered and where it looked.

    Args:
        image: uint8 [H,W,3]; None where only features are known.
        question: As it was asked.
        caption: What is said of the answer, in one line or a few.
        colour: Of the caption.
        attention: How much the answer takes of each cell, [h,w]; None where cells have no places.
        spans: Shares of each span in each layer, float [layers, spans]; without rows where nothing is routed.
        span_names: Names of the spans.
    """

    image: np.ndarray | None
    question: str
    caption: str
    colour: str = "black"
    attention: np.ndarray | None = None
    spans: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    span_names: Sequence[str] = ()


def answer_sheet(answered: Sequence[Answered], title: str = "") -> Figure:
    """A row for each question: the image, what the answer takes of its cells, and the spans of each layer.

    Args:
        answered: At least one.
        title: Above the figure.
    """
    figure = Figure(figsize=(7.6, 2.5 * len(answered) + 0.7), layout="constrained")
    figure.suptitle(title, fontsize=10)
    every = figure.subplots(len(answered), 3, squeeze=False)
    for (left, middle, right), each in zip(every, answered, strict=True):
        lines = f"{short(each.question, IN_QUESTION)}\n{short(each.caption, IN_QUESTION)}"
        left.set_title(lines, fontsize=8, color=each.colour, loc="left")
        _draw_cells(left, middle, each)
        if len(each.spans):
            layers = [f"layer {i + 1}" for i in range(len(each.spans))]
            _stacked(right, each.spans, layers, each.span_names)
            right.set_title("how far each layer looks", fontsize=8)
        else:
            right.axis("off")
    return figure


def _draw_cells(left: Axes, middle: Axes, each: Answered) -> None:
    for axes in (left, middle):
        axes.set_xticks([])
        axes.set_yticks([])
    if each.image is not None:
        height, width = each.image.shape[:2]
        smooth = "nearest" if max(height, width) < 128 else "antialiased"
        left.imshow(each.image, interpolation=smooth)
        # Faint, so that brightness says what is attended, and not how bright the image is.
        middle.imshow(each.image.mean(2), cmap="gray", vmin=-128, vmax=320, interpolation=smooth)
    elif each.attention is not None:
        height, width = each.attention.shape
        left.axis("off")
    if each.attention is None:
        middle.axis("off")
        return
    middle.set_title("what the answer takes", fontsize=8)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    shown = middle.imshow(each.attention, cmap="inferno", alpha=0.65, extent=extent, interpolation="nearest", vmin=0)
    bar = middle.figure.colorbar(shown, ax=middle, fraction=0.046, pad=0.02)
    bar.ax.tick_params(labelsize=6)


def spans_by_kind(
    layers: Mapping[str, np.ndarray], kinds: Sequence[str], spans: Sequence[str], title: str = ""
) -> Figure:
    """How far each layer looks for each kind of question: a panel a layer, a stacked bar a kind.

    Args:
        layers: Name -> mean shares [kinds, spans]; rows of kinds without a question are NaN.
        kinds: Names.
        spans: Names.
        title: Above the figure.
    """
    shown = range(min(len(kinds), MOST_KINDS))
    figure = Figure(figsize=(2.6 * len(layers) + 1.4, 0.24 * len(shown) + 1.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    every = figure.subplots(1, len(layers), squeeze=False, sharey=True)[0]
    names = [short(kinds[i], IN_KIND) for i in shown]
    for place, (axes, (layer, shares)) in enumerate(zip(every, layers.items(), strict=True)):
        _stacked(axes, np.nan_to_num(shares[: len(shown)]), names, spans, legend=False)
        axes.set_title(short(layer, IN_KIND), fontsize=8)
        if place:
            axes.tick_params(labelleft=False)
    figure.legend(*every[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(spans), frameon=False)
    return figure


def accuracy_bars(kinds: Mapping[str, Mapping[str, tuple[float, int]]], title: str = "") -> Figure:
    """How often each kind of question is answered rightly: a panel for each way to tell kinds apart.

    Args:
        kinds: Panel -> kind -> accuracy from 0 to 1, and how many questions there are.
        title: Above the figure.
    """
    rows = [min(MOST_KINDS, len(each)) for each in kinds.values()]
    figure = Figure(figsize=(6.6, 0.26 * sum(rows) + 0.6 * len(rows) + 0.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    every = figure.subplots(len(kinds), 1, squeeze=False, height_ratios=[each + 1 for each in rows])[:, 0]
    for axes, (panel, values), count in zip(every, kinds.items(), rows, strict=True):
        # Those of most questions.
        most = sorted(values.items(), key=lambda item: -item[1][1])[:count]
        places = range(len(most))[::-1]
        axes.barh(places, [accuracy for _, (accuracy, _) in most], color="0.6")
        axes.set_yticks(places, [short(name, IN_KIND) for name, _ in most], fontsize=8)
        for place, (_, (accuracy, questions)) in zip(places, most, strict=True):
            said = f"{accuracy:.1%} of {questions:,}"
            axes.annotate(said, (1, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7)
        axes.set(xlim=(0, 1), title=panel)
        axes.title.set_fontsize(9)
        axes.tick_params(axis="x", labelsize=7)
    return figure


def _stacked(axes: Axes, shares: np.ndarray, names: Sequence[str], spans: Sequence[str], legend: bool = True) -> None:
    """Bars of shares [names, spans], the first name on top."""
    palette = matplotlib.colormaps["viridis"]
    start = np.zeros(len(names))
    places = np.arange(len(names))[::-1]
    for i, span in enumerate(spans):
        axes.barh(places, shares[:, i], left=start, color=palette(i / max(1, len(spans) - 1)), label=span)
        start = start + shares[:, i]
    axes.set_yticks(places, names, fontsize=7)
    axes.set_xlim(0, 1)
    axes.tick_params(axis="x", labelsize=7)
    if legend:
        axes.legend(fontsize=6, ncols=len(spans), loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
