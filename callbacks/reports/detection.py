"""What a detector finds in images, by category and at which precision; and the files that COCO's server takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from matplotlib.figure import Figure
from typing_extensions import override

from callbacks.reports.report import Report
from callbacks.whole_files import write_table, write_whole
from drawing.detection import Objects, category_bars, comparison_sheet, precision_recall
from lightning_modules.coco_metrics import IOU_TYPES, CocoFindings, ImageResult, upload_format
from lightning_modules.detection import Detection
from lightning_modules.task import Batch


class Detections(Report):
    """Draws the evaluation of a detector, and writes what it found.

    Args:
        images: on the sheet of detections, the first of the split.
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
        self._first: list[ImageResult] = []

    @override
    def start(self) -> None:
        self._first = []

    @override
    def keep(self, batch: Batch, outputs: Any) -> None:
        self._first += outputs["results"][: self.images - len(self._first)]

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
        if self._first:
            figures["detections"] = self._sheet(names, title)
        return figures

    def _sheet(self, names: list[str], title: str) -> Figure:
        coco = self.task.coco(self.split)
        images = [self.data.raw_image(self.split, each.index) for each in self._first]
        truth = [Objects(*coco.objects(each.image_id)) for each in self._first]
        # A young network is sure of nothing, and what it thinks best is worth a look.
        found = [
            objects_of(each).above(self.score_threshold, len(there.labels))
            for each, there in zip(self._first, truth, strict=True)
        ]
        shown = f"found: score >= {self.score_threshold:g}, and at least as many as annotated"
        return comparison_sheet(images, truth, found, names, f"{title}\n{shown}")

    @override
    def write(self, folder: Path) -> None:
        found: CocoFindings = self.task.findings
        for kind in found.per_category:
            entries = upload_format(found.images, self.task.category_ids, kind)
            write_whole(folder / f"detections_{IOU_TYPES[kind]}.json", json.dumps(entries))
        write_table(folder / "categories.csv", found.table())


def objects_of(result: ImageResult) -> Objects:
    """One image's result, to be drawn."""
    return Objects(result.boxes, result.labels, result.scores, result.decoded())
