"""Accuracy against cost, and one number for such a curve."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.mistakes import Mistake


def step_accuracy(costs: Sequence[float], accuracy: Sequence[float], budgets: Sequence[float]) -> NDArray[np.float64]:
    """The best accuracy within each budget; 0 where the budget reaches no point.

    This is how anytime prediction is read: all samples stop at the best exit that is paid for.

    Args:
        costs, accuracy: Points of the curve in any order, [P].
        budgets: What may be spent, in the unit of `costs`, [Q].

    Returns:
        [Q].
    """
    cost, best = _points(costs, accuracy)
    best = np.maximum.accumulate(np.concatenate([[0.0], best]))
    return best[np.searchsorted(cost, np.asarray(budgets, float), side="right")]


def step_auc(costs: Sequence[float], accuracy: Sequence[float], low: float, high: float) -> float:
    """Mean of `step_accuracy` over the budgets from `low` to `high`: one number for anytime prediction.

    Raises:
        Mistake: An empty interval. Numbers are comparable for the same interval only.
    """
    knots = _knots(costs, low, high)
    return float((step_accuracy(costs, accuracy, knots[:-1].tolist()) * np.diff(knots)).sum() / (high - low))


def linear_auc(costs: Sequence[float], accuracy: Sequence[float], low: float, high: float) -> float:
    """Mean accuracy from `low` to `high` of the curve that joins the points by straight lines.

    Outside of the points it stays at the first or last of them. For budgeted batch classification.

    Raises:
        Mistake: An empty interval. Numbers are comparable for the same interval only.
    """
    knots = _knots(costs, low, high)
    return float(np.trapezoid(np.interp(knots, *_points(costs, accuracy)), knots) / (high - low))


def _points(costs: Sequence[float], accuracy: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points by rising cost; of those that cost the same the most accurate."""
    cost, which = np.unique(np.asarray(costs, float), return_inverse=True)
    best = np.full(len(cost), -np.inf)
    np.maximum.at(best, which, np.asarray(accuracy, float))
    return cost, best


def _knots(costs: Sequence[float], low: float, high: float) -> NDArray[np.float64]:
    if not low < high:
        raise Mistake(f"a curve is averaged from low to high, not from {low} to {high}")
    inside = np.asarray(costs, float)
    return np.unique(np.concatenate([[low, high], inside[(inside > low) & (inside < high)]]))
