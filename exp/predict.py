"""`python -m exp predict`: what is in image files and folders, as tables, files and pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from callbacks import Cost
from callbacks.reports import Place, Predictions, Source
from callbacks.whole_files import write_whole
from exp.checkpoint_contents import check_contents
from exp.checkpoint_io import read_checkpoint
from exp.cli import Cli
from exp.errors import exit_code
from exp.evaluation import output_folder
from exp.exporting.sizes import meeting
from exp.packaged_weights import class_names
from exp.quiet import silence
from exp.trainers import place_reports
from exp.usage import UsageError
from exp.weights import to_evaluate
from models.mistakes import Mistake


def main(argv: list[str]) -> int:
    """Predicts for the files and folders among the arguments with `--ckpt_path` or `--weights`."""
    silence()
    paths, options = split_paths(argv)
    cli = Cli(meeting(options), "predict")
    with exit_code(cli) as outcome:
        if not paths:
            raise UsageError("predict needs image files or folders: python -m exp predict --ckpt_path FILE images/")
        data = cli.datamodule
        if cli.trainer.world_size > 1:
            raise UsageError("predict runs on one device: set trainer.devices=1")
        data.predict_paths = paths
        checkpoint = to_evaluate(cli)
        content = read_checkpoint(checkpoint) if cli.config.ckpt_path else {}
        check_contents(checkpoint, content)
        data.setup("predict")
        names = list(content.get("class_names") or class_names(checkpoint) or data.class_names)
        folder = output_folder(cli, checkpoint, "predict")
        cost = Cost()
        try:
            predictions = cli.predictions.build(cli.config, cli.model)
            source = Source(checkpoint, content, names, output_folder(cli, checkpoint, "validate"))
            predictions.prepare(cli.trainer, cli.model, source)
        except Mistake as error:
            raise UsageError(str(error)) from error
        # The clock of the predictions starts when everybody else has looked at a batch.
        cli.trainer.callbacks += [cost, predictions]  # type: ignore[attr-defined]
        place_reports(cli.trainer, Place(folder, folder))
        batches = cli.trainer.predict(cli.model, data, ckpt_path=cli.config.ckpt_path, weights_only=True)
        folder.mkdir(parents=True, exist_ok=True)
        _finish(cli, predictions, cost, batches or [], folder)
    return outcome.code


def split_paths(argv: list[str]) -> tuple[list[Path], list[str]]:
    """Separates the existing files and folders from the options and their values."""
    paths: list[Path] = []
    options: list[str] = []
    value_expected = False
    for argument in argv:
        is_option = argument.startswith("-")
        if not is_option and not value_expected:
            if not os.path.exists(argument):
                raise UsageError(f"predict: no such file or folder: {argument}")
            paths.append(Path(argument))
        else:
            options.append(argument)
        value_expected = is_option and "=" not in argument and argument not in ("-h", "--help", "--print_config")
    return paths, options


def _finish(cli: Cli, predictions: Predictions, cost: Cost, batches: list[Any], folder: Path) -> None:
    # Names of files and classes are text and nothing else.
    console = Console(emoji=False)
    written = predictions.finish(batches, folder, console)
    for name, reason in cli.datamodule.bad_samples.items():
        console.print(f"[yellow]skipped {escape(f'{name}: {reason}')}[/]", highlight=False)
    spent = predictions.spent(cost, sum(len(batch["index"]) for batch in batches))
    predictions.tell_spent(spent, console)
    write_whole(folder / "compute.json", json.dumps(spent, indent=2) + "\n")
    console.print(f"wrote {', '.join(map(str, written))}", highlight=False, soft_wrap=True, markup=False)
