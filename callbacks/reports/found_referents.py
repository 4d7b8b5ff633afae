"""What `predict` makes of a referring expression: the box of what it means in each image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from typing_extensions import override

from callbacks.reports.file_names import picture_name
from callbacks.reports.predictions import Predictions, Source
from callbacks.whole_files import write_picture, write_table
from drawing.detection import Objects, overlay
from drawing.figures import LARGE
from lightning_modules.referring import ReferringExpressions
from lightning_modules.task import Batch, Task
from models.mistakes import Mistake

# Images of which there is a picture, and a row on the console.
DRAWN = 36


class FoundReferents(Predictions):
    """Finds what an expression means in each image: `predictions.csv` with the box of each, and pictures of them.

    Args:
        question: The expression, such as `the digit that touches the 3`.
    """

    reads = ReferringExpressions

    def __init__(self, question: str | None = None) -> None:
        super().__init__()
        self.question = question

    @override
    def prepare(self, trainer: Trainer, task: Task, source: Source) -> None:
        super().prepare(trainer, task, source)
        if self.question is None:
            raise Mistake('say what is meant, as in --question "the digit that touches the 3"')

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tells the data what is said."""
        trainer.datamodule.asked = self.question or ""  # type: ignore[attr-defined]

    @override
    def keep(self, batch: Batch, outputs: Any) -> None:
        super().keep(batch, outputs)
        del outputs["decisions"]

    @override
    def finish(self, batches: list[Any], folder: Path, console: Console) -> list[Path]:
        data, said = self.data, str(self.question)
        if unknown := data.unknown_words(said):
            listed = ", ".join(map(repr, unknown))
            console.print(f"[yellow]the network does not know {escape(listed)}[/]", highlight=False)
        rows = [["file", "expression", "x1", "y1", "x2", "y2", "probability"]]
        table = Table(Column("file", overflow="fold"), "box", "probability", box=None)
        written: list[Path] = []
        for batch in batches:
            found = (batch[name].tolist() for name in ("index", "box", "sure"))
            for index, box, sure in zip(*found, strict=True):
                file = data.sample_name("predict", index)
                height, width = data.image_size("predict", index)
                pixels = [f"{each:.1f}" for each in np.array(box) * [width, height, width, height]]
                rows.append([file, said, *pixels, f"{sure:.4f}"])
                if len(written) == DRAWN:
                    continue
                table.add_row(escape(file), ", ".join(pixels), f"{sure:.4f}")
                image = data.picture("predict", index, LARGE)
                corners = np.array([box]) * np.tile(image.shape[1::-1], 2)
                meant = Objects(corners, np.zeros(1, np.int64), np.array([sure]))
                picture = overlay(image, meant, [said])
                written.append(write_picture(folder / picture_name(data, index), picture))
        target = folder / "predictions.csv"
        write_table(target, rows)
        console.print(table, highlight=False)
        return [target, *written]
