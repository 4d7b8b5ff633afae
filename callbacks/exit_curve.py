"""Early exit in every evaluation: thresholds from the validation split, accuracy within a budget, the curve."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from callbacks.drawing import save
from callbacks.exit_drawing import exit_curve, exit_sheet
from callbacks.non_finite import NonFiniteGuard
from callbacks.pictures import show
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

# Percent of the last exit's multiply-adds.
BUDGETS = (25, 50, 75)
SHEET_BUDGET = 0.5
IMAGES_PER_EXIT = 8


class ExitCurve(Callback):
    """Solves a multi-exit network's thresholds on the validation split, and reports what it does with them.

    Every run has one; networks that are no `models.anytime.MultiExit` it leaves alone, and also tasks whose evaluation
    steps do not return `index`, `label` and `exits` (the logits of each exit), as `Classification` does.

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
        ValueError: an unknown criterion or solver, or an empty interval.
    """

    def __init__(
        self,
        criterion: str = "max_prob",
        solver: Solver = "geometric",
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        if criterion not in CRITERIA:
            raise ValueError(f"ExitCurve: criterion must be one of {', '.join(CRITERIA)}, not {criterion!r}")
        if solver not in ("geometric", "pareto"):
            raise ValueError(f"ExitCurve: solver must be one of geometric, pareto, not {solver!r}")
        if low is not None and high is not None and not low < high:
            raise ValueError(f"ExitCurve: low must be below high, but they are {low:g} and {high:g} multiply-adds")
        self.criterion = criterion
        self.solver: Solver = solver
        self.low = low
        self.high = high
        self.folder: Path | None = None
        self.file: Path | None = None
        self.thresholds: ExitThresholds | None = None
        self._costs: list[float] = []
        self._rows: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """The thresholds of the last validation."""
        return self.thresholds.plain() if self.thresholds is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the thresholds of a checkpoint, to go on or to test with."""
        self.thresholds = ExitThresholds.from_plain(state_dict)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the evaluation before."""
        self._rows = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the evaluation before."""
        self._rows = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Keeps what each exit says of each sample."""
        if not trainer.sanity_checking:
            self._keep(pl_module, outputs, batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Keeps what each exit says of each sample."""
        self._keep(pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Solves the thresholds, logs, and draws unless training goes on."""
        gathered = self._gather(trainer, pl_module)
        if gathered is None:
            return
        outcomes, index = gathered
        # Solved once, so that all processes have the same bits.
        solved = ExitThresholds.solve(outcomes, self._costs, self.solver) if trainer.is_global_zero else None
        self.thresholds = trainer.strategy.broadcast(solved)
        self._report(trainer, pl_module, "val", outcomes, index, draw=trainer.state.fn == "validate")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs and draws, with the thresholds of the checkpoint."""
        gathered = self._gather(trainer, pl_module)
        if gathered is not None:
            self._report(trainer, pl_module, "test", *gathered, draw=True)

    def _keep(self, pl_module: LightningModule, outputs: Any, batch: Any) -> None:
        network = _multi_exit(pl_module)
        if network is None or not isinstance(outputs, dict) or len(outputs.get("exits", ())) != network.num_exits:
            return
        if not self._costs:
            self._costs = exit_costs(network, batch["image"].shape[1:])
        exits = outputs["exits"]
        columns = [outputs["index"], outputs["label"], *(confidence(logits, self.criterion) for logits in exits)]
        columns += [logits.argmax(1) for logits in exits]
        self._rows.append(torch.stack([column.double() for column in columns], 1))

    def _gather(self, trainer: Trainer, pl_module: LightningModule) -> tuple[Outcomes, list[int]] | None:
        """What every exit says of every sample of all processes, by index; and the indices."""
        network = _multi_exit(pl_module)
        if network is None or trainer.sanity_checking:
            return None
        exits = network.num_exits
        rows = torch.empty(0, 2 + 2 * exits, dtype=torch.float64, device=pl_module.device)
        rows = torch.cat([rows, *self._rows])
        self._rows = []
        if trainer.world_size > 1:
            rows = torch.cat(gather_all_tensors(rows))
            # A process without a sample has counted nothing.
            self._costs = trainer.strategy.broadcast(self._costs)
        if not len(rows):
            return None
        # In the same order on any number of processes; and on the CPU, where the search is not slower.
        rows = rows[rows[:, 0].argsort()].cpu()
        if not rows.isfinite().all():
            # The loss of the last step may say why, and of which samples.
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, NonFiniteGuard):
                    callback.settle(trainer)
        sure, predicted = rows[:, 2 : 2 + exits].T.float(), rows[:, 2 + exits :].T.long()
        outcomes = Outcomes(sure.contiguous(), predicted.contiguous(), rows[:, 1].long(), self.criterion)
        return outcomes, rows[:, 0].long().tolist()

    def _report(
        self, trainer: Trainer, pl_module: LightningModule, split: str, outcomes: Outcomes, index: list[int], draw: bool
    ) -> None:
        low = self._costs[0] if self.low is None else self.low
        high = self._costs[-1] if self.high is None else self.high
        for name, value in exit_metrics(outcomes, self._costs, self.thresholds, low, high).items():
            # The same on all processes; Lightning asks for sync_dist all the same.
            pl_module.log(f"{split}/{name}", value, sync_dist=True)
        if not trainer.is_global_zero:
            return
        if self.file is not None and self.thresholds is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            partial = self.file.with_name(f".{self.file.name}.partial")
            partial.write_text(json.dumps(self.thresholds.plain(), indent=2) + "\n")
            os.replace(partial, self.file)
        if draw and self.folder is not None:
            self._draw_curve(trainer, split, outcomes)
            self._draw_sheet(trainer, split, outcomes, index)

    def _draw_curve(self, trainer: Trainer, split: str, outcomes: Outcomes) -> None:
        assert self.folder is not None
        anytime = (self._costs, outcomes.accuracy.tolist())
        title = f"{split}: {len(outcomes.target):,} images"
        if self.thresholds is None:
            figure = exit_curve(anytime, title=title)
        else:
            found = operating_points(outcomes, self._costs, self.thresholds)
            costs = [each.cost for each in found]
            random = [random_accuracy(outcomes, each) for each in found]
            whence = "the same images" if split == "val" else f"{self.thresholds.samples:,} validation images"
            title += f", thresholds from {whence}"
            figure = exit_curve(anytime, (costs, [each.accuracy for each in found]), (costs, random), title)
        show(trainer, f"{split}/exit_curve", save(figure, self.folder / "exit_curve.png"))

    def _draw_sheet(self, trainer: Trainer, split: str, outcomes: Outcomes, index: list[int]) -> None:
        """A row of images for each exit, for half of the compute or the least that there is."""
        if self.thresholds is None:
            return
        assert self.folder is not None
        share = max(SHEET_BUDGET, self._costs[0] / self._costs[-1])
        found = evaluate(outcomes, self.thresholds.policy(share).thresholds, self._costs)
        data = trainer.datamodule  # type: ignore[attr-defined]
        names = list(data.class_names)
        right = found.predictions == outcomes.target
        rows, captions, hits, labels = [], [], [], []
        for exit, cost in enumerate(self._costs):
            left = (found.exits == exit).nonzero().squeeze(1)
            # Evenly over the split, which may be sorted by class.
            places = torch.linspace(0, len(left) - 1, min(IMAGES_PER_EXIT, len(left))).round().long()
            shown = left[places].tolist()
            rows.append([data.raw_image(split, index[i]) for i in shown])
            captions.append([names[int(found.predictions[i])] for i in shown])
            hits.append([bool(right[i]) for i in shown])
            correct = f", {right[left].double().mean().item():.1%} of them right" if len(left) else ""
            labels.append(
                f"exit {exit} ({cost / self._costs[-1]:.0%} of the compute): {len(left) / len(index):.1%} of the "
                f"images{correct}"
            )
        title = f"{split}: who leaves where at {found.cost / self._costs[-1]:.0%} of the compute"
        figure = exit_sheet(rows, captions, hits, labels, title)
        show(trainer, f"{split}/early_exits", save(figure, self.folder / "early_exits.png"))


def exit_metrics(
    outcomes: Outcomes, costs: list[float], thresholds: ExitThresholds | None, low: float, high: float
) -> dict[str, float]:
    """The metrics that `ExitCurve` logs, by their names without the split.

    Args:
        outcomes: of the samples to judge on.
        costs: multiply-adds up to each exit.
        thresholds: solved on validation samples; None where there are none.
        low, high: multiply-adds between which areas are taken.

    Raises:
        ValueError: an empty interval.
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


def _multi_exit(pl_module: LightningModule) -> MultiExit | None:
    network = getattr(pl_module, "network", None)
    return network if isinstance(network, MultiExit) and network.num_exits > 1 else None
