"""Early exit in every evaluation: thresholds from the validation split, accuracy within a budget, the curve."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from callbacks.non_finite import NonFiniteGuard
from callbacks.reports.report import Report
from callbacks.whole_files import write_whole
from drawing.exits import exit_curve, exit_sheet
from drawing.figures import SMALL, evenly
from lightning_modules.classification import Classification
from lightning_modules.findings import gathered, told_by_first
from lightning_modules.task import Batch
from models.anytime import (
    CRITERIA,
    Evaluation,
    ExitThresholds,
    MultiExit,
    Outcomes,
    Solver,
    confidence,
    evaluate,
    exit_costs,
    linear_auc,
    step_auc,
)
from models.mistakes import Mistake

# Percent of the last exit's multiply-adds.
BUDGETS = (25, 50, 75)
SHEET_BUDGET = 0.5
IMAGES_PER_EXIT = 8


class ExitCurve(Report):
    """Solves a multi-exit network's thresholds on the validation split, and reports what it does with them.

    Networks that are no `models.anytime.MultiExit` it leaves alone.

    Each validation solves thresholds for every percent of the last exit's multiply-adds; they go into the checkpoint,
    and a test uses those of the checkpoint that it tests: no threshold is ever solved on the test split. Of a split,
    `val` or `test`, it logs, beside the accuracy of every exit that the task logs:

    - `top1_at_25`, `top1_at_50`, `top1_at_75`: accuracy where every image leaves at the first exit that is sure enough,
      with the thresholds for that percentage of the last exit's multiply-adds. In `val/` they are those of the very
      samples that the thresholds are solved on, and so a little too good: compare `test/`.
    - `compute_share_at_25` ...: what that really took, as a share of the last exit's multiply-adds. It differs from the
      budget where the split differs from the validation split.
    - `top1_random_at_25` ...: expected accuracy where as many images leave at each exit, whichever they are. A
      criterion that knows nothing gets that.
    - `auc_anytime`: mean accuracy over all budgets between `auc_low_macs` and `auc_high_macs` if all images leave at
      the same exit; `auc_budgeted`: if each leaves when it is sure. Comparable with the same ends only.

    A budget that does not reach the first exit has no metric, and without thresholds there are none but `auc_anytime`.

    Args:
        criterion: how sure an exit is, see `models.anytime.CRITERIA`.
        solver: `geometric`, as published for MSDNet, RANet and DVT, or `pareto`, which searches for better thresholds.
        low: multiply-adds where the areas under the curves begin; by default the first exit's.
        high: where they end; by default the last exit's.

    Raises:
        Mistake: an unknown criterion or solver, or an empty interval.
    """

    reads = Classification
    pictures: ClassVar = {
        "exit_curve.png": "accuracy against compute, with early exit",
        "early_exits.png": "which images leave at which exit",
    }
    files: ClassVar = {"thresholds.json": "when images leave, for every budget"}

    def __init__(
        self,
        criterion: str = "max_prob",
        solver: Solver = "geometric",
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        if criterion not in CRITERIA:
            raise Mistake(f"ExitCurve: criterion must be one of {', '.join(CRITERIA)}, not {criterion!r}")
        if solver not in ("geometric", "pareto"):
            raise Mistake(f"ExitCurve: solver must be one of geometric, pareto, not {solver!r}")
        if low is not None and high is not None and not low < high:
            raise Mistake(f"ExitCurve: low must be below high, but they are {low:g} and {high:g} multiply-adds")
        self.criterion = criterion
        self.solver: Solver = solver
        self.low = low
        self.high = high
        self.thresholds: ExitThresholds | None = None
        self._costs: list[float] = []
        self._rows: list[Tensor] = []
        # Of every sample that was evaluated, by position, and the positions.
        self._outcomes: Outcomes | None = None
        self._index: list[int] = []

    @override
    def state_dict(self) -> dict[str, Any]:
        """The thresholds of the last validation."""
        return self.thresholds.plain() if self.thresholds is not None else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the thresholds of a checkpoint, to go on or to test with."""
        self.thresholds = ExitThresholds.from_plain(state_dict)

    @override
    def applies(self, task: LightningModule) -> bool:
        if not super().applies(task):
            return False
        network = task.network
        return isinstance(network, MultiExit) and network.num_exits > 1

    @override
    def start(self) -> None:
        self._rows, self._outcomes = [], None

    @override
    def keep(self, batch: Batch, outputs: Any) -> None:
        exits = outputs["exits"]
        # Some networks have exits in some phases of their training only.
        if len(exits) != self.task.network.num_exits:
            return
        if not self._costs:
            self._costs = exit_costs(self.task.network, batch["image"].shape[1:])
        columns = [outputs["index"], outputs["label"], *(confidence(logits, self.criterion) for logits in exits)]
        columns += [logits.argmax(1) for logits in exits]
        self._rows.append(torch.stack([column.double() for column in columns], 1))

    @override
    def merge(self) -> None:
        """Puts together what every exit says of every sample; of the validation split, solves the thresholds."""
        own = torch.cat(self._rows).cpu() if self._rows else None
        self._rows = []
        told = [(rows, costs) for rows, costs in gathered((own, self._costs)) if rows is not None]
        if not told:
            return
        # A process without a sample has counted nothing.
        self._costs = told[0][1]
        rows = torch.cat([rows for rows, _ in told])
        # In the same order on any number of processes; and on the CPU, where the search is not slower.
        rows = rows[rows[:, 0].argsort()]
        if not rows.isfinite().all():
            # The loss of the last step may say why, and of which samples.
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, NonFiniteGuard):
                    callback.settle(self.trainer)
        exits = self.task.network.num_exits
        sure, predicted = rows[:, 2 : 2 + exits].T.float(), rows[:, 2 + exits :].T.long()
        self._outcomes = Outcomes(sure.contiguous(), predicted.contiguous(), rows[:, 1].long(), self.criterion)
        self._index = rows[:, 0].long().tolist()
        if self.split == "val":
            # Solved once, so that all processes have the same bits.
            first = self.trainer.is_global_zero
            solved = ExitThresholds.solve(self._outcomes, self._costs, self.solver) if first else None
            self.thresholds = told_by_first(solved)

    @override
    def metrics(self) -> Mapping[str, float]:
        if self._outcomes is None:
            return {}
        low = self._costs[0] if self.low is None else self.low
        high = self._costs[-1] if self.high is None else self.high
        return exit_metrics(self._outcomes, self._costs, self.thresholds, low, high)

    @override
    def write(self, folder: Path) -> None:
        # The test of a checkpoint has solved nothing; that of a fit tells which thresholds are the best checkpoint's.
        if self.thresholds is None or (self.split == "test" and not self.has_trained):
            return
        write_whole(folder / "thresholds.json", json.dumps(self.thresholds.plain(), indent=2) + "\n")

    @override
    def draw(self) -> Mapping[str, Figure]:
        if self._outcomes is None:
            return {}
        figures = {"exit_curve": self._curve(self._outcomes)}
        if self.thresholds is not None:
            figures["early_exits"] = self._sheet(self._outcomes, self.thresholds)
        return figures

    def _curve(self, outcomes: Outcomes) -> Figure:
        anytime = (self._costs, outcomes.accuracy.tolist())
        title = f"{self.split}: {len(outcomes.target):,} images"
        if self.thresholds is None:
            return exit_curve(anytime, title=title)
        found = operating_points(outcomes, self._costs, self.thresholds)
        costs = [each.cost for each in found]
        random = [random_accuracy(outcomes, each) for each in found]
        whence = "the same images" if self.split == "val" else f"{self.thresholds.samples:,} validation images"
        title += f", thresholds from {whence}"
        return exit_curve(anytime, (costs, [each.accuracy for each in found]), (costs, random), title)

    def _sheet(self, outcomes: Outcomes, thresholds: ExitThresholds) -> Figure:
        """A row of images for each exit, for half of the compute or the least that there is."""
        share = max(SHEET_BUDGET, self._costs[0] / self._costs[-1])
        found = evaluate(outcomes, thresholds.policy(share).thresholds, self._costs)
        names = list(self.data.class_names)
        right = found.predictions == outcomes.target
        rows, captions, hits, labels = [], [], [], []
        for exit, cost in enumerate(self._costs):
            left = (found.exits == exit).nonzero().squeeze(1)
            shown = evenly(left.tolist(), IMAGES_PER_EXIT)
            rows.append([self.data.picture(self.split, self._index[i], SMALL) for i in shown])
            captions.append([names[int(found.predictions[i])] for i in shown])
            hits.append([bool(right[i]) for i in shown])
            correct = f", {right[left].double().mean().item():.1%} of them right" if len(left) else ""
            labels.append(
                f"exit {exit} ({cost / self._costs[-1]:.0%} of the compute): {len(left) / len(self._index):.1%} of the "
                f"images{correct}"
            )
        title = f"{self.split}: who leaves where at {found.cost / self._costs[-1]:.0%} of the compute"
        return exit_sheet(rows, captions, hits, labels, title)


