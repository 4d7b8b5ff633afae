"""What a search for architectures looked at, and what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from drawing.exits import Points


def search_front(
    costs: Sequence[float],
    values: Sequence[float],
    generations: Sequence[int],
    front: Points,
    best: int,
    labels: tuple[str, str],
    title: str = "",
) -> Figure:
    """All candidates by what they cost and how good they are, and how the search went on.

    Args:
        costs: of each candidate, in the order of their evaluation.
        values: how good each is.
        generations: which generation each is of, from 0.
        front: costs, rising, and values of those that nothing is cheaper and as good as.
        best: position of the candidate that the search ends with.
        labels: what costs and values are.
        title: above the figure.
    """
    spent, good, rounds = np.asarray(costs, float), np.asarray(values, float), np.asarray(generations)
    unit, name = next(((u, n) for u, n in ((1e9, " [G]"), (1e6, " [M]"), (1e3, " [k]")) if spent.max() >= u), (1.0, ""))
    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1.0))
    points = left.scatter(spent / unit, good, c=rounds, cmap="viridis", s=14, alpha=0.8, linewidths=0)
    left.step(np.asarray(front[0]) / unit, front[1], where="post", color="tab:red", linewidth=1.3, label="front")
    left.plot(spent[best] / unit, good[best], "*", color="tab:red", markersize=13, label="chosen")
    left.set(xlabel=labels[0] + name, ylabel=labels[1])
    left.legend(frameon=False, loc="lower right")
    every = np.unique(rounds)
    if len(every) > 1:
        figure.colorbar(points, ax=left, label="generation", ticks=every[:: -(-len(every) // 10)])
    means = [np.nanmean(good[rounds == each]) for each in every]
    so_far = [np.nanmax(good[rounds <= each]) for each in every]
    right.plot(every, so_far, "o-", color="tab:red", markersize=4, label="best so far")
    right.plot(every, means, "o-", color="tab:blue", markersize=4, label="mean of the generation")
    right.axhline(means[0], color="tab:gray", linestyle="--", linewidth=1, label="mean of the first, random one")
    right.set(xlabel="generation", ylabel=labels[1])
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(frameon=False, loc="best")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def choices_that_win(
    every: Mapping[str, Sequence[float]], best: Mapping[str, Sequence[float]], title: str = ""
) -> Figure:
    """How often each value is chosen: by all candidates, and by the best of them.

    Args:
        every: name of a choice -> values in all candidates, of all layers.
        best: the same of the best ones.
        title: above the figure.
    """
    columns = min(4, len(every))
    rows = -(-len(every) // columns)
    figure = Figure(figsize=(2.9 * columns + 0.6, 2.6 * rows + 0.5), layout="constrained")
    figure.suptitle(title)
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (name, chosen) in zip(places, every.items(), strict=False):
        values = sorted({*chosen, *best[name]})
        x = np.arange(len(values))
        for offset, label, colour, found in (
            (-0.2, "all", "lightgrey", chosen),
            (0.2, "the best", "tab:blue", best[name]),
        ):
            axes.bar(
                x + offset, [np.mean(np.asarray(found) == value) for value in values], 0.4, color=colour, label=label
            )
        axes.set_xticks(x, [f"{value:g}" for value in values], fontsize=8 if len(values) < 7 else 6)
        axes.set(title=name, ylim=(0, 1))
        axes.title.set_fontsize(9)
    for axes in places[len(every) :]:
        axes.axis("off")
    places[0].set_ylabel("share")
    places[0].legend(frameon=False, fontsize=8)
    return figure
