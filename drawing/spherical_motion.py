"""How far steps turn weights that norms follow, next to theory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from drawing.figures import IN_CAPTION, Series, evenly
from drawing.texts import short

# Steps that unit gradients are averaged over, as in the paper's figures.
SMOOTHED = 200
# Layers of one figure's lines, and of a legend.
FEW, NAMED = 3, 8


@dataclass
class Turning:
    """What a run logged of a layer, each as (steps, values).

    Args:
        angle: of a step, in radians.
        prediction: of it.
        norm: of the weight.
        equilibrium_norm: of the same, by theory.
        unit_gradient: norm of the gradient at length 1.
        travelled: angle over several steps, where that was asked for.
    """

    angle: Series = ((), ())
    prediction: Series = ((), ())
    norm: Series = ((), ())
    equilibrium_norm: Series = ((), ())
    unit_gradient: Series = ((), ())
    travelled: Series = ((), ())


@dataclass
class Turned:
    """A run: its layers from the first to the last, and what else is drawn of it.

    Args:
        layers: by name.
        curves: quantity -> (steps, values), such as the loss.
    """

    layers: dict[str, Turning] = field(default_factory=dict)
    curves: dict[str, Series] = field(default_factory=dict)


def motion_of_layers(layers: Mapping[str, Turning], title: str = "") -> Figure:
    """Unit gradients, norms and angular updates of a few layers, each next to its mean or to theory.

    Args:
        layers: by name, of which a few are drawn.
        title: above the figure.
    """
    figure = Figure(figsize=(15.6, 4.2), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 3)
    labels = ("squared unit gradient", "norm", "angular update, radians")
    for axes, label in zip(panels, labels, strict=True):
        axes.set(xlabel="optimiser steps", ylabel=label)
        axes.grid(alpha=0.3)
    names = evenly(list(layers), FEW)
    for name, colour in zip(names, _colours(len(names)), strict=True):
        layer, told = layers[name], short(name, IN_CAPTION)
        steps, units = (np.asarray(each) for each in layer.unit_gradient)
        if len(steps):
            panels[0].plot(steps, units**2, color=colour, alpha=0.25, linewidth=0.8)
            panels[0].plot(steps, _smooth(steps, units**2), color=colour, linewidth=1.6, label=told)
        _theory(panels[1], layer.norm, layer.equilibrium_norm, colour, told)
        panels[2].plot(*layer.angle, color=colour, alpha=0.85, linewidth=1.1, label=told)
    if names and len(layers[names[0]].prediction[0]):
        panels[2].plot(*layers[names[0]].prediction, color="black", linestyle="--", linewidth=1.4, label="theory")
    panels[1].plot([], [], color="grey", linestyle="--", label="theory")
    panels[0].plot([], [], color="grey", label=f"mean of {SMOOTHED} steps")
    for axes in (panels[0], panels[2]):
        _logarithmic(axes)
    for axes in panels:
        axes.legend(frameon=False, fontsize=8)
    return figure


def angular_updates(runs: Mapping[str, Turned], title: str = "") -> Figure:
    """The angular updates of all layers over the training, theory as steps: a panel a run.

    Args:
        runs: by name.
        title: above the figure.
    """
    figure = Figure(figsize=(max(7.0, 6.2 * len(runs)), 4.4), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, (run, turned) in zip(panels, runs.items(), strict=True):
        colours = colormaps["viridis"](np.linspace(0, 0.92, max(1, len(turned.layers))))
        for (name, layer), colour in zip(turned.layers.items(), colours, strict=True):
            axes.plot(*layer.angle, color=colour, linewidth=0.9, alpha=0.85, label=short(name, IN_CAPTION))
        predictions = {tuple(layer.prediction[1]): layer.prediction for layer in turned.layers.values()}
        for i, prediction in enumerate(predictions.values()):
            label = None if i else "theory"
            axes.plot(*prediction, color="black", linestyle="--", linewidth=1.4, drawstyle="steps-post", label=label)
        axes.set(xlabel="optimiser steps", ylabel="angular update, radians" if axes is panels[0] else "")
        axes.set_title(short(run, IN_CAPTION), fontsize=10)
        axes.grid(alpha=0.3)
        _logarithmic(axes)
        _legend(axes, len(turned.layers))
    return figure


def runs_beside(runs: Mapping[str, Turned], title: str = "") -> Figure:
    """Runs next to each other: the norm of one layer, the mean angular update, and each curve that one of them has.

    Args:
        runs: by name, with layers of the same names.
        title: above the figure.
    """
    first = next(iter(runs.values()))
    layer = evenly(list(first.layers), FEW)[min(1, len(first.layers) - 1)]
    quantities = list(dict.fromkeys(name for turned in runs.values() for name in turned.curves))
    figure = Figure(figsize=(4.6 * (2 + len(quantities)), 4.0), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 2 + len(quantities))
    for (run, turned), colour in zip(runs.items(), _colours(len(runs)), strict=True):
        told = short(run, IN_CAPTION)
        if layer in turned.layers:
            _theory(panels[0], turned.layers[layer].norm, turned.layers[layer].equilibrium_norm, colour, told)
        panels[1].plot(*_mean([each.angle for each in turned.layers.values()]), color=colour, linewidth=1.1, label=told)
        prediction = _mean([each.prediction for each in turned.layers.values()])
        panels[1].plot(*prediction, color=colour, linestyle="--", linewidth=1.2)
        for axes, name in zip(panels[2:], quantities, strict=True):
            axes.plot(*turned.curves.get(name, ((), ())), color=colour, linewidth=1.3, label=told)
    panels[0].set_title(f"{short(layer, IN_CAPTION)}; theory is dashed", fontsize=9)
    panels[1].set_title("mean of all layers; theory is dashed", fontsize=9)
    labels = ["norm", "angular update, radians", *quantities]
    for axes, label in zip(panels, labels, strict=True):
        axes.set(xlabel="optimiser steps", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    _logarithmic(panels[1])
    return figure


def travelled_ratio(many: Turned, one: Turned, steps: int, title: str = "") -> Figure:
    """The angle of several steps with small batches over that of one step with a batch as large as theirs together.

    Args:
        many: the run of small batches, whose layers say what they `travelled` in so many steps.
        one: the run of large batches.
        steps: how many small batches make a large one.
        title: above the figure.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    names = [name for name in many.layers if name in one.layers]
    for name, colour in zip(names, colormaps["viridis"](np.linspace(0, 0.92, max(1, len(names)))), strict=True):
        small, large = many.layers[name].travelled, one.layers[name].angle
        if len(small[0]) and len(large[0]):
            at = np.asarray(large[0]) / large[0][-1]
            angle = np.interp(at, np.asarray(small[0]) / small[0][-1], small[1])
            axes.plot(at, angle / np.asarray(large[1]), color=colour, linewidth=1, label=short(name, IN_CAPTION))
    axes.axhline(1, color="black", linestyle="--", linewidth=1.3, label="steps without a common direction: 1")
    told = f"steps in one direction: {np.sqrt(steps):.2g}"
    axes.axhline(np.sqrt(steps), color="black", linestyle=":", linewidth=1.3, label=told)
    axes.set(xlabel="share of the training", ylabel=f"angle of {steps} small steps by that of a large one")
    axes.set_ylim(0, 1.2 * np.sqrt(steps))
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    _legend(axes, len(names))
    return figure


