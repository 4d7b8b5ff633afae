"""What a segmenter predicts for images, by class and at which cost; and the label files that servers take."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from drawing.figures import confusion_matrix, save
from callbacks.pictures import EvaluationPictures, show
from drawing.segmentation import (
    VOID,
    Panel,
    blended,
    class_bars,
    coloured,
    miou_curve,
    panel_sheet,
    reliability,
)
from lightning_modules.segmentation import Segmentation
from lightning_modules.segmentation_views import ExitLook

# The matrix of more classes is not readable.
MOST_CLASSES = 50


class SegmentationPictures(EvaluationPictures):
    """Draws the evaluation of a segmenter; other tasks it leaves alone.

    - `segmentation.png`: the first images, their annotation, and of each exit the prediction, how sure it is of each
      pixel, and the pixels that it was computed at;
    - `class_iou.png`: intersection over union by class;
    - `confusion_matrix.png`: of pixels;
    - `reliability.png`: of a network with exits, how often each is right about pixels of which it is so sure;
    - `miou_curve.png`: of a network with exits, mean intersection over union over executed multiply-adds.

    While training goes on, validations are drawn now and then, and the last one at the end.

    Args:
        folder: where the pictures go; None draws nothing.
        images: on `segmentation.png`.
        every_seconds: time between two drawings while training goes on.
    """

    def __init__(self, folder: Path | None = None, images: int = 3, every_seconds: float = 60.0) -> None:
        super().__init__(folder, every_seconds)
        self.images = images
        # Of the first images of an evaluation: position, network input, annotation.
        self._first: list[tuple[int, Tensor, np.ndarray]] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the evaluation before."""
        self._first = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the evaluation before."""
        self._first = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Keeps the first images."""
        self._keep(trainer, pl_module, batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Keeps the first images."""
        self._keep(trainer, pl_module, batch)

    def _keep(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        wanted = self.images - len(self._first)
        if self.folder is None or wanted < 1 or not trainer.is_global_zero or not isinstance(pl_module, Segmentation):
            return
        labels = batch["label"][:wanted].cpu().numpy()
        indices = batch["index"][:wanted].tolist()
        self._first += zip(indices, batch["image"][:wanted].clone(), labels, strict=True)

    def draw(self, trainer: Trainer, pl_module: LightningModule, split: str) -> bool:
        """See `EvaluationPictures`."""
        if not isinstance(pl_module, Segmentation) or pl_module.report is None:
            return False
        assert self.folder is not None
        report, data = pl_module.report, trainer.datamodule  # type: ignore[attr-defined]
        last = report.exits[-1]
        title = f"{split}: mIoU {last.miou:.3f}, {last.pixel_accuracy:.1%} of the pixels, {report.images:,} images"
        lines = {f"exit {i}": exit.iou.tolist() for i, exit in enumerate(report.exits)}
        figures = {"class_iou": class_bars(report.class_names, lines, title)}
        if len(report.class_names) <= MOST_CLASSES:
            figures["confusion_matrix"] = confusion_matrix(last.confusion.numpy(), report.class_names, title)
        if len(report.exits) > 1 and report.macs:
            figures["miou_curve"] = miou_curve(report.macs, [exit.miou for exit in report.exits], title)
        if report.calibration:
            thresholds = getattr(pl_module.network, "thresholds", ())
            figures["reliability"] = reliability(report.calibration, thresholds, title)
        if self._first:
            rows: list[list[Panel | None]] = []
            present: set[int] = set()
            for index, image, label in self._first:
                looks = pl_module.look(image, label.shape)
                raw, name = data.raw_image(split, index), Path(data.sample_name(split, index)).name
                rows += panels(raw, name, label, looks, data.palette)
                present |= set(np.unique(label).tolist())
                present |= {k for look in looks for k in look.predicted.unique().tolist()}
            shown = sorted(present - {VOID})
            figures["segmentation"] = panel_sheet(rows, data.palette, report.class_names, shown, title)
        for name, figure in figures.items():
            show(trainer, f"{split}/{name}", save(figure, self.folder / f"{name}.png"))
        return True


def panels(
    image: np.ndarray, name: str, label: np.ndarray, looks: list[ExitLook], palette: np.ndarray
) -> list[list[Panel | None]]:
    """What there is to see of one image, in rows: predictions, how sure they are, and the computed pixels, by exit.

    Args:
        image: uint8 [H, W, 3].
        name: Its caption.
        label: Annotation [h, w], with 255 for void.
        looks: Of each exit, cheapest first.
        palette: uint8 [K, 3].
    """
    right = label != VOID
    top: list[Panel | None] = [Panel(image, name), Panel(coloured(label, palette), "annotated")]
    middle: list[Panel | None] = [Panel(blended(image, label, palette), "annotated"), None]
    bottom: list[Panel | None] = [None, None]
    for exit, look in enumerate(looks):
        predicted, sure = look.predicted.cpu().numpy(), look.confidence.cpu().numpy()
        accuracy = (predicted == label)[right].mean() if right.any() else float("nan")
        top.append(Panel(coloured(predicted, palette), f"exit {exit}: {accuracy:.1%} of the pixels right"))
        middle.append(Panel(sure, f"confidence, {sure.mean():.2f} on average"))
        if look.computed is None:
            bottom.append(None)
        else:
            computed = look.computed.cpu().numpy()
            bottom.append(Panel(computed, f"computed: {computed.mean():.1%}"))
    return [top, middle, bottom] if any(bottom) else [top, middle]


class SegmentationFiles(Callback):
    """Writes what `validate`, `test` and the test that ends a `fit` found; other tasks it leaves alone.

    - `classes.csv`: pixels, intersection over union and accuracy by class and exit;
    - `labels/`, if the task's `write_labels` says so: for each image a PNG of the data set's own label ids, as the
      servers of Cityscapes and ADE20K take them, named as the image.

    Args:
        folder: where the files go; None writes nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._names: list[str] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the split before."""
        self._names = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the split before."""
        self._names = []

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Writes the batch's label files, unless training goes on."""
        if trainer.state.fn == "validate":
            self._write_labels(trainer, pl_module, outputs, "val")

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Writes the batch's label files."""
        self._write_labels(trainer, pl_module, outputs, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the table, unless training goes on."""
        if trainer.state.fn == "validate":
            self._write_table(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the table of the test split."""
        self._write_table(trainer, pl_module)

    def _write_labels(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, split: str) -> None:
        if self.folder is None or not isinstance(pl_module, Segmentation) or not pl_module.write_labels:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        self._names = self._names or file_names(data, split)
        for index, predicted in zip(outputs["index"].tolist(), outputs["predicted"], strict=True):
            write_labels(predicted.cpu().numpy(), data.label_ids, self.folder / "labels" / self._names[index])

    def _write_table(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.folder is None or not isinstance(pl_module, Segmentation) or pl_module.report is None:
            return
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "classes.csv").open("w", newline="") as file:
                csv.writer(file).writerows(pl_module.report.rows())


def file_names(data: Any, split: str) -> list[str]:
    """What the pictures of a split's images are called: as the images, which are told apart if they share a name.

    Args:
        data: The data module.
        split: `val`, `test` or `predict`.
    """
    stems = [Path(data.sample_name(split, index)).stem for index in range(len(data.source(split)))]
    counts = Counter(stems)
    return [f"{stem}_{index}.png" if counts[stem] > 1 else f"{stem}.png" for index, stem in enumerate(stems)]


def write_labels(predicted: np.ndarray, label_ids: list[int], path: Path) -> Path:
    """Writes classes [H, W] as a grey PNG of the data set's own label ids, and returns its path.

    Args:
        predicted: Classes, uint8.
        label_ids: What each class is written as, 0 to 255.
        path: Of the file.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), np.array(label_ids, np.uint8)[predicted]):
        raise OSError(f"{path} cannot be written")
    return path
