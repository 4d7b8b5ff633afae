"""What a person reads before and after training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from exp.run_directory import Run

if TYPE_CHECKING:
    from exp.cli import Cli

CONTENT = {
    "config.yaml": "the resolved config",
    "metrics.csv": "every logged metric, one row a step",
    "checkpoints/best.ckpt": "the best checkpoint",
    "checkpoints/last.ckpt": "the last checkpoint, to resume from",
    "plots/learning_curve.png": "loss and accuracy over the steps",
    "plots/confusion_matrix.png": "which class is taken for which",
    "plots/worst_mistakes.png": "the images that the network gets most wrong",
    "plots/detections.png": "annotations beside what was found",
    "plots/category_ap.png": "average precision by category",
    "plots/precision_recall.png": "precision against recall",
    "plots/mask_code_curve.png": "how much of a mask a code of so many numbers keeps",
    "plots/compute_budget.png": "what share of the dense compute is spent",
    "plots/exit_curve.png": "accuracy against compute, with early exit",
    "plots/early_exits.png": "which images leave at which exit",
    "plots/kernel_attention.png": "which kernels are mixed for which class",
    "plots/regions": "which kernel is applied where, by layer",
    "plots/resolutions.png": "which images are classified at which resolution",
    "plots/resolutions_by_class.png": "how often, by class",
    "detections_bbox.json": "boxes found in the test split, in COCO's format",
    "detections_segm.json": "masks found in the test split, in COCO's format",
    "categories.csv": "average precision by category",
    "plots/segmentation.png": "predictions beside annotations, by exit, and how sure they are",
    "plots/class_iou.png": "intersection over union by class",
    "plots/miou_curve.png": "mean intersection over union over executed multiply-adds",
    "plots/reliability.png": "how often exits are right about pixels of which they are so sure",
    "plots/threshold_curve.png": "mean intersection over union over the compute, for every threshold and exit",
    "threshold_curve.csv": "the same as a table",
    "plots/routes.png": "the ways that images take through the grid of cells, and what they cost",
    "routes.csv": "how many images take which edge of the grid, and with which weight",
    "common_route.yaml": "the fixed route of what most validation images take, to be trained with --config",
    "classes.csv": "intersection over union by class, of the test split",
    "labels": "predictions for the test split as label files",
    "plots/poses.png": "joints found beside joints annotated",
    "poses.json": "joints found in the last evaluation",
    "thresholds.json": "when images leave, for every budget",
    "bad_samples.csv": "[yellow]the samples that could not be read, and why[/]",
    "wandb": "the offline W&B run; `wandb sync` uploads it",
}


def print_start(cli: Cli, run: Run) -> None:
    """Says what is about to be trained, on what, and where it goes."""
    console = Console()
    network = cli.model.network
    parameters = sum(p.numel() for p in network.parameters())
    trainer = cli.trainer
    for note in run.notes:
        console.print(f"[yellow]{note}[/]", highlight=False)
    verb = f"resuming from {run.checkpoint}" if run.checkpoint else "training"
    console.print(
        f"[bold]{cli.experiment}[/]: {verb}\n"
        f"  network  {type(network).__name__}, {parameters:,} parameters\n"
        f"  data     {type(cli.datamodule).__name__}, batches of {cli.datamodule.batch_size}"
        + _accumulated(cli.datamodule.batch_size, trainer.accumulate_grad_batches)
        + f"\n  device   {trainer.world_size} x {trainer.strategy.root_device.type}, {trainer.precision}\n"
        f"  run      {run.path}",
        highlight=False,
    )


def _accumulated(batch_size: int, batches: int) -> str:
    return f" x {batches} accumulated = {batch_size * batches} images a step" if batches > 1 else ""


def print_summary(cli: Cli, run: Run, results: dict[str, Any], cost: dict[str, float]) -> None:
    """Says how good the network is, what it costs, and what lies where."""
    console = Console()
    monitor, score = cli.checkpoints.monitor, cli.checkpoints.best_score
    if score is not None:
        console.print(f"best {monitor} {score:.4f} at step {cli.checkpoints.best_step}", highlight=False)
    if results:
        console.print("\n".join(result_lines(results)), highlight=False)
    if cost:
        console.print(
            f"{millions(cost['params'])} parameters, {millions(cost['macs'])} multiply-adds an image "
            f"(executed, mean of {int(cost['macs_samples'])} images)",
            highlight=False,
        )
    table = Table(title=str(run.path), title_justify="left", box=None, show_header=False, pad_edge=True)
    for name, what in CONTENT.items():
        if (run.path / name).exists():
            table.add_row(name, what)
    console.print(table, highlight=False)


def millions(number: float) -> str:
    """A count of parameters or multiply-adds, readable."""
    if number >= 1e9:
        return f"{number / 1e9:.2f} G"
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number / 1e3:.2f} k"


def result_lines(results: dict[str, float]) -> list[str]:
    """Metrics in few lines: those of one kind at several exits or budgets share one."""
    alone = []
    groups: dict[str, list[str]] = {}
    for name, value in results.items():
        shown = f"[bold]{value:#.4g}[/]"
        for mark, title, unit in (("_exit", "by exit", ""), ("_at_", "at a budget of", " %")):
            kind, found, place = name.partition(mark)
            if found:
                groups.setdefault(f"{kind} {title}", []).append(f"{place}{unit} {shown}")
                break
        else:
            alone.append(f"{name} {shown}")
    return ["  ".join(alone), *(f"{title}  {'  '.join(values)}" for title, values in groups.items())]
