"""What `validate` and `test` share: a checkpoint, a split, a table and pictures."""

from __future__ import annotations

import json
from pathlib import Path

from lightning.pytorch import LightningModule
from rich.console import Console
from rich.table import Table

from callbacks import ExitCurve
from callbacks.detection_pictures import category_rows
from exp.cli import Cli, UsageError
from exp.errors import exit_code
from exp.outputs import place
from exp.quiet import silence
from exp.weights import to_evaluate
from lightning_modules import Detection, Segmentation


def evaluate(argv: list[str], command: str) -> int:
    """Evaluates a checkpoint; prints a table and writes it, with pictures, beside the checkpoint's run.

    Args:
        argv: what follows the command's name.
        command: `validate` or `test`.
    """
    silence()
    cli = Cli(argv, command)
    with exit_code(cli) as outcome:
        checkpoint = to_evaluate(cli)
        folder = output_folder(checkpoint, command)
        place(cli.trainer.callbacks, folder, folder)  # type: ignore[attr-defined]
        for callback in cli.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ExitCurve) and command == "validate":
                callback.file = folder / "thresholds.json"
        before = _times(folder)
        run = getattr(cli.trainer, command)
        results = run(cli.model, cli.datamodule, ckpt_path=cli.config.ckpt_path, weights_only=True, verbose=False)
        if not results:
            raise UsageError(f"the data has nothing to {command}")
        if cli.trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "metrics.json").write_text(json.dumps(results[0], indent=2) + "\n")
            table = Table("metric", "value", box=None)
            for name, value in results[0].items():
                table.add_row(name, f"{value:.4f}")
            console = Console()
            console.print(f"{command} of {checkpoint}", highlight=False, soft_wrap=True)
            console.print(table)
            if details := _by_class(cli.model):
                columns, *rows = details
                classes = Table(*columns, box=None)
                for row in rows:
                    classes.add_row(*row)
                console.print(classes, highlight=False)
            # What an earlier evaluation with other options has left is not of this one.
            written = {path.parts[0] for path, time in _times(folder).items() if before.get(path) != time}
            console.print(f"in {folder}: {', '.join(sorted(written))}", highlight=False, soft_wrap=True)
    return outcome.code


def _times(folder: Path) -> dict[Path, int]:
    """When the files below a folder were written, by their paths in it."""
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def _by_class(module: LightningModule) -> list[list[str]]:
    """A header and rows of what a task says about each class; nothing for a task that does not."""
    if isinstance(module, Detection) and module.report is not None:
        return category_rows(module.report)
    if isinstance(module, Segmentation) and module.report is not None:
        return module.report.rows(["iou"])
    return []


def output_folder(checkpoint: Path, name: str) -> Path:
    """Where a command puts what it makes of a checkpoint: in the checkpoint's run, else beside the checkpoint."""
    folder = checkpoint.resolve().parent
    run = folder.parent if folder.name == "checkpoints" else folder
    path = run / name
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
