"""Pictures of what dynamic networks decide, as matplotlib figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

PANELS_IN_A_ROW = 5
# More names than that are not readable.
MOST_NAMES = 50


def kernel_attention(layers: Mapping[str, np.ndarray], names: Sequence[str], title: str = "") -> Figure:
    """Which kernels a class uses: a panel for each layer, a row for each class, a column for each kernel.

    Colour is the difference to the kernel's mean over all classes, which is written below it: a layer that does not
    look at its input is white.

    Args:
        layers: name -> mean coefficients [K, n]; rows of classes without samples are NaN.
        names: names of the K classes.
        title: above the figure.
    """
    columns = min(PANELS_IN_A_ROW, len(layers))
    rows = math.ceil(len(layers) / columns)
    kernels = max(means.shape[1] for means in layers.values())
    height = min(6.0, max(2.0, 0.22 * len(names) + 0.9))
    width = max(2.0, 0.36 * kernels + 0.8)
    figure = Figure(figsize=(width * columns + 1.2, height * rows + 0.6), layout="constrained")
    figure.suptitle(title)
    every = figure.subplots(rows, columns, squeeze=False).ravel()
    differences = {layer: means - np.nanmean(means, 0) for layer, means in layers.items()}
    # A scale for all, so that layers can be compared.
    limit = max(1e-6, *(np.nanmax(np.abs(each)) for each in differences.values()))
    for i, (axes, (layer, difference)) in enumerate(zip(every, differences.items(), strict=False)):
        picture = axes.imshow(
            difference, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
        )
        axes.set_title(layer, fontsize=8)
        means = np.nanmean(layers[layer], 0)
        axes.set_xticks(
            range(len(means)), [f"{mean:.2f}" for mean in means], fontsize=7, rotation=0 if len(means) <= 4 else 90
        )
        first = i % columns == 0 and len(names) <= MOST_NAMES
        axes.set_yticks(range(len(names)) if first else [], names if first else [], fontsize=7)
    for axes in every[len(layers) :]:
        axes.axis("off")
    bar = figure.colorbar(picture, ax=every.tolist(), fraction=0.03, pad=0.01)
    bar.set_label("difference to the mean below", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.supxlabel("kernels, with their mean coefficients over classes", fontsize=8)
    return figure


def choices_by_class(
    counts: np.ndarray, names: Sequence[str], choices: Sequence[str], costs: Sequence[float], title: str = ""
) -> Figure:
    """Shares of the choices in each class, as stacked bars; the most expensive class is at the top.

    Args:
        counts: [K, m] images of a class that got a choice.
        names: names of the K classes.
        choices: names of the m choices.
        costs: what the m choices cost, as shares of the dearest; classes and bars are ordered by them.
        title: above the figure.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    spent = shares @ np.asarray(costs)
    order = np.argsort(spent, kind="stable")
    figure = Figure(figsize=(7.2, min(12.0, 0.28 * len(names) + 1.8)), layout="constrained")
    axes = figure.add_subplot()
    start = np.zeros(len(names))
    cheapest_first = np.argsort(costs)
    for place, choice in enumerate(cheapest_first):
        width = shares[order, choice]
        # From light to dark, as cost grows.
        colour = str(0.85 - 0.7 * place / max(1, len(choices) - 1))
        of_all = counts[:, choice].sum() / max(1, counts.sum())
        axes.barh(range(len(names)), width, left=start, color=colour, label=f"{choices[choice]}: {of_all:.0%}")
        start = start + width
    axes.set(xlim=(0, 1), ylim=(-0.6, len(names) - 0.4), xlabel="share of the class")
    if len(names) <= MOST_NAMES:
        axes.set_yticks(range(len(names)), [names[k] for k in order])
        for i, k in enumerate(order):
            axes.annotate(f"{spent[k]:.0%}", (1, i), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_title("compute", loc="right", fontsize=8)
    else:
        axes.set_yticks([])
        axes.set_ylabel("classes, by compute")
    figure.suptitle(title)
    figure.legend(loc="outside lower center", ncols=min(4, len(choices)), frameon=False)
    return figure
