"""`python -m exp predict`: labels for image files and folders, as a table and an annotated contact sheet."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from callbacks.drawing import contact_sheet, save
from exp.checkpoint_io import read_checkpoint
from exp.cli import Cli, UsageError
from exp.errors import exit_code
from exp.evaluation import output_folder
from exp.quiet import silence
from exp.spending import Spending, policy_for, print_spending

TOP = 5
ON_SHEET = 36


def main(argv: list[str]) -> int:
    """Labels the files and folders among the arguments with `--ckpt_path`."""
    silence()
    paths, options = split_paths(argv)
    cli = Cli(options, "predict")
    with exit_code(cli) as outcome:
        checkpoint = cli.config.ckpt_path
        if checkpoint is None:
            raise UsageError("predict needs --ckpt_path: the checkpoint to label with")
        if not paths:
            raise UsageError("predict needs image files or folders: python -m exp predict --ckpt_path FILE images/")
        data = cli.datamodule
        if cli.trainer.world_size > 1:
            raise UsageError("predict runs on one device: set trainer.devices=1")
        data.predict_paths = paths
        content = read_checkpoint(Path(checkpoint))
        if (policy := policy_for(cli, Path(checkpoint), content)) is not None:
            cli.model.policy = policy
        spending = Spending()
        cli.trainer.callbacks.append(spending)  # type: ignore[attr-defined]
        names = content.get("class_names", [])
        batches = cli.trainer.predict(cli.model, data, ckpt_path=checkpoint, weights_only=True)
        _write(cli, batches or [], names, output_folder(Path(checkpoint), "predict"), spending)
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


def _write(cli: Cli, batches: list[Any], names: list[str], folder: Path, spending: Spending) -> None:
    data = cli.datamodule
    indices = torch.cat([batch["index"] for batch in batches]).tolist()
    probabilities = torch.cat([batch["probabilities"] for batch in batches]).cpu()
    exits = torch.cat([batch["exit"] for batch in batches]).cpu() if "exit" in batches[0] else None
    names = names or [f"class {i}" for i in range(probabilities.shape[1])]
    values, classes = probabilities.topk(min(TOP, len(names)))
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "predictions.csv"
    columns = [c for i in range(values.shape[1]) for c in (f"label_{i + 1}", f"probability_{i + 1}")]
    columns += ["exit"] if exits is not None else []
    with target.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *columns])
        for row, index in enumerate(indices):
            pairs = zip(classes[row].tolist(), values[row].tolist(), strict=True)
            cells = [cell for c, p in pairs for cell in (names[c], f"{p:.4f}")]
            cells += [str(int(exits[row]))] if exits is not None else []
            writer.writerow([data.sample_name("predict", index), *cells])
    shown = range(min(ON_SHEET, len(indices)))
    captions = [
        f"{Path(data.sample_name('predict', indices[i])).name}\n{names[int(classes[i, 0])]} ({values[i, 0]:.0%})"
        for i in shown
    ]
    images = [data.raw_image("predict", indices[i]) for i in shown]
    title = f"{len(indices)} images" + (f", the first {ON_SHEET}" if len(indices) > ON_SHEET else "")
    sheet = save(contact_sheet(images, captions, title), folder / "contact_sheet.png")
    console = Console()
    table = Table("file", "label", "probability", box=None)
    for i in shown:
        table.add_row(data.sample_name("predict", indices[i]), names[int(classes[i, 0])], f"{values[i, 0]:.4f}")
    console.print(table, highlight=False)
    for name, reason in data.bad_samples.items():
        console.print(f"[yellow]skipped {name}: {reason}[/]", highlight=False)
    spent = spending.report(cli, exits, len(indices))
    print_spending(spent, console)
    (folder / "compute.json").write_text(json.dumps(spent, indent=2) + "\n")
    console.print(f"wrote {target} and {sheet}", highlight=False, soft_wrap=True)
