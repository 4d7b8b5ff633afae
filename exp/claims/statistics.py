"""What a few seeds can say: means, intervals, and verdicts on which an interval and the signs of differences agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
from scipy.stats import t as student

from exp.claims.sequential import ERROR, FEWEST_TO_SETTLE, Looks, Signs, once, signs, t_bounds

# What is counted exactly, such as multiply-adds, is taken for the same with every seed once it was with three.
FEWEST_SEEDS = 3
# Nobody runs more; the numbers that would be needed are not worth telling.
MOST_SEEDS = 1000


class Verdict(StrEnum):
    """The answer to an expectation."""

    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    INCONCLUSIVE = "inconclusive"
    NONE = "no verdict"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval.

    Args:
        mean: the mean.
        low: lower end of the interval; None for fewer than two values.
        high: upper end.
        count: number of values.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    def turned(self) -> Estimate:
        """That of the values with the other sign."""
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return Estimate(-self.mean, low, high, self.count)


@dataclass(frozen=True)
class Judgement:
    """The answer to one inequality, and what stands behind it.

    Args:
        verdict: the answer.
        found: the mean margin, of the seeds that have a finite one, and its interval at the last look.
        settled: number of seeds at the look that settled it; None while it is open.
        by_interval: what the t interval alone would say at the last look.
        signs: what the signs say for the expectation, and against it.
        deviation: standard deviation of the margins.
        lone: position of the one seed without which the interval would leave it open; None if there is none.
    """

    verdict: Verdict
    found: Estimate
    settled: int | None = None
    by_interval: Verdict = Verdict.INCONCLUSIVE
    signs: tuple[Signs, Signs] | None = None
    deviation: float = 0.0
    lone: int | None = None


def spread(values: Sequence[float], step: float = 0.0) -> float:
    """The standard deviation of values, s.

    An accuracy on a few hundred images moves in steps. Where a few seeds happen to differ by the same number of steps,
    s would be zero and an interval a point; then it is that of rounding two values to such steps, step / sqrt(6).

    Args:
        values: two or more.
        step: what the measured quantities move by, 0 for continuous ones.
    """
    array = np.asarray(values, dtype=np.float64)
    # Equal values differ from their own mean by rounding alone.
    if np.ptp(array) <= 1e-9 * max(1.0, abs(float(array.mean()))):
        return step / math.sqrt(6)
    return float(array.std(ddof=1))


def estimate(values: Sequence[float], step: float = 0.0, error: float = ERROR) -> Estimate:
    """The mean and its two-sided Student-t interval, mean ± t(n - 1) s / sqrt(n).

    Args:
        values: one per seed; for a paired comparison, the differences within each seed.
        step: see `spread`.
        error: on either side; 2.5 % make a 95 % interval.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"an estimate needs finite values, got {list(values)}")
    mean = float(array.mean())
    if array.size < 2:
        return Estimate(mean, None, None, 1)
    half = half_width(spread(values, step), array.size, error)
    return Estimate(mean, mean - half, mean + half, int(array.size))


def half_width(deviation: float, count: int, error: float = ERROR) -> float:
    """Half of a t interval, t(n - 1) s / sqrt(n).

    Args:
        deviation: s.
        count: n.
        error: on either side.
    """
    return _quantile(error, count - 1) * deviation / math.sqrt(count)


def smallest_step(values: Sequence[float]) -> float:
    """The smallest difference between two values that are not equal; 0 if all are."""
    ordered = np.unique(np.asarray(values, dtype=np.float64))
    gaps = np.diff(ordered)
    gaps = gaps[gaps > 1e-9 * np.maximum(1.0, np.abs(ordered[1:]))]
    return float(gaps.min()) if gaps.size else 0.0


@lru_cache(maxsize=1024)
def _quantile(error: float, freedom: int) -> float:
    return float(student.isf(error, freedom))


@lru_cache(maxsize=1024)
def level(looks: Looks, look: int) -> float:
    """The error at which the interval of a look is drawn, so that all looks together keep what is promised."""
    bound, count = t_bounds(looks)[look], looks.counts[look]
    # Before anything can be settled, the interval is that of a single look, for information.
    return float(student.sf(bound, count - 1)) if math.isfinite(bound) else ERROR


