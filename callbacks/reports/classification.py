"""What a classifier gets wrong, and what it says of images without labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from callbacks.reports.report import Report
from drawing.figures import SMALL, confusion_matrix, contact_sheet
from lightning_modules.classification import Classification
from lightning_modules.findings import gathered
from lightning_modules.task import Batch

# A confusion matrix of more classes is neither readable nor small.
MOST_CLASSES = 1000


class Mistakes(Report):
    """Draws the confusion matrix and the worst mistakes of a classifier.

    Args:
        worst: mistakes on the contact sheet, the most confident first.
    """

    reads = Classification
    pictures: ClassVar = {
        "confusion_matrix.png": "which class is taken for which",
        "worst_mistakes.png": "the images that the network gets most wrong",
    }

    def __init__(self, worst: int = 24) -> None:
        self.worst = worst
        self._counts: Tensor | None = None
        self._mistakes: Tensor | None = None

    @override
    def start(self) -> None:
        self._counts = self._mistakes = None

    @override
    def keep(self, batch: Batch, outputs: Any) -> None:
        logits, label = outputs["logits"], outputs["label"]
        classes = logits.shape[1]
        predicted = logits.argmax(1)
        if classes <= MOST_CLASSES:
            if self._counts is None:
                self._counts = torch.zeros(classes, classes, dtype=torch.int64, device=label.device)
            # In place: a matrix a batch would cost more than the batch, where there are many classes.
            self._counts.view(-1).index_add_(0, label * classes + predicted, torch.ones_like(label))
        # Rows of (loss, index, label, predicted, confidence); right answers have loss -inf and fall behind.
        loss = torch.where(predicted == label, -torch.inf, outputs["losses"]).double()
        confidence = logits.softmax(1).max(1).values
        rows = torch.stack([loss, *(v.double() for v in (outputs["index"], label, predicted, confidence))], 1)
        if self._mistakes is not None:
            rows = torch.cat([self._mistakes, rows])
        self._mistakes = rows[rows[:, 0].topk(min(self.worst, len(rows))).indices]

    @override
    def merge(self) -> None:
        counts = [each for each in gathered(_on_host(self._counts)) if each is not None]
        self._counts = torch.stack(counts).sum(0) if counts else None
        rows = [each for each in gathered(_on_host(self._mistakes)) if each is not None]
        self._mistakes = torch.cat(rows) if rows else None

    @override
    def draw(self) -> Mapping[str, Figure]:
        figures: dict[str, Figure] = {}
        names = list(self.data.class_names)
        if self._counts is not None:
            counts = self._counts.numpy()
            accuracy = counts.trace() / max(1, counts.sum())
            title = f"{self.split}: {accuracy:.2%} of {counts.sum():,} right"
            figures["confusion_matrix"] = confusion_matrix(counts, names, title)
        if self._mistakes is not None:
            mistakes = self._mistakes[self._mistakes[:, 0].argsort(descending=True)]
            figures["worst_mistakes"] = self._sheet(mistakes[mistakes[:, 0].isfinite()][: self.worst], names)
        return figures

    def _sheet(self, mistakes: Tensor, names: list[str]) -> Figure:
        if not len(mistakes):
            figure = Figure(figsize=(4, 1))
            figure.suptitle(f"{self.split}: no mistakes")
            return figure
        rows = mistakes.tolist()
        images = [self.data.picture(self.split, int(index), SMALL) for _, index, *_ in rows]
        captions = [
            f"{Path(self.data.sample_name(self.split, int(index))).name}\nis {names[int(label)]}\n"
            f"taken for {names[int(guess)]} ({confidence:.0%})"
            for _, index, label, guess, confidence in rows
        ]
        title = f"{self.split}: the worst {len(rows)} mistakes, the worst first: file, true class, prediction"
        return contact_sheet(images, captions, title)


def _on_host(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()
