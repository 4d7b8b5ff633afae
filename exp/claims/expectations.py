"""The language of `expect:`: inequalities between arms and numbers, and how seeds answer them.

    entangled > classic                      the claim's metric, arm against arm
    fine_tune <= scratch + 0.5               sums, differences, products and quotients
    macs(pruned) < 0.6 * macs(dense)         a measured cost: macs, params, seconds, throughput
    'val/loss'(a) < 'val/loss'(b)            another logged metric
    |one - two| < 0.5                        equal within a margin
    c > b > a                                a chain: each pair is answered by itself

An arm stands for its value at one seed; the seeds are paired.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple

from exp.claims.sequential import Looks, once
from exp.claims.statistics import Estimate, Judgement, Verdict, all_of, any_of, estimate, judge, level

COSTS = ("macs", "params", "seconds", "throughput")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))|(?P<metric>'[^']+'|\"[^\"]+\")"
    r"|(?P<name>[A-Za-z_][\w.]*)|(?P<sign><=|>=|[-+*/()|<>]))"
)
_COMPARISONS = ("<", "<=", ">", ">=")

# (quantity, arm) -> its value at the seed in question; the quantity "" is the claim's metric.
Values = Callable[[str, str], float]
Operator = Literal["+", "-", "*", "/"]


class ExpectationError(ValueError):
    """An expectation that cannot be understood; the message says what is wrong and what is known."""


class Number(NamedTuple):
    """A constant."""

    value: float

    def at(self, values: Values) -> float:
        """The constant itself."""
        return self.value

    def quantities(self) -> set[tuple[str, str]]:
        """None."""
        return set()


class Quantity(NamedTuple):
    """What was measured of an arm: `""` (the claim's metric), a cost, or the name of another metric."""

    name: str
    arm: str

    def at(self, values: Values) -> float:
        """Its value at a seed."""
        return values(self.name, self.arm)

    def quantities(self) -> set[tuple[str, str]]:
        """Itself."""
        return {(self.name, self.arm)}


class Operation(NamedTuple):
    """Arithmetic of two terms."""

    operator: Operator
    left: Term
    right: Term

    def at(self, values: Values) -> float:
        """Its value at a seed; a division by zero is not a number."""
        a, b = self.left.at(values), self.right.at(values)
        if self.operator == "+":
            return a + b
        if self.operator == "-":
            return a - b
        if self.operator == "*":
            return a * b
        return a / b if b else float("nan")

    def quantities(self) -> set[tuple[str, str]]:
        """What both sides need."""
        return self.left.quantities() | self.right.quantities()


Term = Number | Quantity | Operation


class Expectation(NamedTuple):
    """`left sign right`; with `absolute`, of the size of `left`.

    Args:
        text: as written.
        left: the left side.
        sign: the comparison.
        right: the right side.
        absolute: whether the left side stands between bars.
    """

    text: str
    left: Term
    sign: Literal["<", "<=", ">", ">="]
    right: Term
    absolute: bool

    def quantities(self) -> set[tuple[str, str]]:
        """All (quantity, arm) that it speaks of."""
        return self.left.quantities() | self.right.quantities()

    def answer(
        self,
        seeds: Collection[int],
        value: Callable[[str, str, int], float],
        step: float = 0.0,
        looks: Looks | None = None,
    ) -> Answer:
        """The verdict over seeds, and the estimate of left minus right (for an absolute one: of left).

        `|e| < c` means -c < e < c of the mean, which is tested as two inequalities: the spread over seeds of a
        difference around zero makes the mean of its size positive even where the mean difference is zero.

        Args:
            seeds: the seeds, in the order in which they were looked at; each pairs the arms.
            value: (quantity, arm, seed) -> what was measured; infinite where the arm diverged.
            step: what the quantities move by, 0 for continuous ones (see `statistics.spread`).
            looks: the looks at these seeds; one at all of them if it is left out.
        """
        # Seen from the side of whoever hopes: positive means that the expectation is met.
        direction = 1 if self.sign in (">", ">=") else -1
        strict = self.sign in ("<", ">")
        at: list[Values] = [_at(value, seed) for seed in seeds]
        lefts, rights = [self.left.at(v) for v in at], [self.right.at(v) for v in at]
        looks = looks or once(len(lefts))
        margins = [direction * (a - b) for a, b in zip(lefts, rights, strict=True)]
        sides = [judge(margins, strict, step, looks)]
        if not self.absolute:
            found = sides[0].found if direction > 0 else sides[0].found.turned()
            return Answer(sides[0].verdict, sides[0].settled, found, sides)
        sides.append(judge([direction * (-a - b) for a, b in zip(lefts, rights, strict=True)], strict, step, looks))
        verdict = (all_of if direction < 0 else any_of)([side.verdict for side in sides])
        at_looks = [side.settled for side in sides if side.verdict is verdict and side.settled is not None]
        # Lying within a margin is settled once both of its ends are; lying outside of it, once one is.
        both = direction < 0 if verdict is Verdict.HOLDS else direction > 0
        settled = (max if both else min)(at_looks) if at_looks else None
        finite = [left for left in lefts if math.isfinite(left)]
        error = level(looks, len(looks.counts) - 1)
        found = estimate(finite, step, error) if finite else Estimate(math.nan, None, None, 0)
        return Answer(verdict, settled, found, sides)


@dataclass(frozen=True)
class Answer:
    """What the seeds say to an expectation.

    Args:
        verdict: the answer.
        settled: number of seeds at the look that settled it; None while it is open.
        found: the estimate of left minus right; of an absolute expectation, of what stands between the bars.
        sides: the inequalities that were tested: one, or of an absolute expectation two.
    """

    verdict: Verdict
    settled: int | None
    found: Estimate
    sides: list[Judgement]


def _at(value: Callable[[str, str, int], float], seed: int) -> Values:
    return lambda quantity, arm: value(quantity, arm, seed)


def parse(text: str, arms: Collection[str]) -> list[Expectation]:
    """The expectations of one line; a chain `a < b < c` is several.

    Args:
        text: the line.
        arms: names that may occur.

    Raises:
        ExpectationError: an unknown arm or quantity, or a line that is no inequality.
    """
    return _Parser(text, arms).line()


def parse_term(text: str, arms: Collection[str]) -> Term:
    """A number that follows from what arms have measured, such as `20 * macs(large) / macs(small)`.

    Args:
        text: the arithmetic.
        arms: names that may occur.

    Raises:
        ExpectationError: an unknown arm or quantity, no arm at all, or what is no number.
    """
    return _Parser(text, arms).number()


class _Parser:
    """Recursive descent over the tokens of a line."""

    def __init__(self, text: str, arms: Collection[str]) -> None:
        self.text = text
        self.arms = list(arms)
        self.tokens: list[tuple[str, str, int]] = []
        position = 0
        while position < len(text.rstrip()):
            match = _TOKEN.match(text, position)
            if match is None:
                rest = text[position:].strip()
                hint = "; for equality within a margin write |a - b| < margin" if rest.startswith("=") else ""
                raise ExpectationError(f"'{text}': cannot read '{rest}'{hint}")
            kind = match.lastgroup or ""
            self.tokens.append((kind, match[kind], match.start(kind)))
            position = match.end()
        self.next = 0

    def line(self) -> list[Expectation]:
        found = []
        start, absolute, left = self._side()
        while self._peek() in _COMPARISONS:
            sign = self._take()
            right_start, right_absolute, right = self._side()
            text = self.text[start : self._offset()].strip()
            if absolute and right_absolute:
                raise ExpectationError(f"'{text}': bars on one side only")
            if right_absolute:
                mirrored = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}[sign]
                found.append(Expectation(text, right, mirrored, left, True))  # type: ignore[arg-type]
            else:
                found.append(Expectation(text, left, sign, right, absolute))  # type: ignore[arg-type]
            start, absolute, left = right_start, right_absolute, right
        if self.next < len(self.tokens):
            raise ExpectationError(f"'{self.text}': did not expect '{self.tokens[self.next][1]}'")
        if not found:
            raise ExpectationError(f"'{self.text}' is no inequality: it needs one of {', '.join(_COMPARISONS)}")
        for expectation in found:
            if not expectation.quantities():
                raise ExpectationError(f"'{expectation.text}' names no arm; the arms are {', '.join(self.arms)}")
        return found

    def number(self) -> Term:
        term = self._sum()
        if self.next < len(self.tokens):
            raise ExpectationError(f"'{self.text}': did not expect '{self.tokens[self.next][1]}'")
        if not term.quantities():
            raise ExpectationError(f"'{self.text}' names no arm; the arms are {', '.join(self.arms)}")
        return term

    def _side(self) -> tuple[int, bool, Term]:
        start = self._offset()
        if self._peek() == "|":
            self._take()
            inner = self._sum()
            self._demand("|")
            return start, True, inner
        return start, False, self._sum()

    def _sum(self) -> Term:
        term = self._product()
        while self._peek() in ("+", "-"):
            operator = self._take()
            term = Operation(operator, term, self._product())  # type: ignore[arg-type]
        return term

    def _product(self) -> Term:
        term = self._factor()
        while self._peek() in ("*", "/"):
            operator = self._take()
            term = Operation(operator, term, self._factor())  # type: ignore[arg-type]
        return term

    def _factor(self) -> Term:
        if self.next >= len(self.tokens):
            raise ExpectationError(f"'{self.text}' ends too early")
        kind, word, _ = self.tokens[self.next]
        self.next += 1
        if word == "-":
            return Operation("-", Number(0.0), self._factor())
        if word == "(":
            term = self._sum()
            self._demand(")")
            return term
        if kind == "number":
            return Number(float(word))
        if kind == "metric":
            return Quantity(word[1:-1], self._argument(word))
        if kind == "name" and self._peek() == "(":
            if word not in COSTS:
                raise ExpectationError(
                    f"'{self.text}': '{word}' is no cost{nearest(word, COSTS)} (a metric is quoted: 'val/loss'(arm))"
                )
            return Quantity(word, self._argument(word))
        if kind == "name":
            return Quantity("", self._arm(word))
        raise ExpectationError(f"'{self.text}': did not expect '{word}'")

    def _argument(self, of: str) -> str:
        self._demand("(")
        if self.next >= len(self.tokens):
            raise ExpectationError(f"'{self.text}': {of}( needs an arm")
        kind, word, _ = self.tokens[self.next]
        if kind != "name":
            raise ExpectationError(f"'{self.text}': {of}({word} ...) needs the name of an arm")
        self.next += 1
        arm = self._arm(word)
        self._demand(")")
        return arm

    def _arm(self, name: str) -> str:
        if name not in self.arms:
            raise ExpectationError(f"'{self.text}': no arm '{name}'{nearest(name, self.arms)}")
        return name

    def _peek(self) -> str:
        return self.tokens[self.next][1] if self.next < len(self.tokens) else ""

    def _take(self) -> str:
        word = self._peek()
        self.next += 1
        return word

    def _demand(self, word: str) -> None:
        if self._peek() != word:
            raise ExpectationError(f"'{self.text}': '{word}' is missing")
        self.next += 1

    def _offset(self) -> int:
        return self.tokens[self.next][2] if self.next < len(self.tokens) else len(self.text)


def nearest(name: str, choices: Collection[str]) -> str:
    """What may have been meant, or what there is to choose from."""
    near = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; choose from {', '.join(choices)}"
