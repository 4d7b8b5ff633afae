"""Builders of the recorded cases of early-exit classification."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.anytime import (
    Outcomes,
    confidence,
    evaluate,
    exit_distribution,
    geometric_thresholds,
    linear_auc,
    step_accuracy,
    step_auc,
)

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-6


def threshold_search(case: Case) -> dict[str, Tensor]:
    costs, inputs = case.config["flops"], case.inputs
    validation = Outcomes.from_logits(inputs["val_logits"], inputs["val_target"])
    test = Outcomes.from_logits(inputs["test_logits"], inputs["test_target"])
    shares = torch.stack([exit_distribution(p / 20, len(costs)) for p in case.config["p"]])
    thresholds = geometric_thresholds(validation.confidence, shares)
    on_validation = [evaluate(validation, row, costs) for row in thresholds]
    on_test = [evaluate(test, row, costs) for row in thresholds]
    return {
        "out.probs": shares,
        "out.thresholds": thresholds,
        "out.val_acc": torch.tensor([100 * found.accuracy for found in on_validation]),
        "out.val_flops": torch.tensor([found.cost for found in on_validation]),
        "out.test_acc": torch.tensor([100 * found.accuracy for found in on_test]),
        "out.test_flops": torch.tensor([found.cost for found in on_test]),
        "out.test_exit": torch.stack([found.exits for found in on_test]),
        "out.test_pred": torch.stack([found.predictions for found in on_test]),
    }


def given_thresholds(case: Case) -> dict[str, Tensor]:
    outcomes = Outcomes.from_logits(case.inputs["logits"], case.inputs["target"])
    found = evaluate(outcomes, case.inputs["thresholds"], case.config["flops"])
    return {
        "out.accuracy": torch.tensor(100 * found.accuracy),
        "out.expected_flops": torch.tensor(found.cost),
        "out.exit": found.exits,
        "out.exit_fraction": found.exit_shares,
        "out.anytime_accuracy": 100 * outcomes.accuracy,
    }


def criteria(case: Case) -> dict[str, Tensor]:
    logits = case.inputs["logits"]
    return {
        "out.max_prob": confidence(logits, "max_prob"),
        "out.margin": confidence(logits, "margin"),
        "out.entropy": -confidence(logits, "entropy"),
        "out.one_minus_normalised_entropy": confidence(logits, "normalised"),
    }


def curve(case: Case) -> dict[str, Tensor]:
    points = case.inputs["flops"].tolist(), case.inputs["accuracy"].tolist()
    low, high = case.config["lo"], case.config["hi"]
    return {
        "out.step_accuracy_at_budgets": torch.from_numpy(step_accuracy(*points, case.inputs["budgets"].tolist())),
        "out.step_auc": torch.tensor(step_auc(*points, low, high)),
        "out.linear_auc": torch.tensor(linear_auc(*points, low, high)),
    }


CASES = {
    "threshold_search": threshold_search,
    "threshold_search_ties": threshold_search,
    "given_thresholds": given_thresholds,
    "criteria": criteria,
    "curve": curve,
}
