"""What `validate` and `test` share: a checkpoint, a split, a table and pictures."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from callbacks.reports import Place, Report
from callbacks.whole_files import write_whole
from drawing.numbers import number
from exp.cli import Cli
from exp.errors import exit_code
from exp.exporting.runtime import take_file
from exp.packaged_weights import network_of
from exp.probe import probe
from exp.quiet import silence
from exp.trainers import place_reports
from exp.usage import UsageError
from exp.weights import to_evaluate


def evaluate(argv: list[str], command: str) -> int:
    """Evaluates a checkpoint; prints a table and writes it, with pictures, beside the checkpoint's run.

    Args:
        argv: what follows the command's name.
        command: `validate` or `test`.
    """
    silence()
    cli = Cli(argv, command)
    with exit_code(cli) as outcome:
        checkpoint = to_evaluate(cli) if cli.config.runtime is None else take_file(cli)
        if cli.config.probe is not None:
            probe(cli, checkpoint, output_folder(cli, checkpoint, "probe"))
            return outcome.code
        folder = output_folder(cli, checkpoint, command)
        place_reports(cli.trainer, Place(folder, folder))
        before = _times(folder)
        run = getattr(cli.trainer, command)
        results = run(cli.model, cli.datamodule, ckpt_path=cli.config.ckpt_path, weights_only=True, verbose=False)
        if not results:
            raise UsageError(f"the data has nothing to {command}")
        if cli.trainer.is_global_zero:
            table = Table("metric", "value", box=None)
            for name, value in results[0].items():
                table.add_row(escape(name), number(value))
            console = Console(emoji=False)
            console.print(f"{command} of {checkpoint}", highlight=False, soft_wrap=True, markup=False)
            console.print(table)
            findings = getattr(cli.model, "findings", None)
            if details := findings.table() if findings is not None else []:
                columns, *rows = details
                classes = Table(*map(escape, columns), box=None)
                for row in rows:
                    classes.add_row(*map(escape, row))
                console.print(classes, highlight=False)
            write_whole(folder / "metrics.json", json.dumps(results[0], indent=2) + "\n")
            # What an earlier evaluation with other options has left is not of this one.
            written = {path.parts[0] for path, time in _times(folder).items() if before.get(path) != time}
            reports = [each for each in cli.trainer.callbacks if isinstance(each, Report)]  # type: ignore[attr-defined]
            outcome.code = int(any(each.unwritten for each in reports))
            console.print(f"in {folder}: {', '.join(sorted(written))}", highlight=False, soft_wrap=True, markup=False)
    return outcome.code


def _times(folder: Path) -> dict[Path, int]:
    """When the files below a folder were written, by their paths in it."""
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def output_folder(cli: Cli, checkpoint: Path, name: str) -> Path:
    """Where a command puts what it makes of a checkpoint: in its run, else beside it; of a package, among the runs."""
    folder = checkpoint.resolve().parent
    run = folder.parent if folder.name == "checkpoints" else folder
    if network := network_of(checkpoint):
        run = Path(cli.config.runs).resolve() / network
    path = run / name
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
