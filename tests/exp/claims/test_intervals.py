from __future__ import annotations

import re
from typing import Any

import pytest

from exp.claims.intervals import WIDTH, Found, draw, found
from tests.library.claim_results import arm, made_up


def shown(expect: str, mean: float, interval: list[float] | None, **changes: Any) -> Found:
    result = made_up(**changes)
    estimate = found({"expect": expect, "difference": {"mean": mean, "interval": interval}}, result)
    assert estimate is not None
    return estimate


def places(markup: str, shape: str) -> list[float]:
    """Where lines of a class stand, or the dot."""
    key = "cx" if shape == "circle" else "x1"
    pattern = rf"<circle[^>]* ?{key}=\"([\d.]+)\"" if shape == "circle" else rf'class="{shape}" {key}="([\d.]+)"'
    return [float(x) for x in re.findall(pattern, markup)]


@pytest.mark.parametrize(
    ("expect", "mean", "interval", "words"),
    [
        ("new > old", 3.0, [1.0, 5.0], "+3.0 [+1.0, +5.0] points; expected: above 0"),
        ("new >= old - 1", 3.0, [1.0, 5.0], "+2.0 [0.0, +4.0] points; expected: at least −1"),
        ("new > old + 3", -4.8, [-17.2, 7.6], "−1.8 [−14.2, +10.6] points; expected: above +3"),
        ("new + 3 > old", 4.8, [4.7, 4.9], "+1.80 [+1.70, +1.90] points; expected: above −3"),
        ("new < old", -0.03, [-0.05, -0.01], "−0.030 [−0.050, −0.010] points; expected: below 0"),
        ("new >= 90", 1.5, [1.0, 2.0], "91.50 [91.00, 92.00] %; expected: at least 90"),
        ("90 < new", -1.5, [-2.0, -1.0], "91.50 [91.00, 92.00] %; expected: above 90"),
        ("|new - old| < 0.5", 0.0, [-0.1, 0.1], "0.00 [−0.10, +0.10] points; expected: within ±0.5"),
        ("|new - old| > 0.5", 0.0, [-0.1, 0.1], "0.00 [−0.10, +0.10] points; expected: beyond ±0.5"),
        ("0.5 > |new - old|", 0.0, [-0.1, 0.1], "0.00 [−0.10, +0.10] points; expected: within ±0.5"),
        ("macs(new) < macs(old)", -3025, [-3025, -3025], "−3.02 k multiply-adds, all seeds alike; expected: below 0"),
        ("params(new) <= params(old)", -1, [-1, -1], "−1 parameters, all seeds alike; expected: at most 0"),
        (
            "|macs(new) - macs(old)| < 0.05 * macs(old)",
            0,
            [-9e4, 9e4],
            "0 [−90.00 k, +90.00 k] multiply-adds; expected: within ±0.20 M",
        ),
        ("'val/loss'(new) < 'val/loss'(old)", -0.2, [-0.3, -0.1], "−0.20 [−0.30, −0.10]; expected: below 0"),
        ("'val/box_ap'(new) < old", -0.2, [-0.3, -0.1], "−0.20 [−0.30, −0.10] points; expected: below 0"),
        ("seconds(new) < seconds(old)", -20.0, [-30.0, -10.0], "−20.0 [−30.0, −10.0] s; expected: below 0"),
        ("new > old", 123.4, [-100.0, 346.8], "+123 [−100, +347] points; expected: above 0"),
        ("new > old", -3e-7, [-5e-7, -1e-7], "−3e-07 [−5e-07, −1e-07] points; expected: above 0"),
        ("new > old", 1e-16, [0.0, 2e-16], "0 points, all seeds alike; expected: above 0"),
        ("new > old", 3.0, None, "+3.00 points; expected: above 0"),
        ("|new - old| < seconds(old)", 0.0, [-0.1, 0.1], "0.00 [−0.10, +0.10]"),
    ],
)  # fmt: skip
def test_words(expect: str, mean: float, interval: list[float] | None, words: str) -> None:
    assert shown(expect, mean, interval).words().replace("\u00a0", " ") == words


def test_the_picture_has_zero_boundary_interval_and_mean_in_place() -> None:
    markup = draw(shown("new > old + 3", -5.0, [-17.0, 7.0]), "inconclusive")
    # From -14 to +10, in eight tenths of the width.
    (dot,) = places(markup, "circle")
    (zero,) = places(markup, "zero")
    (boundary,) = places(markup, "boundary")
    assert dot == pytest.approx(WIDTH / 2, abs=0.1)
    assert zero == pytest.approx(WIDTH * (0.1 + 0.8 * 14 / 24), abs=0.1)
    assert boundary == pytest.approx(WIDTH * (0.1 + 0.8 * 17 / 24), abs=0.1)
    assert 'd="M28.0 15H252.0"' in markup
    met = re.search(r'class="met" x="([\d.]+)" y="3" width="([\d.]+)"', markup)
    assert met
    assert float(met[1]) == boundary
    assert float(met[1]) + float(met[2]) == pytest.approx(WIDTH, abs=0.1)
    assert 'class="interval inconclusive"' in markup


def test_zero_says_nothing_of_an_arm_alone() -> None:
    markup = draw(shown("new >= 90", 1.5, [1.0, 2.0]), "holds")
    assert places(markup, "zero") == []
    (boundary,) = places(markup, "boundary")
    assert boundary == pytest.approx(WIDTH / 10, abs=0.1)


def test_a_picture_of_one_point() -> None:
    for interval in (None, [0.0, 0.0]):
        markup = draw(shown("new > old", 0.0, interval), "does-not-hold")
        assert places(markup, "circle") == places(markup, "boundary") == [WIDTH / 2]


def test_two_boundaries() -> None:
    inside = draw(shown("|new - old| < 0.5", 0.0, [-0.1, 0.1]), "holds")
    assert places(inside, "boundary") == [28, 252]
    assert 'class="met" x="28" y="3" width="224"' in inside
    outside = draw(shown("|new - old| > 0.5", 0.0, [-0.1, 0.1]), "does-not-hold")
    assert outside.count('class="met"') == 2


def test_no_estimate_no_picture() -> None:
    assert found({"expect": "gone > old", "verdict": "no verdict"}, made_up()) is None
    assert found({"expect": "new > old", "difference": {"mean": None, "interval": None}}, made_up()) is None


@pytest.mark.parametrize("mean", ["3", True, float("nan"), float("inf"), 10**400, [1]])
def test_what_is_no_number(mean: Any) -> None:
    with pytest.raises(ValueError, match="is no number"):
        shown("new > old", mean, [1.0, 5.0])
    with pytest.raises(ValueError, match="is no number"):
        shown("|new - old| < macs(old)", 0.0, [-1.0, 1.0], arms={"old": arm(80.0, macs=mean), "new": arm(83.0)})
