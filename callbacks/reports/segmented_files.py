"""What `predict` makes of a segmenter's answers: pictures under classes, label files, a table; and its deadline."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Column, Table
from typing_extensions import override

from callbacks.reports.predictions import Predictions, Source, wait_for
from callbacks.reports.routes import Routes, routed_image
from callbacks.reports.segmentation import file_names, write_labels
from callbacks.whole_files import write_picture, write_table
from drawing.figures import contact_sheet, readable
from drawing.routes import route_sheet
from drawing.segmentation import blended, overlay
from lightning_modules.segmentation import Segmentation
from lightning_modules.task import Batch, Task
from models import decisions
from models.anytime import Deadline, MultiExit

ON_SHEET = 20
# Classes that the printed table names.
LARGEST = 3


class SegmentedFiles(Predictions):
    """Writes the classes of each image's pixels, as pictures and, with `write_labels`, as a server takes them.

    Where images take routes of their own, `routes/` shows each, and the table says what it cost.

    Args:
        deadline_ms: segmentation by a network with exits: the milliseconds to compute on an image.
    """

    reads = Segmentation

    def __init__(self, deadline_ms: float | None = None) -> None:
        super().__init__()
        self.deadline_ms = deadline_ms
        self._routes: Routes | None = None

    @override
    def prepare(self, trainer: Trainer, task: Task, source: Source) -> None:
        super().prepare(trainer, task, source)
        if self.deadline_ms is None:
            return
        if not isinstance(task, Segmentation) or not isinstance(task.network, MultiExit):
            raise ValueError(
                f"--deadline-ms: {type(task.network).__name__} has no exits to stop at; leave --deadline-ms out, or "
                "train a segmenter with exits, such as ADP-C"
            )
        if task.sliding_window is not None or task.multi_scale is not None:
            raise ValueError("--deadline-ms is for whole images: set sliding_window and multi_scale to null")
        try:
            task.deadline = Deadline(self.deadline_ms / 1e3, partial(wait_for, trainer.strategy.root_device))
        except ValueError as error:
            raise ValueError(f"--deadline-ms {self.deadline_ms:g}: it must be above 0") from error

    @override
    def start(self) -> None:
        super().start()
        self._routes = Routes(self)

    @override
    def look(self, batch: Batch) -> None:
        decisions.forget(self.task.network)
        super().look(batch)

    @override
    def keep(self, batch: Batch, outputs: Any) -> None:
        super().keep(batch, outputs)
        found = {name: each for name, each in decisions.noted(self.task.network).items() if each.kind == "route"}
        if self._routes is not None and found and self.task.costs_one_forward:
            self._routes.keep(found, batch, outputs)

    @override
    def merge(self) -> None:
        if self._routes is not None:
            self._routes.merge()

    @override
    def finish(self, batches: list[Any], folder: Path, console: Console) -> list[Path]:
        data, task = self.data, self.task
        indices = [index for batch in batches for index in batch["index"].tolist()]
        predicted = [labels.numpy() for batch in batches for labels in batch["predicted"]]
        exits = [exit for batch in batches for exit in batch.get("exit", [])]
        seconds = [time for batch in batches for time in batch.get("seconds", [])]
        names = self.names or [f"class {k}" for k in range(task.num_classes)]
        files = file_names(data, "predict")
        routes = self._routes.taken if self._routes is not None else None
        # A fixed route is no image's own.
        routes = None if routes is None or routes.grid.fixed else routes
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
                write_picture(folder / "routes" / files[index], route_sheet("", [routed]))
            rows.append([name, *(f"{share:.4f}" for share in shares), *stopped, *(f"{macs:.0f}" for macs in spent)])
            largest_shares = ", ".join(f"{names[k]} {shares[k]:.0%}" for k in largest)
            table.add_row(name, largest_shares, *stopped, *map(readable, spent))
            title = Path(name).name + (f", exit {stopped[0]} after {stopped[1]} ms" if exits else "")
            picture = overlay(image, labels, data.palette, names, title)
            write_picture(folder / "pictures" / files[index], picture)
            if task.write_labels:
                write_labels(labels, data.label_ids, folder / "labels" / files[index])
            if i < ON_SHEET:
                images.append(blended(image, labels, data.palette))
                captions.append(title)
        target = folder / "predictions.csv"
        extra = [*(["exit", "milliseconds"] if exits else []), *(["macs"] if routes is not None else [])]
        write_table(target, [["file", *names, *extra], *rows])
        console.print(table, highlight=False)
        if exits:
            assert task.deadline is not None
            late = sum(each > task.deadline.seconds for each in seconds)
            console.print(f"{late} of {len(exits)} images took longer than {self.deadline_ms:g} ms", highlight=False)
        sheet = write_picture(folder / "contact_sheet.png", contact_sheet(images, captions, f"{len(indices)} images"))
        written = [target, sheet, folder / "pictures"]
        written += [folder / "routes"] if routes is not None else []
        return [*written, folder / "labels"] if task.write_labels else written
