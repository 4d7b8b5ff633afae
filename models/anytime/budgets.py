"""Thresholds of a network's exits for any budget, in the form in which they travel with a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch

from models.anytime.confidence import check_criterion
from models.anytime.policy import ALWAYS, NEVER, Policy
from models.anytime.thresholds import Outcomes, evaluate, geometric_plans, pareto_thresholds
from models.mistakes import Mistake

Solver = Literal["geometric", "pareto"]
_NAMES = {NEVER: "never", ALWAYS: "always"}
_VALUES = {name: value for value, name in _NAMES.items()}


@dataclass(frozen=True)
class OperatingPoint:
    """Thresholds, and what came of them on the validation samples that they were solved on.

    Args:
        share: Multiply-adds of a sample as a share of the last exit's, mean over the samples.
        accuracy: Share of the samples that were classified rightly.
        thresholds: One for each exit, see `models.anytime.Policy`.
    """

    share: float
    accuracy: float
    thresholds: tuple[float, ...]


@dataclass(frozen=True)
class ExitThresholds:
    """A network's thresholds, one set for about every percent of its cost.

    Args:
        criterion: How sure an exit is, see `models.anytime.CRITERIA`.
        solver: How they were found, see `solve`.
        costs: Multiply-adds up to each exit, as `models.anytime.exit_costs` counts them.
        samples: Validation samples that they were solved on.
        points: The sets, by rising share.
    """

    criterion: str
    solver: str
    costs: tuple[float, ...]
    samples: int
    points: tuple[OperatingPoint, ...]

    @classmethod
    def solve(cls, outcomes: Outcomes, costs: list[float], solver: Solver = "geometric") -> ExitThresholds:
        """Thresholds from validation samples; never from those that results are reported on.

        Args:
            outcomes: What every exit says of the validation samples.
            costs: Multiply-adds up to each exit, rising.
            solver: `geometric`: exits are filled in the shares of `models.anytime.exit_distribution`, as published for
                MSDNet and RANet; `pareto`: thresholds that no other found ones beat in accuracy and cost.
        """
        plans = pareto_thresholds(outcomes, costs) if solver == "pareto" else geometric_plans(outcomes.confidence)
        found = [evaluate(outcomes, plan, costs) for plan in plans]
        shares = torch.tensor([each.cost for each in found], dtype=torch.float64) / costs[-1]
        order = shares.argsort(stable=True)
        # For each percent the most that fits into it; costs are sums in another order than the budget.
        percents = torch.linspace(0, 1, 101, dtype=torch.float64) * (1 + 1e-9)
        places = (torch.searchsorted(shares[order].contiguous(), percents, right=True) - 1).clamp(min=0).unique()
        points = [
            OperatingPoint(shares[i].item(), found[i].accuracy, tuple(plans[i].tolist()))
            for i in order[places].tolist()
        ]
        return cls(outcomes.criterion, solver, tuple(costs), outcomes.confidence.shape[1], tuple(points))

    def policy(self, share: float) -> Policy:
        """The thresholds for a budget: those that spend most of it, and not more, on the validation samples.

        Args:
            share: What a sample may cost, as a share of the last exit's cost, in (0, 1].

        Raises:
            Mistake: A share outside of (0, 1], or below the first exit's.
        """
        if not 0 < share <= 1:
            raise Mistake(f"a budget is a share of the last exit's multiply-adds, in (0, 1], not {share:g}")
        first = self.costs[0] / self.costs[-1]
        if share < first * (1 - 1e-9):
            raise Mistake(
                f"a budget of {share:g} does not reach the first exit, which takes a share of {first:.4f}: give at "
                f"least {math.ceil(first * 100) / 100:g}"
            )
        within = [point for point in self.points if point.share <= share * (1 + 1e-9)]
        return Policy(self.criterion, within[-1].thresholds)

    def plain(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only: for a checkpoint, and readable as JSON."""
        return {
            "criterion": self.criterion,
            "solver": self.solver,
            "validation_samples": self.samples,
            "cost": "multiply-adds up to each exit, in convolutions, linear layers and matrix products",
            "costs": list(self.costs),
            "points": [
                {
                    "share": point.share,
                    "accuracy": point.accuracy,
                    "thresholds": [_NAMES.get(value, value) for value in point.thresholds],
                }
                for point in self.points
            ],
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> ExitThresholds:
        """What `plain` was made of.

        Raises:
            Mistake: Something else, or incomplete.
        """
        try:
            points = tuple(
                OperatingPoint(
                    float(point["share"]),
                    float(point["accuracy"]),
                    tuple(float(_VALUES.get(value, value)) for value in point["thresholds"]),
                )
                for point in plain["points"]
            )
            costs = tuple(map(float, plain["costs"]))
            found = cls(plain["criterion"], plain["solver"], costs, int(plain["validation_samples"]), points)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise Mistake(f"these are no thresholds of exp ({type(error).__name__}: {error})") from error
        check_criterion(str(found.criterion))
        if not all(map(math.isfinite, costs)) or not all(0 < a <= b for a, b in pairwise((*costs[:1], *costs))):
            raise Mistake(f"the costs of exits are multiply-adds, cheapest first, not {costs}")
        shares = [point.share for point in points]
        if not all(0 <= share <= 1 + 1e-6 for share in shares) or shares != sorted(shares):
            raise Mistake("thresholds are for shares of the last exit's multiply-adds in [0, 1], cheapest first")
        if not points or any(len(point.thresholds) != len(costs) for point in points):
            raise Mistake("thresholds need at least one set, with a number for each exit in it")
        return found
