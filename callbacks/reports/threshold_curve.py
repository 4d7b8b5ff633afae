"""Accuracy against compute of a segmenter that skips pixels: every threshold, every exit, and the best for a budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from typing_extensions import override

from callbacks.reports.report import Report
from callbacks.whole_files import write_table
from drawing.segmentation import threshold_curve
from lightning_modules.segmentation import Segmentation
from lightning_modules.segmentation_metrics import SegmentationFindings, Tally
from lightning_modules.task import Batch
from models.layers.hrnet_exits import HRNetExits
from models.mistakes import Mistake

# Of each exit before the last; empty for a network that computes every pixel.
Thresholds = tuple[float, ...]
Count = Literal["executed", "published"]
DEFAULT_THRESHOLDS = (0.7, 0.8, 0.9, 0.95, 0.98, 0.998)
DEFAULT_BUDGETS = (40, 50, 60, 70, 80, 90, 100)


@dataclass(frozen=True)
class Point:
    """One way to use the network, and what came of it on a split.

    Args:
        thresholds: From which probability on each exit is sure.
        exit: Where inference stops, 0 for the first.
        miou: Mean intersection over union.
        macs: Executed multiply-adds of an image, the mean over the split.
        published_macs: The same as the paper counts them.
        share: The count that budgets are in, as a share of computing every pixel up to the last exit.
    """

    thresholds: Thresholds
    exit: int
    miou: float
    macs: float
    published_macs: float
    share: float


class ThresholdCurve(Report):
    """Evaluates a segmenter with exits under other thresholds, too; for configs, of ADP-C and what it is compared with.

    A budget is a percentage of the multiply-adds of computing every pixel up to the last exit. Each validation chooses,
    for every budget, the threshold and exit of the highest mean intersection over union within it; the choices go into
    the checkpoint, and a test uses those of the checkpoint that it tests. A network that computes every pixel is
    evaluated once, and only the exit is chosen: that is stopping early. Of a split, `val` or `test`, it logs

    - `miou_at_40` ...: mean intersection over union of what was chosen for 40 % of the compute. In `val/` that is for
      the very images that it was chosen on, and so a little too good: compare `test/`;
    - `share_at_40` ...: what that takes on this split, as a share of computing every pixel;
    - `miou_auc`: the mean over all whole percentages from the first exit's cost to 100.

    `threshold_curve.csv` has a row for each threshold and exit, `threshold_curve.png` draws them. Every validation runs
    the network once more for each threshold. Compiled networks, whose operators cannot be counted, are left alone.

    Args:
        thresholds: to be tried, beside the network's own; see `models.segmenters.ADPC`.
        budgets: percentages to be logged.
        count: what budgets are in: `executed` operators, which work on tiles of 8x8 pixels; or `published`, the pixels
            that the masks keep and the interpolation of the others, as the paper counts.

    Raises:
        Mistake: no threshold, a budget outside of (0, 100], an unknown count; in an evaluation, a network or task
            that it does not fit.
    """

    reads = Segmentation
    pictures: ClassVar = {
        "threshold_curve.png": "mean intersection over union over the compute, for every threshold and exit"
    }
    files: ClassVar = {"threshold_curve.csv": "the same as a table"}
    in_every_run = False

    def __init__(
        self,
        thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
        budgets: Sequence[int] = DEFAULT_BUDGETS,
        count: Count = "executed",
    ) -> None:
        if not thresholds or any(math.isnan(each) for each in thresholds):
            raise Mistake(f"ThresholdCurve: thresholds must be numbers, at least one, not {list(thresholds)}")
        if not all(0 < budget <= 100 for budget in budgets):
            raise Mistake(f"ThresholdCurve: budgets are percentages, in (0, 100], not {list(budgets)}")
        if count not in ("executed", "published"):
            raise Mistake(f"ThresholdCurve: count must be one of executed, published, not {count!r}")
        self.thresholds = sorted(set(thresholds))
        self.budgets = sorted(set(budgets))
        self.count: Count = count
        # By budget in percent, the thresholds and the exit of the last validation.
        self.choices: dict[int, tuple[Thresholds, int]] = {}
        self._tallies: dict[Thresholds, Tally] = {}
        self._points: list[Point] = []

    @override
    def state_dict(self) -> dict[str, Any]:
        """The choices of the last validation."""
        return {str(budget): [list(thresholds), exit] for budget, (thresholds, exit) in self.choices.items()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the choices of a checkpoint, to test with."""
        self.choices = {int(budget): (tuple(thresholds), exit) for budget, (thresholds, exit) in state_dict.items()}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what it does not fit."""
        network = getattr(pl_module, "network", None)
        if not isinstance(pl_module, Segmentation) or not isinstance(network, HRNetExits):
            raise Mistake(
                f"ThresholdCurve: is for Segmentation with ADPC, not for {type(pl_module).__name__} with "
                f"{type(network).__name__}"
            )

    @override
    def applies(self, task: LightningModule) -> bool:
        return isinstance(task, Segmentation) and not task.compile_network

    @override
    def start(self) -> None:
        self._tallies, self._points = {}, []

    @override
    def keep(self, batch: Batch, outputs: Any) -> None:
        """Evaluates the batch under each threshold."""
        network = self.task.network
        for thresholds in self._others(network.thresholds):
            tally = self._tallies.setdefault(thresholds, Tally())
            with _thresholds(network, thresholds), self.trainer.precision_plugin.forward_context():
                self.task.count_into(tally, batch, everything=False)

    def _others(self, own: Thresholds) -> list[Thresholds]:
        """What is tried beside the network's own thresholds, which the task evaluates; nothing if it has none."""
        swept = [(threshold,) * len(own) for threshold in self.thresholds if own]
        return [thresholds for thresholds in swept if thresholds != own]

    @override
    def merge(self) -> None:
        """Puts together what each threshold led to; of the validation split, chooses."""
        own: Thresholds = self.task.network.thresholds
        # A process without a batch has no other tallies yet.
        tallies = {own: self.task.tally} | {each: self._tallies.get(each, Tally()) for each in self._others(own)}
        self._tallies = {}
        for thresholds, tally in sorted(tallies.items()):
            total = tally.over_processes()
            if total.images:
                found = SegmentationFindings.of(total, [], self.task.absent)
                self._points += _points_of(found, thresholds, self.count)
        if self.split == "val" and self._points:
            self.choices = choices(self._points)

    @property
    def _reached(self) -> dict[int, Point]:
        """By budget, what was chosen for it, on the split that was evaluated."""
        found = {(point.thresholds, point.exit): point for point in self._points}
        # The thresholds may have been chosen with another config.
        return {budget: found[choice] for budget, choice in self.choices.items() if choice in found}

    @override
    def metrics(self) -> Mapping[str, float]:
        reached = self._reached
        metrics: dict[str, float] = {}
        for budget in self.budgets:
            if budget in reached:
                metrics |= {f"miou_at_{budget}": reached[budget].miou, f"share_at_{budget}": reached[budget].share}
        if reached and len(reached) == len(self.choices):
            metrics["miou_auc"] = sum(point.miou for point in reached.values()) / len(reached)
        return metrics

    @override
    def write(self, folder: Path) -> None:
        if self._points:
            _write(self._points, folder / "threshold_curve.csv")

    @override
    def draw(self) -> Mapping[str, Figure]:
        if not self._points:
            return {}
        lines: dict[str, list[tuple[float, float]]] = {}
        for point in self._points:
            lines.setdefault(_name(point.thresholds), []).append((point.share, point.miou))
        last = max(point.exit for point in self._points)
        ends = [point for point in self._points if point.exit == last and point.thresholds]
        swept = [(point.share, point.miou, _name(point.thresholds)) for point in ends]
        steps = [(budget / 100, point.miou) for budget, point in sorted(self._reached.items())]
        whence = "the same images" if self.split == "val" else "the validation split"
        title = f"{self.split}; thresholds and exits are chosen on {whence}"
        return {"threshold_curve": threshold_curve(lines, swept, steps, self.count, title)}


