"""What a few seeds can say: means, intervals and verdicts at 95 %."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.stats import t as student

LEVEL = 0.95
# With two seeds the t interval is 13 standard errors wide on either side; nobody should call that.
FEWEST_SEEDS = 3


class Verdict(StrEnum):
    """The answer to an expectation."""

    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    INCONCLUSIVE = "inconclusive"
    NONE = "no verdict"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % t interval.

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


def estimate(values: Sequence[float], step: float = 0.0) -> Estimate:
    """The mean and its two-sided 95 % Student-t interval, mean ± t(n - 1) s / sqrt(n).

    An accuracy on a few hundred images moves in steps. Where a few seeds happen to differ by the same number of steps,
    s would be zero and the interval a point; then s is that of rounding two values to such steps, step / sqrt(6).

    Args:
        values: one per seed; for a paired comparison, the differences within each seed.
        step: what the measured quantities move by, 0 for continuous ones.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"an estimate needs finite values, got {list(values)}")
    mean = float(array.mean())
    if array.size < 2:
        return Estimate(mean, None, None, 1)
    spread = float(array.std(ddof=1))
    # Equal values differ from their own mean by rounding alone.
    if np.ptp(array) <= 1e-9 * max(1.0, abs(mean)):
        spread = step / math.sqrt(6)
    half = float(student.ppf((1 + LEVEL) / 2, array.size - 1)) * spread / math.sqrt(array.size)
    return Estimate(mean, mean - half, mean + half, int(array.size))


def smallest_step(values: Sequence[float]) -> float:
    """The smallest difference between two values that are not equal; 0 if all are."""
    ordered = np.unique(np.asarray(values, dtype=np.float64))
    gaps = np.diff(ordered)
    gaps = gaps[gaps > 1e-9 * np.maximum(1.0, np.abs(ordered[1:]))]
    return float(gaps.min()) if gaps.size else 0.0


def judge(margins: Sequence[float], strict: bool, step: float = 0.0) -> tuple[Verdict, Estimate]:
    """Whether the mean of margins is positive: a paired t test, read off the interval.

    Args:
        margins: by how much the expectation is met, for each seed.
        strict: whether a margin of exactly zero fails the expectation, as `>` has it, unlike `>=`.
        step: see `estimate`.

    Returns:
        *holds* if the whole interval is on the right side of zero, *does not hold* if it is on the wrong side,
        *inconclusive* if it contains zero, and no verdict for fewer than three seeds.
    """
    found = estimate(margins, step)
    if found.count < FEWEST_SEEDS:
        return Verdict.NONE, found
    assert found.low is not None
    assert found.high is not None
    if found.low == found.high == 0.0:
        return (Verdict.DOES_NOT_HOLD if strict else Verdict.HOLDS), found
    if found.low > 0:
        return Verdict.HOLDS, found
    if found.high < 0:
        return Verdict.DOES_NOT_HOLD, found
    return Verdict.INCONCLUSIVE, found


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