def exit_metrics(
    outcomes: Outcomes, costs: list[float], thresholds: ExitThresholds | None, low: float, high: float
) -> dict[str, float]:
    """The metrics that `ExitCurve` logs, by their names without the split.

    Args:
        outcomes: what each exit says of the samples to judge on.
        costs: multiply-adds up to each exit.
        thresholds: solved on validation samples; None where there are none.
        low, high: multiply-adds between which areas are taken.

    Raises:
        Mistake: an empty interval.
    """
    metrics = {
        "auc_anytime": step_auc(costs, outcomes.accuracy.tolist(), low, high),
        "auc_low_macs": low,
        "auc_high_macs": high,
    }
    if thresholds is None:
        return metrics
    found = operating_points(outcomes, costs, thresholds)
    metrics["auc_budgeted"] = linear_auc([each.cost for each in found], [each.accuracy for each in found], low, high)
    for percent in BUDGETS:
        if percent / 100 * thresholds.costs[-1] >= thresholds.costs[0]:
            at = evaluate(outcomes, thresholds.policy(percent / 100).thresholds, costs)
            metrics[f"top1_at_{percent}"] = at.accuracy
            metrics[f"top1_random_at_{percent}"] = random_accuracy(outcomes, at)
            metrics[f"compute_share_at_{percent}"] = at.cost / costs[-1]
    return metrics


def operating_points(outcomes: Outcomes, costs: list[float], thresholds: ExitThresholds) -> list[Evaluation]:
    """What comes of each set of thresholds on some samples: the curve of budgeted batch classification."""
    return [evaluate(outcomes, point.thresholds, costs) for point in thresholds.points]


def random_accuracy(outcomes: Outcomes, found: Evaluation) -> float:
    """Expected accuracy where as many samples leave at each exit, but no one looks which."""
    return (found.exit_shares * outcomes.accuracy).sum().item()
