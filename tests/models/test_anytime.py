from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from models.anytime import (
    ALWAYS,
    CRITERIA,
    NEVER,
    PUBLISHED_RATIOS,
    ExitThresholds,
    Outcomes,
    Policy,
    confidence,
    evaluate,
    evaluate_exits,
    exit_distribution,
    geometric_thresholds,
    linear_auc,
    pareto_thresholds,
    shuffled,
    step_accuracy,
    step_auc,
)
from tests.library.outcomes import naive_exits, outcomes

GOLDEN = Path(__file__).parents[1] / "golden"
COSTS = [1.0, 2.5, 4.0, 9.0]


def naive_thresholds(sure: np.ndarray, shares: np.ndarray) -> list[float]:
    """The search as a person would do it by hand, one sample at a time."""
    exits, samples = sure.shape
    gone, thresholds = [False] * samples, [1e8] * exits
    for k in range(exits - 1):
        m = int(np.floor(np.float32(samples) * shares[k]))
        counted = 0
        for n in sorted(range(samples), key=lambda n: -sure[k, n]):
            counted += not gone[n]
            if m > 0 and counted == m:
                thresholds[k] = float(sure[k, n])
                break
        gone = [left or sure[k, n] >= thresholds[k] for n, left in enumerate(gone)]
    thresholds[-1] = -1e8
    return thresholds


# Few different values, so that samples tie.
confidences = st.integers(2, 5).flatmap(
    lambda exits: st.integers(1, 30).flatmap(
        lambda samples: st.lists(
            st.lists(st.integers(0, 12), min_size=samples, max_size=samples), min_size=exits, max_size=exits
        )
    )
)


@settings(max_examples=150, deadline=None)
@given(
    confidences, st.lists(st.sampled_from([0.01, 0.05, 0.4, 0.95, 1.0, 1.05, 1.5, 1.95, 4.0]), min_size=1, max_size=4)
)
def test_threshold_search_is_the_double_loop(table: list[list[int]], ratios: list[float]) -> None:
    sure = torch.tensor(table, dtype=torch.float32) / 12
    shares = torch.stack([exit_distribution(ratio, len(sure)) for ratio in ratios])
    found = geometric_thresholds(sure, shares)
    for row, share in zip(found, shares, strict=True):
        assert row.tolist() == naive_thresholds(sure.numpy(), share.numpy())
        torch.testing.assert_close(geometric_thresholds(sure, share), row, rtol=0, atol=0)
        target = torch.zeros(sure.shape[1], dtype=torch.long)
        judged = evaluate(
            Outcomes(sure, torch.zeros_like(sure, dtype=torch.long), target), row, list(range(1, len(sure) + 1))
        )
        assert judged.exits.tolist() == naive_exits(sure.numpy(), row.tolist())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 80), st.sampled_from(PUBLISHED_RATIOS))
def test_planned_shares_are_kept(seed: int, samples: int, ratio: float) -> None:
    sure = torch.rand(4, samples, generator=torch.Generator().manual_seed(seed))
    shares = exit_distribution(ratio, 4)
    thresholds = geometric_thresholds(sure, shares)
    exits = torch.tensor(naive_exits(sure.numpy(), thresholds.tolist())).bincount(minlength=4)
    assert thresholds[-1] == ALWAYS
    assert exits.sum() == samples
    # Without ties exactly the planned number leaves, but for rounding down.
    assert exits[:3].tolist() == [int(samples * share) for share in shares[:3]]
    assert [threshold == NEVER for threshold in thresholds[:3]] == [count == 0 for count in exits[:3]]


def test_distribution_is_in_float32() -> None:
    for ratio in PUBLISHED_RATIOS:
        shares = exit_distribution(ratio, 5)
        assert shares.dtype == torch.float32
        exact = np.array([ratio**k for k in range(1, 6)])
        np.testing.assert_allclose(shares, exact / exact.sum(), rtol=1e-6)
    with pytest.raises(ValueError, match="positive"):
        exit_distribution(0.0, 5)
    with pytest.raises(ValueError, match="too far from 1"):
        exit_distribution(1e9, 8)


