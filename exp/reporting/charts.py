"""Panels of curves and points, as SVG that is drawn without a library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from drawing.numbers import readable
from exp.markup import Markup, element, joined

WIDTH, HEIGHT = 420.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 10.0, 38.0
TICKS = 5


@dataclass(frozen=True)
class Line:
    """A curve of a run.

    Args:
        place: of the run on the page, which gives its colour.
        name: what it is called.
        steps, values: its points.
        faint: whether it is drawn behind others, as what training logs is.
    """

    place: int
    name: str
    steps: Sequence[float]
    values: Sequence[float]
    faint: bool = False


@dataclass(frozen=True)
class Scale:
    """From numbers to places in a panel.

    Args:
        low, high: what is shown.
        start, end: where they are.
        logarithmic: whether equal factors are equally long.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Where a number is."""
        low, high, value = (math.log(each) if self.logarithmic else each for each in (self.low, self.high, value))
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)


def curves(title: str, lines: Sequence[Line]) -> Markup:
    """Curves over the steps, with what a pointer needs to say their values."""
    steps = [step for line in lines for step in line.steps]
    x = Scale(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    y = _upright([value for line in lines for value in line.values])
    behind = not all(line.faint for line in lines)
    drawn = [
        element(
            "path",
            d="M" + "L".join(f"{x(s):.1f} {y(v):.1f}" for s, v in zip(line.steps, line.values, strict=True)),
            class_=f"line r{line.place % 20}" + (" faint" if line.faint and behind else ""),
            data_run=str(line.place),
            data_name=line.name,
            data_x=" ".join(f"{step:g}" for step in line.steps),
            data_y=" ".join(f"{value:.5g}" for value in line.values),
        )
        for line in sorted(lines, key=lambda line: not line.faint)
    ]
    # A curve of one point has no length.
    drawn += [
        _dot(x(line.steps[0]), y(line.values[0]), line.place, f"{line.name}: {line.values[0]:.5g}")
        for line in lines
        if len(line.steps) == 1
    ]
    return _panel(title, "step", x, y, [f"{tick:g}" for tick in ticks(x.low, x.high)], ticks(x.low, x.high), drawn)


def points(title: str, axis: str, found: Sequence[tuple[int, str, float, float]]) -> Markup:
    """A point for each run.

    Args:
        title: what is upwards.
        axis: what is to the right; counts, which are shown by their factors where they differ by much.
        found: place, name and both values of each.
    """
    counts = [each[2] for each in found]
    low, high = min(counts), max(counts)
    logarithmic = low > 0 and high > 4 * low
    margin = 1.15 if logarithmic else 0.05 * (high - low or high or 1.0)
    ends = (low / margin, high * margin) if logarithmic else (low - margin, high + margin)
    x = Scale(*ends, LEFT, WIDTH - RIGHT, logarithmic)
    y = _upright([each[3] for each in found])
    drawn = [
        _dot(x(count), y(value), place, f"{name}: {value:.5g} at {readable(count)}")
        for place, name, count, value in found
    ]
    marks = _factors(*ends) if logarithmic else ticks(*ends)
    return _panel(title, axis, x, y, [readable(mark) for mark in marks], marks, drawn)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two."""
    if high <= low:
        return [low]
    raw = (high - low) / TICKS
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _factors(low: float, high: float) -> list[float]:
    """Round numbers between two counts that differ by a factor, at most a handful."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [each for each in found if low <= each <= high]
        if len(found) <= TICKS:
            return found
    return found[:: -(-len(found) // TICKS)]


def _upright(values: Sequence[float]) -> Scale:
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or abs(high) * 0.05 or 0.5
    return Scale(low - margin, high + margin, HEIGHT - BOTTOM, TOP)


def _dot(x: float, y: float, place: int, told: str) -> Markup:
    return element(
        "circle", cx=x, cy=y, r=4, class_=f"dot r{place % 20}", data_run=str(place), data_told=told, tabindex="0"
    )


def _panel(
    title: str, axis: str, x: Scale, y: Scale, names: Sequence[str], marks: Sequence[float], drawn: Sequence[Markup]
) -> Markup:
    grid = []
    for tick in ticks(y.low, y.high):
        grid.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick), class_="grid"))
        grid.append(element("text", f"{tick:g}", x=LEFT - 5, y=y(tick) + 4, text_anchor="end"))
    for name, mark in zip(names, marks, strict=True):
        grid.append(element("text", name, x=x(mark), y=HEIGHT - BOTTOM + 15, text_anchor="middle"))
    grid.append(element("text", axis, x=WIDTH - RIGHT, y=HEIGHT - 5, text_anchor="end"))
    picture = element(
        "svg",
        joined(*grid),
        *drawn,
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="img",
        aria_label=f"{title} over {axis}",
        data_low=f"{x.low:g}",
        data_high=f"{x.high:g}",
        data_left=LEFT,
        data_right=WIDTH - RIGHT,
    )
    return element("figure", element("figcaption", title), picture, class_="panel")
