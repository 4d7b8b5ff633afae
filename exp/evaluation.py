"""What `validate` and `test` share: a checkpoint, a split, a table and pictures."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from callbacks import ExitCurve
from callbacks.detection_pictures import DetectionFiles, DetectionPictures, category_rows
from callbacks.dynamic_pictures import DynamicPictures
from callbacks.pictures import ClassificationPictures
from exp.cli import Cli, UsageError
from exp.errors import exit_code
from exp.quiet import silence
from exp.weights import to_evaluate
from lightning_modules import Detection


def evaluate(argv: list[str], command: str) -> int:
    """Evaluates a checkpoint; prints a table and writes it, with pictures, beside the checkpoint's run.

    Args:
        argv: what follows the command's name.
        command: `validate` or `test`.
    """
    silence()
    cli = Cli(argv, command)
    with exit_code(cli) as outcome:
        checkpoint, _ = to_evaluate(cli)
        folder = output_folder(checkpoint, command)
        for callback in cli.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(
                callback, (ClassificationPictures, DetectionFiles, DetectionPictures, DynamicPictures, ExitCurve)
            ):
                callback.folder = folder
            if isinstance(callback, ExitCurve) and command == "validate":
                callback.file = folder / "thresholds.json"
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
            if isinstance(cli.model, Detection) and cli.model.report is not None:
                columns, *rows = category_rows(cli.model.report)
                categories = Table(*columns, box=None)
                for row in rows:
                    categories.add_row(*row)
                console.print(categories, highlight=False)
            files = ", ".join(sorted(p.name for p in folder.iterdir()))
            console.print(f"in {folder}: {files}", highlight=False, soft_wrap=True)
    return outcome.code


def output_folder(checkpoint: Path, name: str) -> Path:
    """Where a command puts what it makes of a checkpoint: in the checkpoint's run, else beside the checkpoint."""
    folder = checkpoint.resolve().parent
    run = folder.parent if folder.name == "checkpoints" else folder
    path = run / name
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
