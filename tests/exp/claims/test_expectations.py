"""Expectations are read as written, and wrong ones are refused with the nearest choice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exp.claims.expectations import ExpectationError, parse
from exp.claims.sequential import Looks
from exp.claims.statistics import Verdict

ARMS = ["a", "b", "lr_0.1", "dense"]
MEASURED = {
    ("", "a"): [1.0, 1.2, 1.1, 1.05, 1.15, 1.1],
    ("", "b"): [0.5, 0.6, 0.7, 0.65, 0.55, 0.6],
    ("", "lr_0.1"): [0.6, 0.5, 0.55, 0.65, 0.6, 0.7],
    ("", "dense"): [2.0] * 6,
    ("macs", "a"): [50.0] * 6,
    ("macs", "b"): [100.0] * 6,
    ("val/loss", "a"): [0.30, 0.31, 0.29, 0.30, 0.28, 0.32],
}


def answer(text: str) -> list[Verdict]:
    return [e.answer(range(6), lambda q, arm, s: MEASURED[q, arm][s]).verdict for e in parse(text, ARMS)]


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ("a > b", [Verdict.HOLDS]),
        ("a < b", [Verdict.DOES_NOT_HOLD]),
        ("b > lr_0.1", [Verdict.INCONCLUSIVE]),
        ("dense > a > b", [Verdict.HOLDS, Verdict.HOLDS]),
        ("dense - a <= a - b + 0.9", [Verdict.HOLDS]),
        ("a > .8", [Verdict.HOLDS]),
        ("0.8 < a", [Verdict.HOLDS]),
        ("dense > 2", [Verdict.DOES_NOT_HOLD]),
        ("dense >= 2", [Verdict.HOLDS]),
        ("macs(a) < 0.6 * macs(b)", [Verdict.HOLDS]),
        ("macs(a) / macs(b) < 0.4", [Verdict.DOES_NOT_HOLD]),
        ("macs(a) <= 1e2 - 5 * (2 + 8)", [Verdict.HOLDS]),
        ("'val/loss'(a) < 1", [Verdict.HOLDS]),
        ("|a - b| < 0.8", [Verdict.HOLDS]),
        ("|b - a| < 0.8", [Verdict.HOLDS]),
        ("|a - b| < 0.1", [Verdict.DOES_NOT_HOLD]),
        ("|a - b| > 0.1", [Verdict.HOLDS]),
        ("|b - lr_0.1| < 0.1", [Verdict.INCONCLUSIVE]),
        ("0.1 < |a - b|", [Verdict.HOLDS]),
        ("-a < -b", [Verdict.HOLDS]),
    ],
)
def test_answers(text: str, verdicts: list[Verdict]) -> None:
    assert answer(text) == verdicts


def test_estimate_is_of_left_minus_right_whatever_the_sign() -> None:
    for text in ("a > b", "a < b"):
        (expectation,) = parse(text, ARMS)
        found = expectation.answer(range(6), lambda q, arm, s: MEASURED[q, arm][s]).found
        assert found.mean == pytest.approx(0.5)
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.mean < found.high


def test_a_mean_around_zero_is_not_taken_for_its_size() -> None:
    # Seeds at +1 and -1: the size is 1 at every seed, the mean difference is about 0 and not known to be below 0.9.
    values: dict[str, list[float]] = {"a": [1.0, -1.0] * 4, "b": [0.0] * 8}
    (expectation,) = parse("|a - b| > 0.9", ["a", "b"])
    answer = expectation.answer(range(8), lambda q, arm, s: values[arm][s])
    assert (answer.verdict, answer.settled) == (Verdict.INCONCLUSIVE, None)
    assert answer.found.mean == 0


@pytest.mark.parametrize(
    ("text", "verdict", "settled"),
    [
        ("a > 3", Verdict.HOLDS, 8),
        ("|a| < 9", Verdict.HOLDS, 8),
        ("|a| > 3", Verdict.HOLDS, 8),
        ("|a| > 9", Verdict.DOES_NOT_HOLD, 8),
        # The lower end is told at once, the nearer upper one later.
        ("|a| < 5.12", Verdict.HOLDS, 10),
    ],
)
def test_it_is_said_which_look_settled_it(text: str, verdict: Verdict, settled: int) -> None:
    values = [5.0, 5.1, 4.9, 5.2, 4.8, 5.1, 4.9, 5.05, 4.95, 5.0, 5.1, 4.9]
    (expectation,) = parse(text, ["a"])
    answer = expectation.answer(range(12), lambda q, arm, s: values[s], looks=Looks((6, 8, 10, 12), 12))
    assert (answer.verdict, answer.settled) == (verdict, settled)


def test_an_arm_that_diverged_is_worse_than_any() -> None:
    values = {"a": [5.0, 5.1, 4.9, 5.2, 4.8, 5.1, 4.9, 5.0, 5.1, 4.9, 5.2, 5.05], "b": [4.0] * 12}
    looks = Looks((12,), 12)

    def ask(text: str) -> Verdict:
        (expectation,) = parse(text, ["a", "b"])
        return expectation.answer(range(12), lambda q, arm, s: values[arm][s], looks=looks).verdict

    assert (ask("a > b"), ask("a < b"), ask("|a - b| < 2")) == (Verdict.HOLDS, Verdict.DOES_NOT_HOLD, Verdict.HOLDS)
    values["b"][3] = float("-inf")
    assert (ask("a > b"), ask("|a - b| < 2")) == (Verdict.HOLDS, Verdict.HOLDS)
    # Where both diverged, neither is better.
    values["a"][3] = float("-inf")
    assert ask("a > b") is Verdict.HOLDS
    for seed in (5, 7, 9):
        values["a"][seed] = float("-inf")
    assert ask("a > b") is Verdict.INCONCLUSIVE
    values["a"] = [float("-inf")] * 12
    values["b"] = [4.0] * 12
    assert ask("a > b") is Verdict.DOES_NOT_HOLD


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a > bb", "no arm 'bb'; did you mean 'b'?"),
        ("a", "is no inequality"),
        ("a == b", "for equality within a margin write"),
        ("flops(a) < 3", "'flops' is no cost"),
        ("mac(a) < 3", "did you mean 'macs'?"),
        ("macs(3) < 3", "needs the name of an arm"),
        ("a >", "ends too early"),
        ("(a > b", r"'\)' is missing"),
        ("|a - b < 3", r"'\|' is missing"),
        ("|a| < |b|", "bars on one side"),
        ("1 < 2", "names no arm"),
        ("a > b ; c", "cannot read"),
        ("a b > 3", "did not expect 'b'"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(ExpectationError, match=message):
        parse(text, ARMS)


def _join(parts: tuple[str, str, str]) -> str:
    return f"({parts[0]} {parts[1]} {parts[2]})"


numbers = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3))


@given(st.recursive(numbers.map(str), lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(_join)))
def test_arithmetic_is_pythons(text: str) -> None:
    (expectation,) = parse(f"a > {text}", ["a"])
    nothing: Any = None
    assert expectation.right.at(nothing) == pytest.approx(eval(text), rel=1e-9, abs=1e-9)
