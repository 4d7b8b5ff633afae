"""What was found for an expectation, drawn: its interval, zero, and the boundary that the interval must clear."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drawing.numbers import readable
from exp.claims.claim_file import counts_compute, is_share
from exp.claims.expectations import Expectation, Operation, Term, parse
from exp.markup import Markup, element

WIDTH, HEIGHT = 280, 46
# Where the interval lies, and the lines around it end.
MIDDLE, TOP, BOTTOM = 15, 3, 28
# Two numbers below the lines need so much room.
APART = 34


@dataclass(frozen=True)
class Found:
    """An estimate beside what was expected of it, in the unit of the result.

    A number that an expectation adds is its boundary: of `a > b + 3`, `a - b` is shown, which should be above 3.

    Args:
        mean: over the seeds.
        low: lower end of the interval; None if there is none.
        high: upper end.
        boundaries: one number, or for `|a - b| < c` the two -c and c; none where they were not recorded.
        above: whether the mean should be above the boundary; of two, beyond them.
        strict: whether it may not be the boundary itself.
        difference: whether arms are compared with each other, so that zero says something.
        unit: what follows a number.
        counts: whether it is a number of parameters or multiply-adds.
    """

    mean: float
    low: float | None
    high: float | None
    boundaries: tuple[float, ...]
    above: bool
    strict: bool
    difference: bool
    unit: str
    counts: bool

    def words(self) -> str:
        """Mean, interval and boundary."""
        said, unit = self._number(self.mean), f" {self.unit}" if self.unit else ""
        if self.low is not None and self.high is not None:
            low, high = self._number(self.low), self._number(self.high)
            said += f"{unit}, all seeds alike" if low == said == high else f" [{low}, {high}]{unit}"
        else:
            said += unit
        if not self.boundaries:
            return said
        # The number stays in the line of its word.
        boundary = "\u00a0" + self.mark(self.boundaries[-1])
        if len(self.boundaries) == 2:
            return f"{said}; expected: {'beyond' if self.above else 'within'}{boundary.replace('+', '±')}"
        sides = ("above", "below") if self.strict else ("at\u00a0least", "at\u00a0most")
        return f"{said}; expected: {sides[0] if self.above else sides[1]}{boundary}"

    def size(self, value: float) -> str:
        """A difference without its sign."""
        return self._number(abs(value)).removeprefix("+") + (f" {self.unit}" if self.unit else "")

    def mark(self, value: float) -> str:
        """A boundary, with no more digits than it has."""
        if self.counts:
            return self._number(value)
        return _signed(f"{value:.6g}", self.difference)

    def _number(self, value: float) -> str:
        if abs(value) < 1e-9:
            # Sums of decimal fractions miss zero by so much.
            value = 0.0
        if self.counts:
            size = readable(abs(value)) if abs(value) >= 1000 else f"{abs(value):.3g}"
            return _signed(("-" if value < 0 else "") + size, self.difference)
        # Two digits of the interval's half width, or three of the mean.
        half = 0.0 if self.low is None or self.high is None else (self.high - self.low) / 2
        scale = half if half > 1e-4 * abs(self.mean) else self.mean / 10
        decimals = max(int(abs(scale) < 100), 1 - math.floor(math.log10(abs(scale)))) if scale else 0
        return _signed(f"{value:.{decimals}f}" if decimals <= 6 else f"{value:.3g}", self.difference)


def found(answer: Mapping[str, Any], result: Mapping[str, Any]) -> Found | None:
    """What a result says of an expectation; None if it has no estimate.

    Args:
        answer: the entry in `expectations`.
        result: what `results.json` holds.

    Raises:
        ValueError: the expectation is none, or an estimate is no number.
    """
    estimate = answer.get("difference")
    if not estimate or estimate["mean"] is None:
        return None
    arms = result["arms"]
    expectation = parse(answer["expect"], list(arms))[0]
    ends = [None, None] if estimate["interval"] is None else [number(end) for end in estimate["interval"]]
    values = [number(estimate["mean"]), *ends]
    above = expectation.sign in (">", ">=")
    boundaries: tuple[float, ...]
    if expectation.absolute:
        bound = expectation.right.at(lambda quantity, arm: _recorded(arms, quantity, arm))
        boundaries = (-bound, bound) if math.isfinite(bound) else ()
    else:
        added = _constant(expectation.left) - _constant(expectation.right)
        values = [value if value is None else value - added for value in values]
        boundaries = (-added,)
        if not expectation.left.quantities():
            # Of `90 < a`, `a` is shown, not `-a`.
            values = [value if value is None else -value for value in (values[0], values[2], values[1])]
            boundaries, above = (added,), not above
    mean, low, high = values
    assert mean is not None
    difference = len(expectation.quantities()) > 1
    unit, counts = _unit(expectation, result, difference)
    return Found(mean, low, high, boundaries, above, expectation.sign in "<>", difference, unit, counts)


def number(value: Any) -> float:
    """What a result gives as a number.

    Raises:
        ValueError: it is none, or none that can be drawn.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e100:
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _recorded(arms: Mapping[str, Any], quantity: str, arm: str) -> float:
    """The mean of a quantity that results hold for each arm; NaN for others."""
    value = arms[arm].get({"": "mean"}.get(quantity, quantity)) if quantity in ("", "macs", "params") else None
    return math.nan if value is None else number(value)