def choices(points: Sequence[Point]) -> dict[int, tuple[Thresholds, int]]:
    """For every budget that reaches a point, the thresholds and the exit of the best one within it.

    Args:
        points: What came of each threshold and exit on the images to choose on.

    Returns:
        By budget, a whole percentage of computing every pixel. Of equally good points the cheaper one.
    """
    chosen = {}
    for budget in range(1, 101):
        # Counts are sums, and those of the last exit may exceed 100 % by their rounding.
        within = [point for point in points if point.share <= budget / 100 * (1 + 1e-9)]
        if within:
            best = max(within, key=lambda point: (point.miou, -point.share))
            chosen[budget] = (best.thresholds, best.exit)
    return chosen


def _points_of(report: SegmentationFindings, thresholds: Thresholds, count: Count) -> list[Point]:
    counted = report.macs if count == "executed" else report.published_macs
    return [
        Point(thresholds, exit, found.miou, macs, published, share / report.dense_macs[-1])
        for exit, (found, macs, published, share) in enumerate(
            zip(report.exits, report.macs, report.published_macs, counted, strict=True)
        )
    ]


@contextmanager
def _thresholds(network: Any, thresholds: Thresholds) -> Iterator[None]:
    own = network.thresholds
    network.thresholds = thresholds
    try:
        yield
    finally:
        network.thresholds = own


def _name(thresholds: Thresholds) -> str:
    if not thresholds:
        return "every pixel"
    return " / ".join(f"{each:g}" for each in (thresholds if len(set(thresholds)) > 1 else thresholds[:1]))


def _write(points: Sequence[Point], path: Path) -> None:
    rows: list[list[Any]] = [["threshold", "exit", "miou", "macs", "published_macs", "share"]]
    for point in points:
        numbers = [f"{point.miou:.6f}", f"{point.macs:.0f}", f"{point.published_macs:.0f}", f"{point.share:.6f}"]
        rows.append([_name(point.thresholds), point.exit, *numbers])
    write_table(path, rows)