def _smooth(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means over the steps before each."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.searchsorted(steps, steps - SMOOTHED, side="right")
    last = np.arange(1, len(steps) + 1)
    found: np.ndarray = (sums[last] - sums[first]) / (last - first)
    return found


def _mean(lines: Sequence[Series]) -> Series:
    lines = [line for line in lines if len(line[0])]
    if not lines:
        return (), ()
    steps = lines[0][0]
    return steps, np.mean([np.interp(steps, *line) for line in lines], 0).tolist()


def _theory(axes: Axes, measured: Series, theory: Series, colour: Any, label: str) -> None:
    axes.plot(*measured, color=colour, linewidth=1.3, label=label)
    axes.plot(*theory, color=colour, linestyle="--", linewidth=1.1)


def _logarithmic(axes: Axes) -> None:
    """Where values span more than half a decade or so, which they do at a drop; ticks are plain numbers."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()] or [np.ones(1)])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 3 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if values.max() < 1e3 * values.min() else (1.0,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes, layers: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if layers > NAMED:
        # The first and the last layer stand for those between them.
        kept = [0, layers - 1, *range(layers, len(labels))]
        handles, labels = [handles[i] for i in kept], [labels[i] for i in kept]
        labels[:2] = [f"first of {layers}: {labels[0]}", f"last: {labels[1]}"]
    axes.legend(handles, labels, frameon=False, fontsize=8)


def _colours(count: int) -> list[Any]:
    return [colormaps["tab10"](i % 10) for i in range(count)]
