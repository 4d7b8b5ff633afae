"""However often it is looked at, the error is the one promised."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from exp.claims.sequential import ERROR, FEWEST_TO_SETTLE, Looks, once, signs, t_bounds
from exp.claims.statistics import Verdict, judge, seeds_for, smallest_step

TRIALS = 40_000
# Four standard errors of a share of 2.5 %.
NOISE = 4 * (ERROR * (1 - ERROR) / TRIALS) ** 0.5
PLANS = [
    Looks((6, 8, 10, 12, 14, 16), 16),
    Looks((4, 8, 12), 12),
    Looks((16,), 16),
    # Seeds that were added one by one, to three, to six and to sixteen.
    Looks(tuple(range(3, 13)), 3),
    Looks(tuple(range(6, 25)), 6),
    Looks((16, 24, 32, 48), 16),
]


@pytest.mark.parametrize("looks", PLANS, ids=lambda looks: f"{looks.counts[0]}-{looks.counts[-1]}")
def test_t_crosses_by_chance_as_often_as_it_may(looks: Looks) -> None:
    samples = np.random.default_rng(1).standard_normal((TRIALS, looks.counts[-1]))
    crossed = np.zeros(TRIALS, dtype=bool)
    for count, bound in zip(looks.counts, t_bounds(looks), strict=True):
        if count < FEWEST_TO_SETTLE:
            assert bound == np.inf
            continue
        crossed |= stats.ttest_1samp(samples[:, :count], 0, axis=1).statistic > bound
    assert abs(crossed.mean() - looks.errors()[-1]) < NOISE
    assert looks.errors()[-1] <= ERROR


def test_a_single_look_is_students() -> None:
    for count in (6, 10, 16):
        (bound,) = t_bounds(once(count))
        assert bound == pytest.approx(float(stats.t.isf(0.9 * ERROR, count - 1)), rel=0.02)


@pytest.mark.parametrize("looks", [Looks((6, 8, 10), 10), Looks((6, 7, 8, 9, 10), 6), Looks((10,), 10)])
def test_of_all_assignments_of_signs_no_more_cross_than_may(looks: Looks) -> None:
    sizes = np.random.default_rng(2).exponential(1, 10)
    settled = [signs(list(sizes * each), looks).settled is not None for each in itertools.product((1, -1), repeat=10)]
    assert 0.5 * looks.errors()[-1] < np.mean(settled) <= looks.errors()[-1]


def test_signs_are_wilcoxons() -> None:
    margins = [3.0, -1.0, 2.0, 5.0, -0.5, 4.0, 0.25, 6.0]
    expected = stats.wilcoxon(margins, alternative="greater", method="exact").pvalue
    assert signs(margins, once(8)).p == pytest.approx(expected)
    assert signs([1.0] * 6, once(6)).least == 1 / 64
    # Where both sides did the same, a seed says nothing.
    assert signs([0.0, 0.0, *[1.0] * 5], once(7)).least == 1 / 32


def test_an_earlier_look_stays_what_it_was() -> None:
    margins = list(np.random.default_rng(3).normal(0.8, 1, 20))
    looks = Looks((6, 8, 10, 12, 16, 20), 12)
    for last in (3, 4, 5):
        part = Looks(looks.counts[: last + 1], 12)
        assert t_bounds(looks)[: last + 1] == t_bounds(part)
        whole, sooner = signs(margins, looks).settled, signs(margins[: part.counts[-1]], part).settled
        assert sooner == (whole if whole is not None and whole <= last else None)


def shares(samples: np.ndarray, looks: Looks, step: float = 0.0) -> tuple[float, float, float]:
    """How often *holds* and *does not hold* is said, and after how many seeds in the mean."""
    found = [judge(list(sample), True, step, looks) for sample in samples]
    verdicts = [each.verdict for each in found]
    count = len(found)
    used = np.mean([each.settled or looks.counts[-1] for each in found])
    return verdicts.count(Verdict.HOLDS) / count, verdicts.count(Verdict.DOES_NOT_HOLD) / count, float(used)


LOOKS = Looks((6, 8, 10, 12), 12)
FEW = 1000
# Four standard errors over a thousand trials.
BOUND = ERROR + 4 * (ERROR * (1 - ERROR) / FEW) ** 0.5


@pytest.mark.parametrize("shape", ["normal", "heavy", "equal arms of which one run in ten diverges", "counted"])
def test_where_nothing_is_there_little_is_found(shape: str) -> None:
    draw = np.random.default_rng(4)
    size = (FEW, 12)
    samples, step = draw.standard_normal(size), 0.0
    if shape == "heavy":
        samples = draw.standard_t(2, size)
    elif shape == "counted":
        samples = (draw.binomial(60, 0.95, size) - draw.binomial(60, 0.95, size)) / 60
        step = smallest_step(list(samples[0]))
    elif shape != "normal":
        lost = np.where(draw.random((2, *size)) < 0.1, -50.0, 0.0)
        samples = samples + lost[0] - lost[1]
    holds, does_not, used = shares(samples, LOOKS, step)
    assert max(holds, does_not) < BOUND
    assert used > 11.5


def test_looking_early_saves_seeds() -> None:
    draw = np.random.default_rng(5)
    for effect, power, most in ((1.2, 0.8, 10.2), (2.0, 0.99, 8.7)):
        samples = draw.normal(effect, 1, (300, 12))
        holds, does_not, used = shares(samples, LOOKS)
        at_once, _, _ = shares(samples, once(12))
        assert holds > power
        # The looks cost little of what the same number of seeds finds in one.
        assert holds > at_once - 0.07
        assert used < most
        assert does_not == 0


def test_seeds_that_a_difference_asks_for_settle_it_in_four_of_five() -> None:
    count = seeds_for(1.0, 1.0)
    assert count is not None
    assert count == 11
    holds, _, _ = shares(np.random.default_rng(6).normal(1, 1, (500, count)), once(count))
    assert holds == pytest.approx(0.8, abs=0.06)
    assert seeds_for(-1.0, 1.0) == count
    assert seeds_for(10.0, 1.0) == FEWEST_TO_SETTLE
    assert seeds_for(0.01, 1.0) is seeds_for(0.0, 1.0) is None
