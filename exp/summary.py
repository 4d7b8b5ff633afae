"""What a person reads before and after training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from callbacks.reports import Report
from drawing.numbers import readable
from exp.run_directory import Run
from exp.tracking import Tracker

if TYPE_CHECKING:
    from exp.cli import Cli

CONTENT = {
    "config.yaml": "the resolved config",
    "metrics.csv": "every logged metric, one row a step",
    "report.html": "all of this on one page, for a browser; `exp report` sets runs side by side",
    "checkpoints/best.ckpt": "the best checkpoint",
    "checkpoints/last.ckpt": "the last checkpoint, to resume from",
}
AFTER_REPORTS = {
    "bad_samples.csv": "[yellow]the samples that could not be read, and why[/]",
    "errors.log": "[yellow]what went wrong beside the training[/]",
    "wandb": "the offline W&B run; `wandb sync` uploads it",
}


def content(reports: list[Report], run: Run) -> dict[str, str]:
    """What may lie in a run directory, by path in it, with what a person is told of it.

    Args:
        reports: the run's reports.
        run: its directory.
    """
    pictures = {f"{run.plots.name}/{name}": told for report in reports for name, told in report.pictures.items()}
    files = {name: told for report in reports for name, told in report.files.items()}
    return CONTENT | pictures | files | AFTER_REPORTS


def print_start(cli: Cli, run: Run) -> None:
    """Says what is about to be trained, on what, and where it goes."""
    console = Console(emoji=False)
    network = cli.model.network
    parameters = sum(p.numel() for p in network.parameters())
    trainer = cli.trainer
    for note in run.notes:
        console.print(note, style="yellow", highlight=False, markup=False)
    verb = f"resuming from {run.checkpoint}" if run.checkpoint else "training"
    console.print(
        f"[bold]{escape(cli.experiment)}[/]: {escape(verb)}\n"
        f"  network  {type(network).__name__}, {parameters:,} parameters\n"
        f"  data     {type(cli.datamodule).__name__}, batches of {cli.datamodule.batch_size}"
        + _accumulated(cli.datamodule.batch_size, trainer.accumulate_grad_batches)
        + f"\n  device   {trainer.world_size} x {trainer.strategy.root_device.type}, {trainer.precision}\n"
        f"  run      {escape(str(run.path))}",
        highlight=False,
    )


def _accumulated(batch_size: int, batches: int) -> str:
    return f" x {batches} accumulated = {batch_size * batches} images a step" if batches > 1 else ""


def print_summary(cli: Cli, run: Run, results: dict[str, Any], cost: dict[str, float]) -> None:
    """Says how good the network is, what it costs, and what lies where."""
    console = Console(emoji=False)
    monitor, score = cli.checkpoints.monitor, cli.checkpoints.best_score
    if score is not None:
        console.print(f"best {monitor} {score:.4f} at step {cli.checkpoints.best_step}", highlight=False, markup=False)
    for each in run.facts.get("changes", []):
        console.print(f"from step {each['step']} on: {'; '.join(each['changes'])}", highlight=False, markup=False)
    if results:
        console.print("\n".join(result_lines(results)), highlight=False)
    if cost:
        console.print(
            f"{readable(cost['params'])} parameters, {readable(cost['macs'])} multiply-adds an image "
            f"(executed, mean of {int(cost['macs_samples'])} images)",
            highlight=False,
        )
    for trouble in troubles(cli.trainer):
        console.print(f"[yellow]{escape(trouble)}[/]", highlight=False, soft_wrap=True)
    table = Table(title=escape(str(run.path)), title_justify="left", box=None, show_header=False, pad_edge=True)
    reports = [each for each in cli.trainer.callbacks if isinstance(each, Report)]  # type: ignore[attr-defined]
    for name, what in content(reports, run).items():
        if (run.path / name).exists():
            table.add_row(name, what)
    console.print(table, highlight=False)


def troubles(trainer: Trainer) -> list[str]:
    """What a run did without, in the end: pictures, files of reports, W&B."""
    reports = [each for each in trainer.callbacks if isinstance(each, Report)]  # type: ignore[attr-defined]
    trackers = [each.trouble for each in trainer.loggers if isinstance(each, Tracker)]
    return [each for each in [*(t for r in reports for t in (r.undrawn, r.unwritten)), *trackers] if each]


def result_lines(results: dict[str, float]) -> list[str]:
    """Metrics in few lines: those of one kind at several exits or budgets share one."""
    alone = []
    groups: dict[str, list[str]] = {}
    for name, value in results.items():
        shown = f"[bold]{readable(value) if abs(value) >= 1e5 else format(value, '#.4g')}[/]"
        for mark, title, unit in (("_exit", "by exit", ""), ("_at_", "at a budget of", " %")):
            kind, found, place = name.partition(mark)
            if found:
                groups.setdefault(f"{escape(kind)} {title}", []).append(f"{place}{unit} {shown}")
                break
        else:
            alone.append(f"{escape(name)} {shown}")
    return ["  ".join(alone), *(f"{title}  {'  '.join(values)}" for title, values in groups.items())]