@pytest.mark.parametrize(
    "file", ["adaptive_inference/threshold_search", "adaptive_inference/threshold_search_ties", "ranet/dynamic_eval"]
)
def test_recorded_thresholds_beside_the_sentinels(file: str) -> None:
    # The golden harness compares with the largest value of a tensor, which here is a sentinel.
    with safe_open(GOLDEN / f"{file}.safetensors", "pt") as recorded:
        config = json.loads(recorded.metadata()["config"])
        logits, expected = recorded.get_tensor("in.val_logits"), recorded.get_tensor("out.thresholds")
    sure = torch.stack([confidence(exit) for exit in logits])
    shares = torch.stack([exit_distribution(p / 20, len(sure)) for p in config["p"]])
    found = geometric_thresholds(sure, shares)
    assert torch.equal(found == NEVER, expected == 1e8)
    assert torch.equal(found == ALWAYS, expected == -1e8)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_criteria_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]]).log()
    entropy = torch.tensor([-1.5 * np.log(2), -np.log(3)], dtype=torch.float32)
    expected = {
        "max_prob": torch.tensor([0.5, 1 / 3]),
        "margin": torch.tensor([0.25, 0.0]),
        "entropy": entropy,
        "normalised": 1 + entropy / np.log(3),
    }
    for name, values in expected.items():
        torch.testing.assert_close(confidence(logits, name), values, msg=name, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_are_float32_and_finite(criterion: str) -> None:
    certain = torch.tensor([[1e4, -1e4, 0.0], [0.0, -torch.inf, 3.0]])
    for logits in (certain, certain.bfloat16(), certain.double()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            sure = confidence(logits, criterion)
        assert sure.dtype == torch.float32
        assert sure.isfinite().all()
        if criterion != "random":
            assert sure[0] > sure[1]


def test_wrong_criteria_are_refused() -> None:
    with pytest.raises(ValueError, match="there are: max_prob, margin, entropy, normalised, random"):
        confidence(torch.zeros(2, 3), "max")
    with pytest.raises(ValueError, match="there are: max_prob"):
        Policy("sure", (0.5,))
    with pytest.raises(ValueError, match="at least 2 classes"):
        confidence(torch.zeros(2, 1))


def test_evaluation_by_hand() -> None:
    found = Outcomes(
        confidence=torch.tensor([[0.9, 0.2, 0.5, 0.1], [0.1, 0.8, 0.9, 0.2], [0.3, 0.3, 0.3, 0.3]]),
        prediction=torch.tensor([[1, 1, 1, 1], [2, 2, 2, 2], [0, 0, 0, 0]]),
        target=torch.tensor([1, 2, 2, 0]),
    )
    # A sample as sure as the threshold leaves.
    judged = evaluate(found, [0.5, 0.8, 0.9], [1, 2, 4])
    assert judged.exits.tolist() == [0, 1, 0, 2]
    assert judged.predictions.tolist() == [1, 2, 1, 0]
    assert judged.exit_shares.tolist() == [0.5, 0.25, 0.25]
    assert judged.accuracy == 0.75
    assert judged.cost == 0.5 * 1 + 0.25 * 2 + 0.25 * 4
    assert found.accuracy.tolist() == [0.25, 0.5, 0.25]
    with pytest.raises(ValueError, match="2 thresholds for 3 exits"):
        evaluate(found, [0.5, 0.8], [1, 2, 4])
    with pytest.raises(ValueError, match="2 costs for 3 exits"):
        evaluate(found, [0.5, 0.8, 0.9], [1, 2])


def test_broken_outcomes_are_refused() -> None:
    sure, classes = torch.rand(3, 4), torch.zeros(3, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="target"):
        Outcomes(sure, classes, classes[0, :3])
    for criterion in ("max_prob", "margin", "entropy", "normalised"):
        with pytest.raises(ValueError, match="not finite"):
            Outcomes.from_logits(torch.full((3, 4, 5), torch.nan), classes[0], criterion)


def test_random_exits_cost_the_same_and_know_less() -> None:
    validation, test = outcomes(2000), outcomes(2000, seed=1)
    policy = ExitThresholds.solve(validation, COSTS).policy(0.5)
    judged = evaluate(test, policy.thresholds, COSTS)
    blind = evaluate_exits(test, shuffled(judged.exits, torch.Generator().manual_seed(0)), COSTS)
    assert blind.exit_shares.tolist() == judged.exit_shares.tolist()
    assert blind.cost == judged.cost
    assert not torch.equal(blind.exits, judged.exits)
    assert blind.accuracy < judged.accuracy - 0.02
    # As a criterion, with thresholds for the same plan, it does the same.
    guessing = outcomes(2000, criterion="random")
    shares = exit_distribution(0.9, 4)
    drawn = evaluate(guessing, geometric_thresholds(guessing.confidence, shares), COSTS)
    torch.testing.assert_close(drawn.exit_shares, shares.double(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("solver", ["geometric", "pareto"])
@pytest.mark.parametrize("share", [1 / 9, 0.2, 0.5, 0.9, 1.0])
def test_budget_is_kept_and_spent(solver: str, share: float) -> None:
    validation = outcomes(1000)
    policy = ExitThresholds.solve(validation, COSTS, solver).policy(share)  # type: ignore[arg-type]
    judged = evaluate(validation, policy.thresholds, COSTS)
    assert judged.cost <= share * COSTS[-1] * (1 + 1e-9)
    if solver == "geometric":
        assert judged.cost >= (share - 0.01) * COSTS[-1]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.floats(0.15, 1.0))
def test_pareto_is_never_worse_than_geometric(seed: int, exits: int, share: float) -> None:
    validation = outcomes(60, exits=exits, seed=seed)
    costs = [float(k) ** 2 + 1 for k in range(exits)]
    budget = max(share, costs[0] / costs[-1])
    accuracies = []
    for solver in ("geometric", "pareto"):
        policy = ExitThresholds.solve(validation, costs, solver).policy(budget)  # type: ignore[arg-type]
        accuracies.append(evaluate(validation, policy.thresholds, costs).accuracy)
    assert accuracies[1] >= accuracies[0]


def test_pareto_avoids_an_exit_that_knows_nothing() -> None:
    known = outcomes(3000)
    prediction = known.prediction.clone()
    prediction[1] = (known.target + 1) % 10
    misled = Outcomes(known.confidence, prediction, known.target)
    geometric, pareto = (ExitThresholds.solve(misled, COSTS, solver).policy(0.5) for solver in ("geometric", "pareto"))  # type: ignore[arg-type]
    judged = evaluate(misled, pareto.thresholds, COSTS)
    assert judged.accuracy > evaluate(misled, geometric.thresholds, COSTS).accuracy + 0.05
    assert judged.exit_shares[1] < 0.01


def test_pareto_front_against_every_pair_of_thresholds() -> None:
    validation = outcomes(25, exits=3)
    costs = [1.0, 2.0, 4.0]
    front = pareto_thresholds(validation, costs)
    judged = [evaluate(validation, row, costs) for row in front]
    points = [(found.cost, found.accuracy) for found in judged]
    assert points == sorted(points)
    assert all(low[1] < high[1] for low, high in pairwise(points))
    levels = [[*sure.tolist(), NEVER] for sure in validation.confidence[:2]]
    every = [evaluate(validation, [first, second, ALWAYS], costs) for first in levels[0] for second in levels[1]]
    # The most accurate of all, for every price of a multiply-add.
    for price in (0.02, 0.05, 0.1, 0.2):
        best = max(found.accuracy - price * found.cost for found in every)
        mine = max(found.accuracy - price * found.cost for found in judged)
        assert mine == pytest.approx(best, abs=1e-9)


def test_wrong_costs_are_refused() -> None:
    validation = outcomes()
    with pytest.raises(ValueError, match="must rise"):
        pareto_thresholds(validation, COSTS[::-1])
    with pytest.raises(ValueError, match="3 costs for 4 exits"):
        ExitThresholds.solve(validation, COSTS[:3])


def test_curves_by_hand() -> None:
    costs, accuracy = [4.0, 2.0, 3.0], [0.8, 0.6, 0.5]
    assert step_accuracy(costs, accuracy, [1.0, 2.0, 3.5, 4.0, 9.0]).tolist() == [0.0, 0.6, 0.6, 0.8, 0.8]
    assert step_auc(costs, accuracy, 1.0, 5.0) == pytest.approx((0 + 0.6 + 0.6 + 0.8) / 4)
    assert linear_auc(costs, accuracy, 1.0, 5.0) == pytest.approx((0.6 + 0.55 + 0.65 + 0.8) / 4)
    assert linear_auc(costs, accuracy, 2.5, 2.75) == pytest.approx((0.55 + 0.525) / 2)
    with pytest.raises(ValueError, match="from low to high"):
        step_auc(costs, accuracy, 2.0, 2.0)


def test_each_percent_of_the_cost_is_spent_to_the_last_sample() -> None:
    # Only the last exit is right, and a sample that goes on to it costs half a percent.
    samples = 180
    sure = torch.stack([torch.arange(samples) / samples, torch.ones(samples)])
    predicted = torch.stack([torch.zeros(samples, dtype=torch.long), torch.ones(samples, dtype=torch.long)])
    found = ExitThresholds.solve(Outcomes(sure, predicted, predicted[1]), [0.1, 1.0], "pareto")
    assert [point.share for point in found.points] == pytest.approx([k / 100 for k in range(10, 101)], abs=1e-12)
    for k in range(10, 101):
        assert found.policy(k / 100).thresholds == found.points[k - 10].thresholds
    assert found.policy(0.299).thresholds == found.points[19].thresholds
    assert found.points[-1].accuracy == 1
    with pytest.raises(ValueError, match=r"which takes a share of 0\.1000: give at least 0\.1$"):
        found.policy(0.0999)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"costs": [2.0, 2.0]}, None),
        ({"costs": [0.0, 2.0]}, "cheapest first"),
        ({"costs": [3.0, 2.0]}, "cheapest first"),
        ({"costs": [1.0, float("inf")]}, "cheapest first"),
        ({"points": [{"share": 0.0, "accuracy": 0.5, "thresholds": ["always", "always"]}]}, None),
        ({"points": [{"share": 1 + 1e-6, "accuracy": 0.5, "thresholds": ["never", "always"]}]}, None),
        ({"points": [{"share": 1 + 2e-6, "accuracy": 0.5, "thresholds": ["never", "always"]}]}, r"in \[0, 1\]"),
        ({"points": [{"share": -1e-9, "accuracy": 0.5, "thresholds": ["never", "always"]}]}, r"in \[0, 1\]"),
        ({"points": []}, "at least one set"),
        ({"points": [{"share": 0.5, "accuracy": 0.5, "thresholds": ["always"]}]}, "a number for each exit"),
    ],
)
def test_thresholds_of_a_file_are_checked(part: dict[str, Any], message: str | None) -> None:
    point = {"share": 0.75, "accuracy": 0.5, "thresholds": [0.25, "always"]}
    plain = {
        "criterion": "max_prob",
        "solver": "geometric",
        "costs": [1.0, 2.0],
        "validation_samples": 4,
        "points": [point],
    } | part
    if message is None:
        found = ExitThresholds.from_plain(plain).plain()
        assert {key: found[key] for key in plain} == plain
    else:
        with pytest.raises(ValueError, match=message):
            ExitThresholds.from_plain(plain)
