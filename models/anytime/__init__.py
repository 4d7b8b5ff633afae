"""Early exit: how sure an exit is, thresholds for a budget, batches that shrink, accuracy against cost."""

from models.anytime.confidence import CRITERIA, confidence
from models.anytime.curves import linear_auc, step_accuracy, step_auc
from models.anytime.execution import MIN_LEAVING, MultiExit, compact, exit_costs, run
from models.anytime.policy import ALWAYS, NEVER, Policy
from models.anytime.thresholds import (
    PUBLISHED_RATIOS,
    Evaluation,
    Outcomes,
    evaluate,
    evaluate_exits,
    exit_distribution,
    geometric_plans,
    geometric_thresholds,
    pareto_thresholds,
    shuffled,
    solve_accuracy,
    solve_budget,
)

__all__ = [
    "ALWAYS",
    "CRITERIA",
    "MIN_LEAVING",
    "NEVER",
    "PUBLISHED_RATIOS",
    "Evaluation",
    "MultiExit",
    "Outcomes",
    "Policy",
    "compact",
    "confidence",
    "evaluate",
    "evaluate_exits",
    "exit_costs",
    "exit_distribution",
    "geometric_plans",
    "geometric_thresholds",
    "linear_auc",
    "pareto_thresholds",
    "run",
    "shuffled",
    "solve_accuracy",
    "solve_budget",
    "step_accuracy",
    "step_auc",
]
