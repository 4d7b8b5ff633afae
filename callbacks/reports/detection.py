"""What a detector finds in images, by category and at which precision; and the files that COCO's server takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure
from typing_extensions import override

from callbacks.reports.report import Report
from callbacks.reports.spread import Spread
from callbacks.whole_files import write_table, write_whole
from drawing.detection import Objects, category_bars, comparison_sheet, precision_recall, shrunk
from drawing.figures import SMALL
from lightning_modules.coco_metrics import IOU_TYPES, CocoFindings, ImageResult, decode, upload_format
from lightning_modules.detection import Detection
from lightning_modules.task import Batch


class Detections(Report):
    """Draws the evaluation of a detector, and writes what it found.

    Args:
        images: on the sheet of detections, spread over the split.
        score_threshold: least score that is drawn, once there are as many predictions as annotations.
    """

    reads = Detection
    pictures: ClassVar = {
        "detections.png": "annotations beside what was found",
        "category_ap.png": "average precision by category",
        "precision_recall.png": "precision against recall",
    }
    files: ClassVar = {
        "detections_bbox.json": "boxes found in the last evaluation, in COCO's format",
        "detections_segm.json": "masks found in the last evaluation, in COCO's format",
        "categories.csv": "average precision by category",
    }

    def __init__(self, images: int = 12, score_threshold: float = 0.3) -> None:
        self.images = images
        self.score_threshold = score_threshold
        self._shown = Spread[ImageResult](images)

    @override
    def start(self) -> None:
        self._shown = Spread(self.images)

    @override
    def keep(self, batch: Batch, outputs: Any) -> None:
        for result in outputs["results"]:
            self._shown.offer(partial(copy, result))

    @override
    def draw(self) -> Mapping[str, Figure]:
        found: CocoFindings = self.task.findings
        names = found.category_names
        scores = {kind: found.metrics[f"{kind}_ap"] for kind in found.precision}
        title = f"{self.split}: " + ", ".join(f"{kind} AP {score:.3f}" for kind, score in scores.items())
        title += f", {len(found.images):,} images"
        by_category = {kind: values[:, 0] for kind, values in found.per_category.items()}
        figures = {
            "category_ap": category_bars(names, by_category, found.objects, title),
            "precision_recall": precision_recall(found.precision, title),
        }
        if self._shown.things():
            figures["detections"] = self._sheet(names, title)
        return figures

    def _sheet(self, names: list[str], title: str) -> Figure:
        coco = self.task.coco(self.split)
        shown = self._shown.things()
        images = [self.data.picture(self.split, each.index, SMALL) for each in shown]
        truth = [
            Objects(*coco.objects(each.image_id)).drawn_on(image, each.size)
            for each, image in zip(shown, images, strict=True)
        ]
        # A young network is sure of nothing, and what it thinks best is worth a look.
        found = [
            objects_of(each, image, self.score_threshold, len(there.labels))
            for each, image, there in zip(shown, images, truth, strict=True)
        ]
        which = f"found: score >= {self.score_threshold:g}, and at least as many as annotated"
        files = [Path(self.data.sample_name(self.split, each.index)).name for each in shown]
        return comparison_sheet(images, truth, found, names, files, f"{title}\n{which}; images from all over the split")

    @override
    def write(self, folder: Path) -> None:
        found: CocoFindings = self.task.findings
        for kind in found.per_category:
            entries = upload_format(found.images, self.task.category_ids, kind)
            write_whole(folder / f"detections_{IOU_TYPES[kind]}.json", json.dumps(entries))
        write_table(folder / "categories.csv", found.table())


def objects_of(result: ImageResult, image: np.ndarray, threshold: float, at_least: int = 0) -> Objects:
    """What was found in one image, to be drawn on a picture of it.

    Args:
        result: scores descending.
        image: the picture, [h, w, 3], of any size.
        threshold: least score that is drawn.
        at_least: the best so many are drawn whatever their scores.
    """
    rows = np.flatnonzero((result.scores >= threshold) | (np.arange(len(result.scores)) < at_least))
    drawn = Objects(result.boxes[rows], result.labels[rows], result.scores[rows]).drawn_on(image, result.size)
    if result.masks is None:
        return drawn
    # One by one: the masks of a photograph at its own size would fill the memory.
    masks = [shrunk(decode([result.masks[row]], result.size), image.shape)[0] for row in rows]
    return replace(drawn, masks=np.array(masks, bool).reshape(-1, *image.shape[:2]))
