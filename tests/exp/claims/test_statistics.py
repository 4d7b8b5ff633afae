"""The verdicts are right as often as they say, on simulated experiments whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from exp.claims.expectations import parse
from exp.claims.sequential import Looks
from exp.claims.statistics import Estimate, Verdict, all_of, any_of, estimate, judge, smallest_step

SIMULATIONS = 2000
# Four standard errors of a share of 95 % over 2,000 simulations.
TOLERANCE = 4 * (0.95 * 0.05 / SIMULATIONS) ** 0.5


def simulate(difference: float, seeds: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two arms whose seeds share a large effect, as paired runs do: (simulations, seeds) each."""
    shared = generator.normal(70, 5, (SIMULATIONS, seeds))
    noise = generator.normal(0, 1, (2, SIMULATIONS, seeds))
    return shared + noise[0] + difference, shared + noise[1]


@pytest.mark.parametrize("seeds", [3, 4, 5, 10])
def test_interval_of_paired_difference_covers_the_truth(seeds: int) -> None:
    a, b = simulate(0.8, seeds, np.random.default_rng(seeds))
    found = [estimate(d) for d in a - b]
    covered = np.mean([e.low <= 0.8 <= e.high for e in found if e.low is not None and e.high is not None])
    assert abs(covered - 0.95) < TOLERANCE
    # The seeds' own spread is five times the noise: an unpaired interval would be about as much wider.
    assert np.mean([e.high - e.low for e in found]) < 0.5 * np.mean([e.high - e.low for e in map(estimate, a)])


@pytest.mark.parametrize("seeds", [6, 9])
def test_verdicts_err_as_often_as_they_say(seeds: int) -> None:
    generator = np.random.default_rng(10 + seeds)
    a, b = simulate(0.0, seeds, generator)
    verdicts = [judge(list(d), strict=True).verdict for d in a - b]
    # At most 2.5 % on either side; the signs of few seeds come in steps, those of six in one of 1.6 %.
    for wrong in (Verdict.HOLDS, Verdict.DOES_NOT_HOLD):
        assert 0.003 < verdicts.count(wrong) / SIMULATIONS < 0.025 + TOLERANCE
    a, b = simulate(-8.0, seeds, generator)
    clear = [judge(list(d), strict=True).verdict for d in a - b]
    assert clear.count(Verdict.DOES_NOT_HOLD) > 0.9 * SIMULATIONS
    assert Verdict.HOLDS not in clear


def test_equality_within_a_margin_is_claimed_wrongly_in_at_most_five_percent() -> None:
    (expectation,) = parse("|a - b| < 0.5", ["a", "b"])
    generator = np.random.default_rng(0)
    answers = {}
    for truth in (0.0, 0.5, 3.0):
        noise = generator.normal(truth, 0.1, (SIMULATIONS // 4, 6))
        verdicts = [
            expectation.answer(range(6), lambda q, arm, s, row=row: row[s] if arm == "a" else 0.0).verdict
            for row in noise
        ]
        answers[truth] = {v: verdicts.count(v) / len(verdicts) for v in Verdict}
    assert answers[0.0][Verdict.HOLDS] > 0.99
    # At the margin itself either answer is wrong in 2.5 %.
    assert answers[0.5][Verdict.HOLDS] < 0.025 + TOLERANCE
    assert answers[0.5][Verdict.DOES_NOT_HOLD] < 0.025 + TOLERANCE
    assert answers[3.0][Verdict.DOES_NOT_HOLD] > 0.99


def test_interval_is_scipys() -> None:
    values = [1.0, 2.5, 2.0, 4.0]
    found = estimate(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_interval_of_a_few_numbers_by_hand() -> None:
    # Student's 97.5 % quantile is 4.302653 with two degrees of freedom, 12.706205 with one.
    found = estimate([1.0, 2.0, 6.0])
    half = 4.302653 * 7**0.5 / 3**0.5
    assert (found.mean, found.count) == (3.0, 3)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), rel=1e-6)
    pair = estimate([1.0, 3.0])
    assert (pair.low, pair.high) == pytest.approx((2 - 12.706205, 2 + 12.706205), rel=1e-6)
    assert estimate([4.0], step=1.0) == Estimate(4.0, None, None, 1)


def test_equal_values_are_as_uncertain_as_their_steps() -> None:
    found = estimate([0.5, 0.5, 0.5], step=0.25)
    # s = step / sqrt(6), the spread of a difference of two values that are each rounded to a step.
    half = 4.302653 * 0.25 / 6**0.5 / 3**0.5
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-6)
    assert estimate([0.5, 0.5, 0.5]) == Estimate(0.5, 0.5, 0.5, 3)
    # A spread of their own is theirs, however large the steps.
    assert estimate([0.5, 0.5, 0.6], step=0.25) == estimate([0.5, 0.5, 0.6])


