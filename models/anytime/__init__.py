"""Early exit: how sure an exit is, thresholds for a budget, deadlines, batches that shrink, accuracy against cost."""

from models.anytime.budgets import ExitThresholds, OperatingPoint, Solver
from models.anytime.confidence import CRITERIA, confidence
from models.anytime.curves import linear_auc, step_accuracy, step_auc
from models.anytime.deadline import Deadline
from models.anytime.execution import MIN_LEAVING, MultiExit, compact, each_exit, exit_costs, iterate, run
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
)

__all__ = [
    "ALWAYS",
    "CRITERIA",
    "MIN_LEAVING",
    "NEVER",
    "PUBLISHED_RATIOS",
    "Deadline",
    "Evaluation",
    "ExitThresholds",
    "MultiExit",
    "OperatingPoint",
    "Outcomes",
    "Policy",
    "Solver",
    "compact",
    "confidence",
    "each_exit",
    "evaluate",
    "evaluate_exits",
    "exit_costs",
    "exit_distribution",
    "geometric_plans",
    "geometric_thresholds",
    "iterate",
    "linear_auc",
    "pareto_thresholds",
    "run",
    "shuffled",
    "step_accuracy",
    "step_auc",
]