def judge(margins: Sequence[float], strict: bool, step: float = 0.0, looks: Looks | None = None) -> Judgement:
    """Whether margins are positive: settled at the first look at which both the t interval and the signs say so.

    Args:
        margins: by how much the expectation is met, for each seed; infinite where one side of it diverged, and not a
            number where both did.
        strict: whether a margin of exactly zero fails the expectation, as `>` has it, unlike `>=`.
        step: see `spread`.
        looks: the looks at these seeds; one look at all of them if it is left out.

    Returns:
        *holds* if the whole interval is on the right side of zero and the signs are on it too often for chance, *does
        not hold* if it is the wrong side, and *inconclusive* else; no verdict for fewer than three seeds.
    """
    looks = looks or once(len(margins))
    values = [0.0 if math.isnan(margin) else margin for margin in margins]
    # Where both sides diverged there is no margin to average.
    finite = [value for value, margin in zip(values, margins, strict=True) if math.isfinite(margin)]
    last = len(looks.counts) - 1
    found = estimate(finite, step, level(looks, last)) if finite else Estimate(math.nan, None, None, 0)
    deviation = spread(finite, step) if len(finite) > 1 else 0.0
    if len(margins) < FEWEST_SEEDS:
        return Judgement(Verdict.NONE, found, deviation=deviation)
    if len(finite) == len(margins) and found.low == found.high:
        yes = found.mean > 0 or (found.mean == 0 and not strict)
        verdict = Verdict.HOLDS if yes else Verdict.DOES_NOT_HOLD
        return Judgement(verdict, found, looks.counts[0], verdict)
    sides = signs(values, looks), signs([-value for value in values], looks)
    verdict, settled, by_interval = Verdict.INCONCLUSIVE, None, Verdict.INCONCLUSIVE
    for look, count in enumerate(looks.counts):
        seen = [value for value in values[:count] if math.isfinite(value)]
        by_interval = _by_interval(seen, step, level(looks, look))
        for answer, side in zip((Verdict.HOLDS, Verdict.DOES_NOT_HOLD), sides, strict=True):
            # Where so many seeds diverged that no interval can be drawn, the signs stand alone.
            agreed = by_interval is answer or len(seen) < FEWEST_SEEDS
            if settled is None and agreed and side.settled is not None and side.settled <= look:
                verdict, settled = answer, count
    # What an earlier look has settled stays so, though the last interval may be wider: then no seed carries it.
    carried = settled is not None and by_interval is verdict
    lone = _lone(values, verdict, step, level(looks, last)) if carried else None
    return Judgement(verdict, found, settled, by_interval, sides, deviation, lone)


def _by_interval(margins: Sequence[float], step: float, error: float) -> Verdict:
    """What the interval alone says."""
    if len(margins) < FEWEST_SEEDS:
        return Verdict.INCONCLUSIVE
    found = estimate(margins, step, error)
    assert found.low is not None
    assert found.high is not None
    if found.low > 0:
        return Verdict.HOLDS
    return Verdict.DOES_NOT_HOLD if found.high < 0 else Verdict.INCONCLUSIVE


def _lone(values: Sequence[float], verdict: Verdict, step: float, error: float) -> int | None:
    """The seed without which the interval would not say so, if there is just one."""
    decisive = []
    for i, value in enumerate(values):
        others = [other for j, other in enumerate(values) if j != i and math.isfinite(other)]
        if math.isfinite(value) and _by_interval(others, step, error) is not verdict:
            decisive.append(i)
    return decisive[0] if len(decisive) == 1 else None


def seeds_for(difference: float, deviation: float) -> int | None:
    """How many seeds settle a difference in four of five trials, fixed beforehand; None for more than a thousand.

    Args:
        difference: the mean difference.
        deviation: standard deviation of the differences of pairs, in the same unit.
    """
    for count in range(FEWEST_TO_SETTLE, MOST_SEEDS + 1):
        error = once(count).errors()[0]
        needed = _quantile(error, count - 1) + _quantile(0.2, count - 1)
        if needed * deviation <= abs(difference) * math.sqrt(count):
            return count
    return None


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a claim of several expectations: it holds if all do, and does not if one does not."""
    for worst in (Verdict.DOES_NOT_HOLD, Verdict.NONE, Verdict.INCONCLUSIVE):
        if worst in verdicts:
            return worst
    return Verdict.HOLDS


def any_of(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on alternatives: they hold if one does, and do not if none does."""
    for best in (Verdict.HOLDS, Verdict.NONE, Verdict.INCONCLUSIVE):
        if best in verdicts:
            return best
    return Verdict.DOES_NOT_HOLD
