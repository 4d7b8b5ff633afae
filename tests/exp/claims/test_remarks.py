"""What a verdict does not say by itself is said in words."""

from __future__ import annotations

import pytest

from exp.claims.expectations import Answer, parse
from exp.claims.remarks import advice, fallen_apart, remarks, unseen, would_settle

INFINITE = float("inf")


def answer(text: str, values: list[float]) -> Answer:
    (expectation,) = parse(text, ["a"])
    return expectation.answer(range(len(values)), lambda q, arm, seed: values[seed])


def said(values: list[float], text: str = "a > 0", diverged: dict[str, list[int]] | None = None) -> list[str]:
    return remarks(answer(text, values), [10 + i for i in range(len(values))], diverged or {})


def test_few_seeds_say_how_little_their_signs_can_show() -> None:
    (sentence,) = said([1.0, 1.1, 0.9, 1.2])
    assert sentence == (
        "4 seeds cannot settle it: were the signs of the differences chance, they would all be alike in 6.2 % of "
        "trials; 6 seeds are the fewest"
    )


def test_where_the_two_checks_disagree_both_are_told() -> None:
    alike = [1.0, 1.1, 0.9, 1.2, 0.8, 1.05, 0.95]
    (sentence,) = said([*alike, 60.0])
    assert sentence.startswith("the signs of the differences alone would say holds (p 0.39 %")
    (sentence,) = said([0.45, 0.4, 0.48, 5.0, 5.1, 5.2, 5.05, -0.5])
    assert sentence.startswith("the interval alone would say holds, the signs of the differences do not (p 2.7 %, with")
    assert said([*alike]) == []


def test_a_seed_that_carries_the_verdict_is_named() -> None:
    # Without the seed of the largest difference on the wrong side nothing changes; without one of many, neither.
    assert said([1.0, 1.1, 0.9, 1.2, 0.8, 1.05]) == []
    values = [0.1, 0.2, 0.3, 0.9, 0.95, 1.0, 0.9, 0.85]
    assert all("carries it" not in sentence for sentence in said(values))


def test_seeds_that_diverged_are_named_with_what_they_count_for() -> None:
    values = [1.0, 1.1, 0.9, 1.2, 0.8, 1.05, 0.95, 1.0, 1.1, 0.9, 1.2, -INFINITE]
    sentence, *_ = said(values, diverged={"a": [11], "b": []})
    assert sentence == "seed 11 of a diverged: counted as worse than any other in the signs, left out of the mean"
    sentence, *_ = said([*values[:-2], -INFINITE, -INFINITE], diverged={"a": [10, 11]})
    assert sentence.startswith("seeds 10, 11 of a diverged")


def test_what_would_have_settled_it() -> None:
    values = [2.0, -1.0, 1.5, 0.5, -0.5, 1.0]
    open_answer = answer("a > 0", values)
    settle = would_settle(open_answer)
    assert settle is not None
    found = open_answer.found
    assert found.low is not None
    assert settle["difference"] == pytest.approx(found.mean - found.low)
    # As far beyond the boundary as that, with the same spread, the interval would just have excluded it.
    moved = answer("a > 0", [value + settle["difference"] - found.mean + 1e-6 for value in values])
    assert moved.found.low == pytest.approx(1e-6)
    assert settle["seeds"] > len(values)
    assert would_settle(answer("a > 0", [1.0, 1.1, 0.9, 1.2, 0.8, 1.05])) is None
    assert advice({"difference": 1.2, "seeds": 21}, "1.2 percent") == (
        "these seeds would have settled 1.2 percent beyond the boundary; what was seen asks for about 21 seeds"
    )
    assert advice({"difference": 1.0, "seeds": None}, "1.0").endswith("asks for more than 1,000 seeds")


def test_runs_that_fell_apart_without_a_word() -> None:
    good = {0: 65.0, 1: 66.0, 2: 64.5, 3: 65.5, 4: 65.2, 5: 66.1}
    assert fallen_apart(good, "max") == []
    assert fallen_apart(good | {3: 10.0}, "max") == [3]
    assert fallen_apart(good | {3: 10.0}, "min") == []
    assert fallen_apart(good | {3: 900.0}, "min") == [3]
    assert fallen_apart(dict(list(good.items())[:4]) | {9: 10.0}, "max") == []
    assert fallen_apart(dict.fromkeys(range(6), 5.0), "max") == []


def test_how_many_may_diverge_unseen() -> None:
    assert 0.95**-1 > 1 > unseen(6) > unseen(16) > 0
    assert (1 - unseen(16)) ** 16 == pytest.approx(0.05)
