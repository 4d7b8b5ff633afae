"""Looking more than once: how much of the promised error each look may spend, and what must be seen at it.

A claim promises that it says *holds* wrongly in at most 2.5 %, over all of its looks. Each look spends a part of it, by
the power family of Kim and DeMets (Biometrika 74, 1987). What must be exceeded at a look so that just this part is
spent is found for Student's t by drawing trials without an effect (Jennison and Turnbull, Group Sequential Methods,
2000), and for the signs of the differences by going through all of them (Mehta, Patel, Senchaudhuri and Tsiatis,
Biometrics 50, 1994).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from scipy.stats import t as student

# The error promised, on either side.
ERROR = 0.025
# The signs of five differences are all alike in 1 of 32 trials: more than the error promised.
FEWEST_TO_SETTLE = 6
# Of the error, what the seeds of the first plan may spend; the rest is for those that are added to it.
PLANNED_SHARE = 0.9
POWER = 1.5
_TRIALS = 200_000
# Signs of as many seeds are gone through completely; of more, drawn.
_COMPLETE = 16


@dataclass(frozen=True)
class Looks:
    """The looks at a claim.

    Args:
        counts: numbers of seeds, ascending; the last is that of today's.
        planned: the number of seeds that was planned before the first look.
    """

    counts: tuple[int, ...]
    planned: int

    def spent(self, seeds: int) -> float:
        """Share of the error that is spent after a look at n of N seeds: k (n / N)^1.5, then 1 - (1 - k) N / n."""
        if seeds < FEWEST_TO_SETTLE:
            return 0.0
        if seeds <= self.planned:
            return PLANNED_SHARE * (seeds / self.planned) ** POWER
        return 1 - (1 - PLANNED_SHARE) * max(self.planned, 1) / seeds

    def errors(self) -> tuple[float, ...]:
        """What each look may spend of the error, added up."""
        return tuple(ERROR * self.spent(count) for count in self.counts)


def once(seeds: int) -> Looks:
    """One look at a number of seeds that was fixed beforehand."""
    return Looks((seeds,), seeds)


@lru_cache(maxsize=64)
def t_bounds(looks: Looks) -> tuple[float, ...]:
    """What Student's t must exceed at each look; infinite where nothing may be spent."""
    draw = np.random.default_rng(0)
    means, squares, before = np.zeros(_TRIALS), np.zeros(_TRIALS), 0
    crossed, bounds, spent = np.zeros(_TRIALS, dtype=bool), [], 0.0
    for count, error in zip(looks.counts, looks.errors(), strict=True):
        # The mean of the new seeds and their squares about it are all that t needs of them.
        new = count - before
        step = draw.standard_normal(_TRIALS) / math.sqrt(new) - means
        within = draw.chisquare(new - 1, _TRIALS) if new > 1 else 0.0
        squares = squares + within + step**2 * before * new / count
        means = means + step * new / count
        before = count
        if error <= spent or count < 2:
            bounds.append(math.inf)
            continue
        t = means / np.sqrt(squares / (count - 1) / count)
        allowed = int(error * _TRIALS) - int(crossed.sum())
        # Where too few trials are left to tell, what is spent here is taken as if it stood alone.
        bound = float(student.isf(error - spent, count - 1))
        if allowed >= 10:
            bound = float(-np.partition(-t[~crossed], allowed)[allowed])
        bounds.append(bound)
        crossed |= t > bound
        spent = error
    return tuple(bounds)


@lru_cache(maxsize=4)
def _signs(seeds: int) -> NDArray[np.float32]:
    """Assignments of signs, (assignments, seeds): all of the first sixteen, with drawn ones for further seeds."""
    complete = min(seeds, _COMPLETE)
    numbers = np.arange(2**complete)[:, None]
    columns = [1 - 2 * (numbers >> np.arange(complete) & 1)]
    columns += [1 - 2 * np.random.default_rng(seed).permutation(numbers % 2) for seed in range(complete, seeds)]
    return np.concatenate(columns, 1).astype(np.float32)


@dataclass(frozen=True)
class Signs:
    """What the signs of the differences say, by Wilcoxon's signed ranks.

    Args:
        settled: the first look, counted from 0, at which their sum was too large for chance; None for none.
        p: share of all assignments of signs that give a sum as large as the one seen, at the last look.
        least: the smallest such share that as many differences can give.
    """

    settled: int | None
    p: float
    least: float


def signs(margins: Sequence[float], looks: Looks) -> Signs:
    """The permutation test of the signs of differences: whether they are positive.

    If nothing is there, each difference is as likely to have the other sign; nothing else is assumed. An infinite one
    counts as the largest, zero as none.

    Args:
        margins: by how much the expectation is met, for each seed.
        looks: the looks; the last is at all of the seeds.
    """
    values = np.asarray(margins, dtype=np.float64)
    all_signs = _signs(len(values))
    crossed = np.zeros(len(all_signs), dtype=bool)
    settled: int | None = None
    p = least = 1.0
    for i, (count, error) in enumerate(zip(looks.counts, looks.errors(), strict=True)):
        seen = values[:count]
        ranks = np.where(seen == 0, 0.0, rankdata(np.abs(seen))).astype(np.float32)
        sums = all_signs[:, :count] @ ranks
        found = float(np.sign(seen).astype(np.float32) @ ranks)
        p, least = float(np.mean(sums >= found)), float(np.mean(sums >= ranks.sum()))
        allowed = math.floor(error * len(sums) + 1e-9) - int(crossed.sum())
        if allowed <= 0 or settled is not None:
            continue
        left = sums[~crossed]
        # Equal sums cross together or not at all.
        bound = float(-np.partition(-left, allowed)[allowed])
        if found > bound:
            settled = i
        crossed |= sums > bound
    return Signs(settled, p, least)
