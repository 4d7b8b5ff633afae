"""`python -m exp predict`: what is in image files and folders, as tables, files and pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from rich.console import Console

from exp.checkpoint_io import read_checkpoint
from exp.cli import Cli, UsageError
from exp.errors import exit_code
from exp.evaluation import output_folder
from exp.predict_classification import write_labels
from exp.predict_detection import write_detections
from exp.predict_pose import write_poses
from exp.predict_queries import query_pictures
from exp.predict_segmentation import deadline_for, write_segmentations
from exp.quiet import silence
from exp.spending import Spending, policy_for, print_spending
from exp.weights import to_evaluate
from lightning_modules import Detection, PoseEstimation, Segmentation

# Writes what a task predicted: (command, batches, class names, folder, console) -> exits of the images, paths written.
Writer = Callable[[Cli, list[Any], list[str], Path, Console], tuple[Any, list[Path]]]


def main(argv: list[str]) -> int:
    """Predicts for the files and folders among the arguments with `--ckpt_path` or `--weights`."""
    silence()
    paths, options = split_paths(argv)
    cli = Cli(options, "predict")
    with exit_code(cli) as outcome:
        if not paths:
            raise UsageError("predict needs image files or folders: python -m exp predict --ckpt_path FILE images/")
        data = cli.datamodule
        if cli.trainer.world_size > 1:
            raise UsageError("predict runs on one device: set trainer.devices=1")
        data.predict_paths = paths
        checkpoint = to_evaluate(cli)
        content = read_checkpoint(checkpoint) if cli.config.ckpt_path else {}
        if (policy := policy_for(cli, checkpoint, content)) is not None:
            cli.model.policy = policy
        if (deadline := deadline_for(cli)) is not None:
            cli.model.deadline = deadline
        spending = Spending()
        cli.trainer.callbacks.append(spending)  # type: ignore[attr-defined]
        data.setup("predict")
        names = content.get("class_names") or list(data.class_names)
        folder = output_folder(checkpoint, "predict")
        if cli.config.query is not None:
            pictures = query_pictures(cli, names, folder / "queries")
            cli.trainer.callbacks.append(pictures)  # type: ignore[attr-defined]
        batches = cli.trainer.predict(cli.model, data, ckpt_path=cli.config.ckpt_path, weights_only=True)
        folder.mkdir(parents=True, exist_ok=True)
        _finish(cli, batches or [], names, folder, spending)
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


def writer_of(module: LightningModule) -> Writer:
    """What writes the predictions of a task."""
    writers: dict[type, Writer] = {
        Detection: write_detections,
        PoseEstimation: write_poses,
        Segmentation: write_segmentations,
    }
    return next((writer for task, writer in writers.items() if isinstance(module, task)), write_labels)


def _finish(cli: Cli, batches: list[Any], names: list[str], folder: Path, spending: Spending) -> None:
    console = Console()
    exits, written = writer_of(cli.model)(cli, batches, names, folder, console)
    if cli.config.query is not None:
        written.append(folder / "queries")
    for name, reason in cli.datamodule.bad_samples.items():
        console.print(f"[yellow]skipped {name}: {reason}[/]", highlight=False)
    spent = spending.report(cli, exits, sum(len(batch["index"]) for batch in batches))
    print_spending(spent, console)
    (folder / "compute.json").write_text(json.dumps(spent, indent=2) + "\n")
    console.print(f"wrote {', '.join(map(str, written))}", highlight=False, soft_wrap=True)
