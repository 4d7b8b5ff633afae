"""What `predict` makes of a classifier's answers: a table of labels and an annotated contact sheet."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from drawing.figures import contact_sheet, save
from exp.cli import Cli

TOP = 5
ON_SHEET = 36


def write_labels(
    cli: Cli, batches: list[Any], names: list[str], folder: Path, console: Console
) -> tuple[Tensor | None, list[Path]]:
    """Writes `predictions.csv` and `contact_sheet.png`, and prints the first labels.

    Args:
        cli: the command, after its prediction.
        batches: what the prediction steps returned.
        names: of the classes; empty for a checkpoint that does not say.
        folder: where the files go.
        console: where the table goes.

    Returns:
        The exit of each image, if there was a budget, and the files.
    """
    data = cli.datamodule
    indices = torch.cat([batch["index"] for batch in batches]).tolist()
    probabilities = torch.cat([batch["probabilities"] for batch in batches]).cpu()
    exits = torch.cat([batch["exit"] for batch in batches]).cpu() if "exit" in batches[0] else None
    names = names or [f"class {i}" for i in range(probabilities.shape[1])]
    values, classes = probabilities.topk(min(TOP, len(names)))
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
    table = Table(Column("file", overflow="fold"), "label", "probability", box=None)
    for i in shown:
        table.add_row(data.sample_name("predict", indices[i]), names[int(classes[i, 0])], f"{values[i, 0]:.4f}")
    console.print(table, highlight=False)
    return exits, [target, sheet]
