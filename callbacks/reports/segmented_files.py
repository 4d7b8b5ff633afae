"""What `predict` makes of a segmenter's answers: pictures under classes, label files, a table; and its deadline."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from typing_extensions import override

from callbacks.reports.file_names import file_names
from callbacks.reports.predictions import Predictions, Source, title_of, wait_for
from callbacks.reports.routes import Routes, routed_image
from callbacks.reports.segmentation import write_labels
from callbacks.whole_files import write_picture, write_table
from drawing.figures import LARGE, SMALL, contact_sheet
from drawing.numbers import readable
from drawing.routes import route_sheet
from drawing.segmentation import blended, class_pixels, overlay
from lightning_modules.segmentation import Segmentation
from lightning_modules.task import Batch, Task
from models import decisions
from models.anytime import Deadline, MultiExit
from models.mistakes import Mistake

ON_SHEET = 20
# Classes that the printed table names.
LARGEST = 3


@dataclass(frozen=True)
class _Segmented:
    """One image: its position, each class's share of its pixels, and the exit and seconds that a deadline left."""

    index: int
    shares: np.ndarray
    stop: tuple[int, float] | None


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
        self._seen: list[_Segmented] = []
        # Pictures on the sheet, with a caption each.
        self._sheet: list[tuple[np.ndarray, str]] = []
        self._files: list[str] = []

    @override
    def prepare(self, trainer: Trainer, task: Task, source: Source) -> None:
        super().prepare(trainer, task, source)
        if self.deadline_ms is None:
            return
        if not isinstance(task, Segmentation) or not isinstance(task.network, MultiExit):
            raise Mistake(
                f"--deadline-ms: {type(task.network).__name__} has no exits to stop at; leave --deadline-ms out, or "
                "train a segmenter with exits, such as ADP-C"
            )
        if task.sliding_window is not None or task.multi_scale is not None:
            raise Mistake("--deadline-ms is for whole images: set sliding_window and multi_scale to null")
        try:
            task.deadline = Deadline(self.deadline_ms / 1e3, partial(wait_for, trainer.strategy.root_device))
        except ValueError as error:
            raise Mistake(f"--deadline-ms {self.deadline_ms:g}: it must be above 0") from error

    @override
    def start(self) -> None:
        super().start()
        self._routes = Routes(self)
        self._seen, self._sheet = [], []
        self._files = file_names(self.data, "predict")

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
        # Classes of pixels are drawn and let go: those of many photographs would fill the memory.
        for i, labels in enumerate(outputs.pop("predicted")):
            stop = (int(outputs["exit"][i]), outputs["seconds"][i]) if "exit" in outputs else None
            self._take(int(outputs["index"][i]), labels.numpy(), stop)

    @override
    def entries(self, batches: list[Any], task: Any, data: Any) -> list[dict[str, Any]]:
        """Of each image `file`, `classes`, those of its pixels, uint8 [h, w], and `shares` of the pixels by name."""
        names = self.names or [f"class {k}" for k in range(task.num_classes)]
        entries = []
        for batch in batches:
            for index, labels in zip(batch["index"].tolist(), batch["predicted"], strict=True):
                classes = labels.numpy()
                shares = class_pixels(classes, len(names)) / classes.size
                by_name = {name: round(float(share), 4) for name, share in zip(names, shares, strict=True)}
                entries.append({"file": data.sample_name("predict", index), "classes": classes, "shares": by_name})
        return entries

    def _take(self, index: int, labels: np.ndarray, stop: tuple[int, float] | None) -> None:
        names = self._class_names()
        shares = class_pixels(labels, len(names)) / labels.size
        self._seen.append(_Segmented(index, shares, stop))
        if self.place is None:
            return
        folder, palette = self.place.pictures, self.data.palette
        title = Path(self.data.sample_name("predict", index)).name
        title += "" if stop is None else f", exit {stop[0]} after {stop[1] * 1e3:.2f} ms"
        image = self.data.picture("predict", index, LARGE)
        write_picture(folder / "pictures" / self._files[index], overlay(image, labels, palette, names, title))
        if self.task.write_labels:
            write_labels(labels, self.data.label_ids, folder / "labels" / self._files[index])
        if len(self._sheet) < ON_SHEET:
            self._sheet.append((blended(self.data.picture("predict", index, SMALL), labels, palette), title))

    def _class_names(self) -> list[str]:
        return self.names or [f"class {k}" for k in range(self.task.num_classes)]

    @override
    def merge(self) -> None:
        if self._routes is not None:
            self._routes.merge()

    @override
    def finish(self, batches: list[Any], folder: Path, console: Console) -> list[Path]:
        names, exits = self._class_names(), any(each.stop is not None for each in self._seen)
        routes = self._routes.taken if self._routes is not None else None
        # A fixed route is no image's own.
        routes = None if routes is None or routes.grid.fixed else routes
        places = {index: place for place, index in enumerate(routes.index)} if routes is not None else {}
        extra = [*(["exit", "ms"] if exits else []), *(["multiply-adds"] if routes is not None else [])]
        table = Table(Column("file", overflow="fold"), "largest classes", *extra, box=None)
        rows = []
        for each in self._seen:
            name = self.data.sample_name("predict", each.index)
            largest = [k for k in np.argsort(-each.shares, kind="stable")[:LARGEST] if each.shares[k]]
            stopped = [str(each.stop[0]), f"{each.stop[1] * 1e3:.2f}"] if each.stop is not None else []
            spent = []
            if routes is not None:
                spent = [routes.macs[places[each.index]].item()]
                image = self.data.picture("predict", each.index, LARGE)
                routed = routed_image(routes, places[each.index], Path(name).name, image)
                write_picture(folder / "routes" / self._files[each.index], route_sheet("", [routed]))
            shares = (f"{share:.4f}" for share in each.shares)
            rows.append([name, *shares, *stopped, *(f"{macs:.0f}" for macs in spent)])
            largest_shares = ", ".join(f"{names[k]} {each.shares[k]:.0%}" for k in largest)
            table.add_row(escape(name), escape(largest_shares), *stopped, *map(readable, spent))
        target = folder / "predictions.csv"
        extra = [*(["exit", "milliseconds"] if exits else []), *(["macs"] if routes is not None else [])]
        write_table(target, [["file", *names, *extra], *rows])
        console.print(table, highlight=False)
        if exits:
            assert self.task.deadline is not None
            seconds = [each.stop[1] for each in self._seen if each.stop is not None]
            late = sum(each > self.task.deadline.seconds for each in seconds)
            console.print(f"{late} of {len(seconds)} images took longer than {self.deadline_ms:g} ms", highlight=False)
        images, captions = [image for image, _ in self._sheet], [caption for _, caption in self._sheet]
        title = title_of(len(self._seen), ON_SHEET)
        sheet = write_picture(folder / "contact_sheet.png", contact_sheet(images, captions, title))
        written = [target, sheet, folder / "pictures"]
        written += [folder / "routes"] if routes is not None else []
        return [*written, folder / "labels"] if self.task.write_labels else written