@pytest.mark.parametrize(
    ("values", "alike"),
    [
        ([0.0, 0.0, 1e-9], True),
        ([0.0, 0.0, 1.001e-9], False),
        ([0.25, 0.25, 0.25 + 0.9e-9], True),
        ([0.25, 0.25, 0.25 + 1.1e-9], False),
        # Of large values a part in 1e9 counts, of whichever sign.
        ([1e6, 1e6, 1e6 + 0.9e-3], True),
        ([1e6, 1e6, 1e6 + 1.1e-3], False),
        ([-1e6, -1e6, -1e6 + 0.9e-3], True),
        ([-1e6, -1e6, -1e6 + 1.1e-3], False),
    ],
)
def test_values_are_equal_where_only_rounding_tells_them_apart(values: list[float], alike: bool) -> None:
    found = estimate(values)
    assert (found.low == found.high) is alike
    assert (smallest_step(values) == 0) is alike


def test_no_verdict_below_three_seeds() -> None:
    assert judge([5.0], True).verdict is judge([5.0, 5.1], True).verdict is Verdict.NONE
    with pytest.raises(ValueError, match="finite values"):
        estimate([])


def test_fewer_than_six_seeds_settle_nothing_that_varies() -> None:
    # Where one run in ten falls apart, the mean can be zero although 73 % of three seeds show no trace of that.
    for count in (3, 4, 5):
        found = judge([5.0 + 0.01 * i for i in range(count)], True)
        assert (found.verdict, found.by_interval, found.settled) == (Verdict.INCONCLUSIVE, Verdict.HOLDS, None)
        assert found.signs is not None
        assert found.signs[0].least == 0.5**count
    assert judge([5.0 + 0.01 * i for i in range(6)], True).settled == 6


def test_equal_seeds_have_no_interval_but_a_verdict() -> None:
    assert judge([0.3] * 3, True).verdict is Verdict.HOLDS
    assert judge([-0.3] * 3, False).verdict is Verdict.DOES_NOT_HOLD
    assert judge([0.0] * 3, True).verdict is Verdict.DOES_NOT_HOLD
    assert judge([0.0] * 3, False).verdict is Verdict.HOLDS
    # 0.1 + 0.2 is not 0.3 in binary; such a spread is none.
    assert judge([0.1 + 0.2, 0.3, 0.3], True).found.low == pytest.approx(0.3, abs=1e-15)


@pytest.mark.parametrize("images", [30, 60])
def test_counting_on_few_images_gives_no_false_certainty(images: int) -> None:
    # Two equal arms, tested on a few images: six seeds may differ by the same number of images.
    generator = np.random.default_rng(images)
    a, b = 100 * generator.binomial(images, 0.97, (2, SIMULATIONS, 6)) / images
    verdicts = [judge(list(x - y), True, smallest_step([*x, *y])).verdict for x, y in zip(a, b, strict=True)]
    assert verdicts.count(Verdict.HOLDS) / SIMULATIONS < 0.025 + TOLERANCE
    # Taken as continuous, equal differences would be certain; counted, they are as uncertain as a count is.
    alike = [100 * 1 / images] * 3
    assert judge(alike, True).verdict is Verdict.HOLDS
    assert judge(alike, True, 100 / images).verdict is Verdict.INCONCLUSIVE


def test_one_seed_that_stands_apart_neither_makes_nor_hides_a_verdict() -> None:
    alike = [1.0, 1.1, 0.9, 1.2, 0.8, 1.05, 0.95, 1.0, 1.1, 0.9]
    assert judge(alike, True).verdict is Verdict.HOLDS
    # Far on the right side: the interval is wide, and the signs alone do not suffice.
    right = judge([*alike, 60.0], True)
    assert (right.verdict, right.by_interval) == (Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE)
    assert right.signs is not None
    assert right.signs[0].settled == 0
    # A run that diverged leaves the mean, and is one bad outcome among twelve.
    assert judge([*alike, 1.0, -math.inf], True).verdict is Verdict.HOLDS
    assert judge([*alike[:7], -math.inf, -math.inf], True).verdict is Verdict.INCONCLUSIVE


def test_no_seed_carries_what_an_earlier_look_has_settled() -> None:
    values = [1.0, 1.1, 0.9, 1.2, 0.8, 1.05, 0.95, 1.0, -5.0]
    found = judge(values, True, looks=Looks((8, 9), 9))
    assert (found.verdict, found.settled, found.by_interval) == (Verdict.HOLDS, 8, Verdict.INCONCLUSIVE)
    assert found.lone is None


def test_smallest_step() -> None:
    assert smallest_step([96.5, 96.0, 97.5, 96.0 + 1e-12]) == pytest.approx(0.5)
    assert smallest_step([3.0, 3.0]) == 0.0


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        estimate([1.0, float("nan"), 2.0])


def test_claims_of_several_expectations() -> None:
    holds, fails, open_, none = Verdict.HOLDS, Verdict.DOES_NOT_HOLD, Verdict.INCONCLUSIVE, Verdict.NONE
    assert all_of([holds, holds]) is holds
    assert all_of([holds, open_]) is open_
    assert all_of([open_, none, holds]) is none
    assert all_of([holds, none, open_, fails]) is fails
    assert any_of([fails, holds, open_]) is holds
    assert any_of([fails, open_]) is open_
    assert any_of([fails, fails]) is fails
