"""What people would rather look at: learning curves, the confusion matrix, the worst mistakes."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from drawing.figures import Series, confusion_matrix, contact_sheet, learning_curve, save

# A confusion matrix of more classes is neither readable nor small.
MOST_CLASSES = 1000


class LearningCurve(Callback):
    """Draws loss and accuracy over the steps: at the end of training, and now and then before.

    Args:
        series: returns the steps and values logged under a name.
        folder: where `learning_curve.png` goes.
        every_seconds: time between two drawings while training goes on.
    """

    def __init__(self, series: Callable[[str], Series], folder: Path, every_seconds: float = 60.0) -> None:
        self.series = series
        self.folder = folder
        self.every_seconds = every_seconds
        self._drawn = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws if the last drawing is old."""
        if trainer.is_global_zero and time.monotonic() - self._drawn > self.every_seconds:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the whole training."""
        if trainer.is_global_zero:
            show(trainer, "learning_curve", self._draw(trainer, pl_module))

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> Path:
        self._drawn = time.monotonic()
        monitored = getattr(pl_module, "monitor", "val/loss").split("/", 1)[-1]
        quantities = dict.fromkeys(["loss", *getattr(pl_module, "curves", [monitored])])
        panels = {q: {s: self.series(f"{s}/{q}") for s in ("train", "val")} for q in quantities}
        return save(learning_curve(panels, self.folder.parent.parent.name), self.folder / "learning_curve.png")


class EvaluationPictures(Callback, ABC):
    """Draws evaluations: of `validate` and `test`, and of a `fit` now and then, at its end, and the test after it.

    Args:
        folder: where the pictures go; None draws nothing.
        every_seconds: time between two drawings while training goes on.
    """

    def __init__(self, folder: Path | None, every_seconds: float) -> None:
        self.folder = folder
        self.every_seconds = every_seconds
        self._drawn = time.monotonic()

    @abstractmethod
    def draw(self, trainer: Trainer, pl_module: LightningModule, split: str) -> bool:
        """Draws the last evaluation of a split; returns whether there was something to draw."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws, if the last drawing is old or nothing comes after."""
        if trainer.state.fn == "validate" or time.monotonic() - self._drawn > self.every_seconds:
            self._draw(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the test split."""
        self._draw(trainer, pl_module, "test")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the last validation."""
        self._draw(trainer, pl_module, "val")

    def _draw(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        started = time.monotonic()
        # A trial before training is no evaluation.
        if self.folder is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if self.draw(trainer, pl_module, split):
            self._drawn = started


class ClassificationPictures(Callback):
    """Draws the confusion matrix and the worst mistakes of an evaluation.

    Listens to evaluation steps that return `index`, `label`, `logits` and `losses`, as `Classification` does; other
    tasks it leaves alone.

    Args:
        folder: where the pictures go; None draws nothing.
        worst: mistakes on the contact sheet, the most confident first.
    """

    def __init__(self, folder: Path | None = None, worst: int = 24) -> None:
        self.folder = folder
        self.worst = worst
        self._counts: Tensor | None = None
        self._mistakes: Tensor | None = None

    def _start(self, trainer: Trainer, *args: Any) -> None:
        self._counts = self._mistakes = None

    def _count(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        if self.folder is None or not isinstance(outputs, dict) or "logits" not in outputs:
            return
        logits, label = outputs["logits"], outputs["label"]
        classes = logits.shape[1]
        predicted = logits.argmax(1)
        if classes <= MOST_CLASSES:
            counts = torch.bincount(label * classes + predicted, minlength=classes**2).view(classes, classes)
            self._counts = counts if self._counts is None else self._counts + counts
        # Rows of (loss, index, label, predicted, confidence); right answers have loss -inf and fall behind.
        loss = torch.where(predicted == label, -torch.inf, outputs["losses"]).double()
        confidence = logits.softmax(1).max(1).values
        rows = torch.stack([loss, *(v.double() for v in (outputs["index"], label, predicted, confidence))], 1)
        blank = rows.new_full((self.worst, 5), -torch.inf)
        rows = torch.cat([blank if self._mistakes is None else self._mistakes, rows])
        self._mistakes = rows[rows[:, 0].topk(self.worst).indices]

    def _finish(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        if self._mistakes is None:
            return
        if trainer.world_size > 1:
            # Every process holds as many rows, blanks included, so that they can be gathered.
            self._mistakes = torch.cat(gather_all_tensors(self._mistakes))
            if self._counts is not None:
                self._counts = torch.stack(gather_all_tensors(self._counts)).sum(0)
        if not trainer.is_global_zero:
            return
        assert self.folder is not None
        data = trainer.datamodule  # type: ignore[attr-defined]
        names = list(data.class_names)
        if self._counts is not None:
            counts = self._counts.cpu().numpy()
            accuracy = counts.trace() / max(1, counts.sum())
            figure = confusion_matrix(counts, names, f"{split}: {accuracy:.2%} of {counts.sum():,} right")
            show(trainer, f"{split}/confusion_matrix", save(figure, self.folder / "confusion_matrix.png"))
        mistakes = self._mistakes[self._mistakes[:, 0].argsort(descending=True)].cpu()
        rows = mistakes[torch.isfinite(mistakes[:, 0])][: self.worst].tolist()
        if rows:
            images = [data.raw_image(split, int(index)) for _, index, *_ in rows]
            captions = [
                f"{names[int(label)]} taken for\n{names[int(guess)]} ({confidence:.0%})"
                for *_, label, guess, confidence in rows
            ]
            figure = contact_sheet(images, captions, f"{split}: the worst {len(rows)} mistakes")
        else:
            figure = Figure(figsize=(4, 1))
            figure.suptitle(f"{split}: no mistakes")
        show(trainer, f"{split}/worst_mistakes", save(figure, self.folder / "worst_mistakes.png"))

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the evaluation before."""
        self._start(trainer)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Counts a batch."""
        self._count(trainer, pl_module, outputs)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the test split."""
        self._finish(trainer, pl_module, "test")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the evaluation before."""
        self._start(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Counts a batch, unless training goes on: its end is what gets drawn."""
        if trainer.state.fn == "validate":
            self._count(trainer, pl_module, outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the validation split."""
        self._finish(trainer, pl_module, "val")


def show(trainer: Trainer, name: str, picture: Path) -> None:
    """Logs a picture to W&B, where the run has one."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(picture)])
