"""The pictures of a result: learning curves with a band over seeds, and accuracy against compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from callbacks.whole_files import write_picture
from exp.claims.cells import Cell, State
from exp.claims.claim_file import Claim
from exp.loggers import MetricsTable

# Arms cost the same if they differ by less than this share.
SAME_COMPUTE = 0.02


def draw(claim: Claim, cells: Sequence[Cell], result: dict[str, Any], folder: Path) -> list[Path]:
    """Draws what the finished cells allow.

    Returns:
        The files written.
    """
    pictures = []
    curves = _curves(claim, cells)
    if curves:
        pictures.append(write_picture(folder / "learning_curves.png", learning_curves(claim, curves)))
    points = {name: arm for name, arm in result["arms"].items() if arm["mean"] is not None}
    if points:
        pictures.append(write_picture(folder / "comparison.png", comparison(claim, points)))
    costs = [arm["macs"] for arm in points.values() if arm["macs"]]
    if len(costs) > 1 and max(costs) > (1 + SAME_COMPUTE) * min(costs):
        pictures.append(write_picture(folder / "accuracy_compute.png", accuracy_compute(claim, points)))
        times = _latencies(cells)
        if len(times) > 1:
            timed = {name: arm for name, arm in points.items() if name in times}
            pictures.append(write_picture(folder / "accuracy_latency.png", accuracy_latency(claim, timed, times)))
    return pictures


def _curves(claim: Claim, cells: Sequence[Cell]) -> dict[str, dict[int, tuple[list[int], list[float]]]]:
    """arm -> seed -> steps and values of the metric, or of the validation metric like it."""
    found: dict[str, dict[int, tuple[list[int], list[float]]]] = {}
    for cell in cells:
        if cell.state is State.FINISHED:
            steps, values = MetricsTable(cell.path / "metrics.csv").series(claim.curve_metric)
            if len(steps) > 1:
                found.setdefault(cell.arm.name, {})[cell.seed] = (steps, values)
    return found


def _latencies(cells: Sequence[Cell]) -> dict[str, list[float]]:
    """arm -> milliseconds of an inference, an image, of each finished cell."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        if cell.state is State.FINISHED and math.isfinite(latency := cell.cost()["latency"]):
            found.setdefault(cell.arm.name, []).append(latency)
    return found


def learning_curves(claim: Claim, curves: dict[str, dict[int, tuple[list[int], list[float]]]]) -> Figure:
    """One line per arm, the mean over seeds, in a band from the lowest to the highest seed."""
    scale = claim.scale(claim.metric)
    figure, axes = _figure()
    for colour, (arm, seeds) in zip(_colours(len(curves)), curves.items(), strict=True):
        # Seeds that validated at other steps (on other devices) are brought to the steps of the first.
        steps = next(iter(seeds.values()))[0]
        values = scale * np.stack([np.interp(steps, *series) for series in seeds.values()])
        axes.plot(steps, values.mean(0), color=colour, label=arm, linewidth=1.4)
        axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
    count = max(len(seeds) for seeds in curves.values())
    axes.set(xlabel="optimiser steps", ylabel=_label(claim, claim.curve_metric))
    axes.set_title(f"{claim.name}: mean and range of {count} seeds", fontsize=10)
    # From top to bottom as the curves end.
    lines, names = axes.get_legend_handles_labels()
    order = np.argsort([-np.asarray(line.get_ydata())[-1] for line in lines])  # type: ignore[attr-defined]
    _legend(axes, [lines[i] for i in order], [names[i] for i in order])
    return figure


def comparison(claim: Claim, arms: dict[str, Any]) -> Figure:
    """Each arm's seeds, mean and 95 % interval."""
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(arms)), layout="constrained")
    axes = figure.add_subplot()
    for y, (arm, colour) in enumerate(zip(arms.values(), _colours(len(arms)), strict=True)):
        values = [v for v in arm["values"].values() if v is not None]
        axes.plot(values, [y] * len(values), "o", color=colour, markersize=4, alpha=0.5)
        axes.errorbar(arm["mean"], y, xerr=_error(arm), fmt="|", color=colour, markersize=14, capsize=4)
    axes.set_yticks(range(len(arms)), list(arms))
    axes.invert_yaxis()
    axes.set(xlabel=_label(claim, claim.metric))
    axes.set_title(f"{claim.name}: seeds, mean and 95 % interval", fontsize=10)
    axes.grid(alpha=0.3, axis="x")
    return figure


def accuracy_compute(claim: Claim, arms: dict[str, Any]) -> Figure:
    """The metric against executed multiply-adds an image."""
    figure, axes = _figure()
    known = {name: arm for name, arm in arms.items() if arm["macs"]}
    for colour, (name, arm) in zip(_colours(len(known)), known.items(), strict=True):
        macs = arm["macs"] / 1e6
        axes.errorbar(macs, arm["mean"], yerr=_error(arm), fmt="o", color=colour, capsize=3, markersize=5)
        axes.annotate(name, (macs, arm["mean"]), xytext=(6, 4), textcoords="offset points", fontsize=8, color=colour)
    axes.margins(x=0.15)
    axes.set(xlabel="executed multiply-adds an image, millions", ylabel=_label(claim, claim.metric))
    axes.set_title(f"{claim.name}: mean and 95 % interval against compute", fontsize=10)
    return figure


def accuracy_latency(claim: Claim, arms: dict[str, Any], times: dict[str, list[float]]) -> Figure:
    """The metric against the time of an inference, whose bars go from the fastest seed to the slowest."""
    figure, axes = _figure()
    for colour, (name, arm) in zip(_colours(len(arms)), arms.items(), strict=True):
        middle = float(np.median(times[name]))
        bars = [[middle - min(times[name])], [max(times[name]) - middle]]
        axes.errorbar(middle, arm["mean"], _error(arm), bars, fmt="o", color=colour, capsize=3, markersize=5)
        axes.annotate(name, (middle, arm["mean"]), xytext=(6, 4), textcoords="offset points", fontsize=8, color=colour)
    axes.margins(x=0.15)
    axes.set(xlabel="milliseconds of an inference, an image", ylabel=_label(claim, claim.metric))
    axes.set_title(f"{claim.name}: mean and 95 % interval against time", fontsize=10)
    return figure


def _label(claim: Claim, metric: str) -> str:
    return f"{metric},{claim.unit}" if claim.unit else metric


def _error(arm: dict[str, Any]) -> list[list[float]] | None:
    interval = arm["interval"]
    return None if interval is None else [[arm["mean"] - interval[0]], [interval[1] - arm["mean"]]]


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes


def _colours(count: int) -> list[Any]:
    known = colormaps["tab10"] if count <= 10 else colormaps["tab20"]
    return [known(i % known.N) for i in range(count)]


def _legend(axes: Axes, lines: list[Any], names: list[str]) -> None:
    if len(lines) > 6:
        axes.legend(lines, names, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        axes.legend(lines, names, frameon=False, fontsize=9)