def _constant(term: Term) -> float:
    """The number that a sum adds to what was measured."""
    if isinstance(term, Operation) and term.operator in ("+", "-"):
        right = _constant(term.right)
        return _constant(term.left) + (right if term.operator == "+" else -right)
    if term.quantities():
        return 0.0
    return term.at(lambda quantity, arm: math.nan)


def _unit(expectation: Expectation, result: Mapping[str, Any], difference: bool) -> tuple[str, bool]:
    """The unit of both sides, and whether it is a count; none if they are of several."""
    names = {name or result["metric"] for name, _ in expectation.quantities()}
    if all(counts_compute(name) for name in names):
        return "multiply-adds", True
    if names == {"params"}:
        return "parameters", True
    if names == {"seconds"}:
        return "s", False
    if names == {"throughput"}:
        return "images/s", False
    if result["unit"] == "%" and all("/" in name and is_share(name) for name in names):
        return ("points" if difference else "%"), False
    return "", False


def draw(shown: Found, verdict: str) -> Markup:
    """The picture: the side where the expectation is met, zero, boundary, interval and mean.

    Args:
        shown: what was found.
        verdict: class of the interval.
    """
    place = _scale(shown)
    parts = [
        element("rect", class_="met", x=left, y=TOP, width=right - left, height=BOTTOM - TOP)
        for left, right in _met(shown, [place(b) for b in shown.boundaries])
    ]
    parts.append(element("line", class_="axis", x1=0, x2=WIDTH, y1=BOTTOM, y2=BOTTOM))
    zero = shown.difference and all(abs(place(b) - place(0)) > 1 for b in shown.boundaries)
    if zero:
        parts.append(element("line", class_="zero", x1=place(0), x2=place(0), y1=TOP, y2=BOTTOM))
    for boundary in shown.boundaries:
        x = place(boundary)
        parts.append(element("line", class_="boundary", x1=x, x2=x, y1=TOP, y2=BOTTOM + 4))
        parts.append(_label(x, shown.mark(boundary)))
    if zero and all(abs(place(b) - place(0)) > APART for b in shown.boundaries):
        parts.append(_label(place(0), "0"))
    drawn = [element("circle", cx=place(shown.mean), cy=MIDDLE, r=4)]
    if shown.low is not None and shown.high is not None:
        low, high = place(shown.low), place(shown.high)
        drawn.append(element("path", d=f"M{low:.1f} {MIDDLE}H{high:.1f}"))
        if high - low > 8:
            drawn.append(element("path", d=f"M{low:.1f} {MIDDLE - 5}v10M{high:.1f} {MIDDLE - 5}v10"))
    parts.append(element("g", *drawn, class_=f"interval {verdict}"))
    size: dict[str, str] = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "width": str(WIDTH), "height": str(HEIGHT)}
    return element("svg", *parts, role="img", aria_label=shown.words(), **size)


def _scale(shown: Found) -> Callable[[float], float]:
    """From values to places, so that all there is to see is inside."""
    ends = [shown.mean, *shown.boundaries, *(end for end in (shown.low, shown.high) if end is not None)]
    if shown.difference:
        ends.append(0.0)
    low, high = min(ends), max(ends)
    span = high - low if high - low > 1e-9 * max(abs(low), abs(high)) else max(1.0, abs(high)) / 10
    middle = (low + high) / 2
    return lambda value: WIDTH * (0.5 + 0.8 * (value - middle) / span)


def _met(shown: Found, places: Sequence[float]) -> list[tuple[float, float]]:
    """Where the expectation is met, from left to right."""
    if len(places) == 2:
        return [(0, places[0]), (places[1], WIDTH)] if shown.above else [(places[0], places[1])]
    return [(places[0], WIDTH) if shown.above else (0, places[0])] if places else []


def _label(x: float, words: str) -> Markup:
    return element("text", words, x=min(WIDTH - 20, max(20, x)), y=HEIGHT - 3, text_anchor="middle")


def _signed(number: str, plus: bool) -> str:
    """With a minus that is as wide as a plus."""
    negative = number.startswith("-") and any(digit in "123456789" for digit in number)
    number = number.removeprefix("-")
    return ("−" if negative else "+" if plus and any(d in "123456789" for d in number) else "") + number
