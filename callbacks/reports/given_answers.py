"""What `predict` makes of questions about images: answers with a picture of where they are from, or features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from torch import Tensor, nn
from typing_extensions import override

from callbacks.reports.file_names import picture_name
from callbacks.reports.looks import Look, looks
from callbacks.reports.predictions import Predictions, Source
from callbacks.whole_files import whole, write_picture, write_table
from drawing.figures import LARGE
from drawing.questions import Answered, answer_sheet
from lightning_modules.question_answering import QuestionAnswering
from lightning_modules.task import Batch, Task
from models.mistakes import Mistake

TOP = 5
# Images of which there is a picture.
DRAWN = 36


class GivenAnswers(Predictions):
    """Answers one question about each image, with the likeliest answers and their probabilities.

    `predictions.csv` has a row for each image; a picture of each shows what the answer takes of its cells, and how far
    each layer of the network looks.

    Args:
        question: What is asked, such as `which digit touches the 3?`.
        features: A folder: instead of answers, the features of each image's cells are written there, one `.npy` file
            an image, float16 [h, w, C], which a training reads instead of the images.
    """

    reads = QuestionAnswering

    def __init__(self, question: str | None = None, features: str | None = None) -> None:
        super().__init__()
        self.question = question
        self.features = None if features is None else Path(features)
        self._written: dict[str, str] = {}
        self._looks: list[Look] = []

    @override
    def prepare(self, trainer: Trainer, task: Task, source: Source) -> None:
        super().prepare(trainer, task, source)
        if (self.question is None) == (self.features is None):
            raise Mistake(
                'say what is asked, as in --question "which digit touches the 3?", or where the features of the '
                "images go by --features FOLDER"
            )
        if self.features is None:
            return
        if not hasattr(task.network, "cells"):
            raise Mistake(
                f"--features: {type(task.network).__name__} takes features and makes none of images; give a run of "
                "models.vqa.FromImages"
            )
        task.writes_cells = True  # type: ignore[assignment]

    @override
    def counted_network(self) -> nn.Module:
        return self.task.network if self.features is None else _Cells(self.task.network)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tells the data what is asked."""
        trainer.datamodule.asked = self.question or ""  # type: ignore[attr-defined]

    @override
    def keep(self, batch: Batch, outputs: Any) -> None:
        super().keep(batch, outputs)
        if self.features is not None:
            # Those of a data set fit no memory.
            for index, cells in zip(outputs["index"].tolist(), outputs.pop("cells").cpu(), strict=True):
                self._write_cells(index, cells.float().numpy())
            return
        found = outputs.pop("decisions")
        wanted = min(len(batch["index"]), DRAWN - len(self._looks))
        self._looks += looks(found, range(wanted))

    def _write_cells(self, index: int, cells: np.ndarray) -> None:
        assert self.features is not None
        file = self.data.sample_name("predict", index)
        name = f"{Path(file).name}.npy"
        if name in self._written:
            raise Mistake(
                f"{self._written[name]} and {file} would have one file of features: predict one folder a time"
            )
        small = cells.astype(np.float16)
        if not np.isfinite(small).all():
            raise Mistake(f"{file}: its features are beyond what float16 holds")
        with whole(self.features / name) as partial, partial.open("wb") as stream:
            np.save(stream, small)
        self._written[name] = file

    @override
    def finish(self, batches: list[Any], folder: Path, console: Console) -> list[Path]:
        if self.features is not None:
            console.print(f"features of {len(self._written)} images", highlight=False)
            return [self.features]
        data = self.data
        if not len(data.known):
            raise Mistake(
                f"{self._named_by}: nobody says what its answers are: take a checkpoint of a run, or give data"
            )
        if unknown := data.unknown_words(self.question):
            said = ", ".join(map(repr, unknown))
            console.print(f"[yellow]the network does not know {escape(said)}[/]", highlight=False)
        indices = [index for batch in batches for index in batch["index"].tolist()]
        top = [batch["probabilities"].topk(min(TOP, len(data.known))) for batch in batches]
        values = [row for each in top for row in each.values.tolist()]
        numbers = [row for each in top for row in each.indices.tolist()]
        given = [[data.known.answers[number] for number in row] for row in numbers]
        files = [data.sample_name("predict", index) for index in indices]
        target = folder / "predictions.csv"
        columns = [name for i in range(len(given[0])) for name in (f"answer_{i + 1}", f"probability_{i + 1}")]
        rows = [["file", "question", *columns]]
        for file, answers, shares in zip(files, given, values, strict=True):
            cells = [cell for pair in zip(answers, (f"{p:.4f}" for p in shares), strict=True) for cell in pair]
            rows.append([file, str(self.question), *cells])
        write_table(target, rows)
        table = Table(Column("file", overflow="fold"), "answer", "probability", "others", box=None)
        for file, answers, shares in list(zip(files, given, values, strict=True))[:DRAWN]:
            others = ", ".join(f"{a} {p:.2f}" for a, p in list(zip(answers, shares, strict=True))[1:])
            table.add_row(escape(file), escape(answers[0]), f"{shares[0]:.4f}", escape(others))
        console.print(table, highlight=False)
        pictures = []
        for index, answers, shares, look in zip(indices, given, values, self._looks, strict=False):
            said = ", ".join(f"{answer} {share:.2f}" for answer, share in list(zip(answers, shares, strict=True))[:2])
            image = data.picture("predict", index, LARGE) if data.features is None else None
            drawn = Answered(image, str(self.question), said, "black", look.attention, look.spans, look.span_names)
            pictures.append(write_picture(folder / picture_name(data, index), answer_sheet([drawn])))
        return [target, *pictures]


class _Cells(nn.Module):
    """What makes features of images, as a network, to count what it executes."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        # All of it, since cells need not have parameters, which say where a network is.
        self.network = network

    @override
    def forward(self, questions: Tensor, images: Tensor) -> Tensor:
        return self.network.cells(images)
