"""What a segmenter predicts for images, by class and at which cost; and the label files that servers take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from callbacks.reports.file_names import file_names
from callbacks.reports.report import Report
from callbacks.reports.spread import Spread
from callbacks.whole_files import whole, write_table
from drawing.figures import IN_CAPTION, SMALL, confusion_matrix
from drawing.segmentation import (
    VOID,
    Panel,
    Reliability,
    blended,
    class_bars,
    coloured,
    miou_curve,
    panel_sheet,
    reliability,
)
from drawing.texts import short
from lightning_modules.segmentation import Segmentation
from lightning_modules.segmentation_metrics import SegmentationFindings
from lightning_modules.segmentation_views import ExitLook
from lightning_modules.task import Batch

# The matrix of more classes is not readable.
MOST_CLASSES = 50


class SegmentedImages(Report):
    """Draws the evaluation of a segmenter, and writes what it says of the classes.

    If the task's `write_labels` says so, `validate` and `test` also write a PNG of the data set's own label ids for
    each image, as the servers of Cityscapes and ADE20K take them, named as the image.

    Args:
        images: on `segmentation.png`, spread over the split.
    """

    reads = Segmentation
    pictures: ClassVar = {
        "segmentation.png": "predictions over the images, beside annotations, by exit, and how sure they are",
        "class_iou.png": "intersection over union by class",
        "confusion_matrix.png": "which class is taken for which",
        "reliability.png": "how often exits are right about pixels of which they are so sure",
        "miou_curve.png": "mean intersection over union over executed multiply-adds",
    }
    files: ClassVar = {
        "classes.csv": "intersection over union by class, of the last evaluation",
        "labels": "predictions as label files",
    }

    def __init__(self, images: int = 3) -> None:
        self.images = images
        # Of some images of an evaluation: position, network input, annotation.
        self._shown = Spread[tuple[int, Tensor, np.ndarray]](images)
        self._names: list[str] = []

    @override
    def start(self) -> None:
        self._shown, self._names = Spread(self.images), []

    @override
    def keep(self, batch: Batch, outputs: Any) -> None:
        if self.place is None:
            return
        # What a training predicts on the way is not kept.
        if self.task.write_labels and self.trainer.state.fn != "fit":
            self._names = self._names or file_names(self.data, self.split)
            for index, predicted in zip(outputs["index"].tolist(), outputs["predicted"], strict=True):
                path = self.place.files / "labels" / self._names[index]
                write_labels(predicted.cpu().numpy(), self.data.label_ids, path)
        if self.trainer.is_global_zero:
            for index, image, label in zip(batch["index"], batch["image"], batch["label"], strict=True):
                self._shown.offer(partial(_kept, index, image, label))

    @override
    def draw(self) -> Mapping[str, Figure]:
        found = self.task.findings
        if not isinstance(found, SegmentationFindings):
            return {}
        last = found.exits[-1]
        title = f"{self.split}: mIoU {last.miou:.3f}, {last.pixel_accuracy:.1%} of the pixels, {found.images:,} images"
        lines = {f"exit {i}": exit.iou.tolist() for i, exit in enumerate(found.exits)}
        figures = {"class_iou": class_bars(found.class_names, lines, title)}
        if len(found.class_names) <= MOST_CLASSES:
            figures["confusion_matrix"] = confusion_matrix(last.confusion.numpy(), found.class_names, title)
        if len(found.exits) > 1 and found.macs:
            figures["miou_curve"] = miou_curve(found.macs, [exit.miou for exit in found.exits], title)
        if found.calibration:
            thresholds = getattr(self.task.network, "thresholds", ())
            figures["reliability"] = reliability(_reliabilities(found, thresholds), title)
        if self._shown.things():
            figures["segmentation"] = self._sheet(found.class_names, title)
        return figures

    def _sheet(self, names: list[str], title: str) -> Figure:
        rows: list[list[Panel | None]] = []
        present: set[int] = set()
        for index, image, label in self._shown.things():
            looks = self.task.look(image, label.shape)
            raw = self.data.picture(self.split, index, SMALL)
            rows += panels(raw, Path(self.data.sample_name(self.split, index)).name, label, looks, self.data.palette)
            present |= set(np.unique(label).tolist())
            present |= {k for look in looks for k in look.predicted.unique().tolist()}
        title += "\nimages from all over the split; colours: classes; as annotated: black is void, which does not count"
        return panel_sheet(rows, self.data.palette, names, sorted(present - {VOID}), title)

    @override
    def write(self, folder: Path) -> None:
        found = self.task.findings
        if isinstance(found, SegmentationFindings):
            write_table(folder / "classes.csv", found.rows())


def _kept(index: Tensor, image: Tensor, label: Tensor) -> tuple[int, Tensor, np.ndarray]:
    return int(index), image.clone(), label.cpu().numpy()


def _reliabilities(found: SegmentationFindings, thresholds: tuple[float, ...]) -> list[Reliability]:
    exits = []
    for exit, each in enumerate(found.calibration):
        label = f"exit {exit}: calibration error {each.error:.3f}"
        if exit < len(thresholds) and not math.isnan(each.sure_accuracy):
            label += f"; {each.sure_accuracy:.1%} right of {each.sure_share:.0%} above {thresholds[exit]:g}"
        exits.append(Reliability(each.confidence.numpy(), each.accuracy.numpy(), each.share.numpy(), label))
    return exits


def panels(
    image: np.ndarray, name: str, label: np.ndarray, looks: list[ExitLook], palette: np.ndarray
) -> list[list[Panel | None]]:
    """What there is to see of one image, in rows: predictions, how sure they are, and the computed pixels, by exit.

    Args:
        image: uint8 [H, W, 3].
        name: Its caption.
        label: Annotation [h, w], with 255 for void.
        looks: What each exit makes of it, cheapest first.
        palette: uint8 [K, 3].
    """
    right = label != VOID
    top: list[Panel | None] = [
        Panel(image, short(name, IN_CAPTION)),
        Panel(blended(image, label, palette), "annotated"),
    ]
    middle: list[Panel | None] = [None, Panel(coloured(label, palette), "as annotated")]
    bottom: list[Panel | None] = [None, None]
    for exit, look in enumerate(looks):
        predicted, sure = look.predicted.cpu().numpy(), look.confidence.cpu().numpy()
        accuracy = (predicted == label)[right].mean() if right.any() else float("nan")
        who = f"exit {exit}" if len(looks) > 1 else "predicted"
        top.append(Panel(blended(image, predicted, palette), f"{who}: {accuracy:.1%} of the pixels right"))
        middle.append(Panel(sure, f"confidence, {sure.mean():.2f} on average"))
        if look.computed is None:
            bottom.append(None)
        else:
            computed = look.computed.cpu().numpy()
            bottom.append(Panel(computed, f"computed: {computed.mean():.1%}"))
    return [top, middle, bottom] if any(bottom) else [top, middle]


def write_labels(predicted: np.ndarray, label_ids: list[int], path: Path) -> Path:
    """Writes classes [H, W] as a grey PNG of the data set's own label ids, and returns its path.

    Args:
        predicted: Classes, uint8.
        label_ids: What each class is written as, 0 to 255.
        path: The file to be written.

    Raises:
        OSError: It cannot be written.
    """
    _, encoded = cv2.imencode(".png", np.array(label_ids, np.uint8)[predicted])
    with whole(path) as partial:
        partial.write_bytes(encoded.tobytes())
    return path
