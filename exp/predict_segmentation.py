"""What `predict` makes of a segmenter's answers: pictures under classes, label files, a table; and its deadline."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Column, Table

from callbacks.drawing import contact_sheet, save
from callbacks.route_drawing import readable, route_sheet
from callbacks.route_pictures import RoutePictures, routed_image
from callbacks.segmentation_drawing import blended, overlay
from callbacks.segmentation_pictures import file_names, write_labels
from exp.cli import Cli, UsageError
from lightning_modules import Segmentation
from models.anytime import Deadline, MultiExit

ON_SHEET = 20
# Classes that the printed table names.
LARGEST = 3


def deadline_for(cli: Cli) -> Deadline | None:
    """How long may be computed on an image, by `--deadline-ms`; None without one.

    Args:
        cli: the command.

    Raises:
        UsageError: a deadline that cannot be kept; the message says why.
    """
    milliseconds, model = cli.config.deadline_ms, cli.model
    if milliseconds is None:
        return None
    if not isinstance(model, Segmentation) or not isinstance(model.network, MultiExit):
        raise UsageError(
            f"--deadline-ms: {type(model.network).__name__} has no exits to stop at; leave --deadline-ms out, or train "
            "a segmenter with exits, such as ADP-C"
        )
    if model.sliding_window is not None or model.multi_scale is not None:
        raise UsageError("--deadline-ms is for whole images: set sliding_window and multi_scale to null")
    device = cli.trainer.strategy.root_device

    def wait() -> None:
        # The CPU always has done what it was given.
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    try:
        return Deadline(milliseconds / 1e3, wait)
    except ValueError as error:
        raise UsageError(f"--deadline-ms {milliseconds:g}: it must be above 0") from error


def write_segmentations(
    cli: Cli, batches: list[Any], names: list[str], folder: Path, console: Console
) -> tuple[None, list[Path]]:
    """Writes `predictions.csv`, a picture for each image and `contact_sheet.png`, and prints what covers the images.

    With `write_labels`, each image also gets a PNG of the data set's label ids, as its evaluation server takes it.
    Where images take routes of their own, `routes/` shows each, and the table says what it cost.

    Args:
        cli: the command, after its prediction.
        batches: what the prediction steps returned.
        names: of the classes; empty for a checkpoint that does not say.
        folder: where the files go.
        console: where the table goes.

    Returns:
        None, as images have no exits of their own to be paid for, and the files.
    """
    data, model = cli.datamodule, cli.model
    indices = [index for batch in batches for index in batch["index"].tolist()]
    predicted = [labels.numpy() for batch in batches for labels in batch["predicted"]]
    exits = [exit for batch in batches for exit in batch.get("exit", [])]
    seconds = [time for batch in batches for time in batch.get("seconds", [])]
    names = names or [f"class {k}" for k in range(model.num_classes)]
    files = file_names(data, "predict")
    routes = next(each.routes for each in cli.trainer.callbacks if isinstance(each, RoutePictures))  # type: ignore[attr-defined]
    places = {index: place for place, index in enumerate(routes.index)} if routes is not None else {}
    extra = [*(["exit", "ms"] if exits else []), *(["multiply-adds"] if routes is not None else [])]
    table = Table(Column("file", overflow="fold"), "largest classes", *extra, box=None)
    rows, images, captions = [], [], []
    for i, (index, labels) in enumerate(zip(indices, predicted, strict=True)):
        name, image = data.sample_name("predict", index), data.raw_image("predict", index)
        shares = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
        largest = [k for k in np.argsort(-shares, kind="stable")[:LARGEST] if shares[k]]
        stopped = [str(exits[i]), f"{seconds[i] * 1e3:.2f}"] if exits else []
        spent = []
        if routes is not None:
            spent = [routes.macs[places[index]].item()]
            routed = routed_image(routes, places[index], Path(name).name, image)
            save(route_sheet("", [routed]), folder / "routes" / files[index])
        rows.append([name, *(f"{share:.4f}" for share in shares), *stopped, *(f"{macs:.0f}" for macs in spent)])
        largest_shares = ", ".join(f"{names[k]} {shares[k]:.0%}" for k in largest)
        table.add_row(name, largest_shares, *stopped, *map(readable, spent))
        title = Path(name).name + (f", exit {stopped[0]} after {stopped[1]} ms" if exits else "")
        save(overlay(image, labels, data.palette, names, title), folder / "pictures" / files[index])
        if model.write_labels:
            write_labels(labels, data.label_ids, folder / "labels" / files[index])
        if i < ON_SHEET:
            images.append(blended(image, labels, data.palette))
            captions.append(title)
    target = folder / "predictions.csv"
    with target.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *names, *(["exit", "milliseconds"] if exits else []), *(["macs"] if routes else [])])
        writer.writerows(rows)
    console.print(table, highlight=False)
    if exits:
        late = sum(each > model.deadline.seconds for each in seconds)
        console.print(f"{late} of {len(exits)} images took longer than {cli.config.deadline_ms:g} ms", highlight=False)
    sheet = save(contact_sheet(images, captions, f"{len(indices)} images"), folder / "contact_sheet.png")
    written = [target, sheet, folder / "pictures", *([folder / "routes"] if routes else [])]
    return None, [*written, folder / "labels"] if model.write_labels else written
