"""What a detector finds in images, by category, and at which precision; and the files that COCO's server takes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from drawing.detection import Objects, category_bars, comparison_sheet, precision_recall
from drawing.figures import save
from callbacks.pictures import EvaluationPictures, show
from lightning_modules.coco_metrics import IOU_TYPES, CocoReport, ImageResult, upload_format


class DetectionPictures(EvaluationPictures):
    """Draws the evaluation of a detector; other tasks it leaves alone.

    - `detections.png`: annotations beside predictions, for the first images of the split;
    - `category_ap.png`: average precision by category;
    - `precision_recall.png`.

    While training goes on, validations are drawn now and then, and the last one at the end.

    Args:
        folder: where the pictures go; None draws nothing.
        images: on the sheet of detections.
        score_threshold: of more predictions than there are annotations, those below are not drawn.
        every_seconds: time between two drawings while training goes on.
    """

    def __init__(
        self,
        folder: Path | None = None,
        images: int = 12,
        score_threshold: float = 0.3,
        every_seconds: float = 60.0,
    ) -> None:
        super().__init__(folder, every_seconds)
        self.images = images
        self.score_threshold = score_threshold
        self._first: list[ImageResult] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the evaluation before."""
        self._first = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the evaluation before."""
        self._first = []

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Keeps the first images' results."""
        self._keep(outputs)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Keeps the first images' results."""
        self._keep(outputs)

    def _keep(self, outputs: Any) -> None:
        if self.folder is not None and isinstance(outputs, dict) and "results" in outputs:
            self._first += outputs["results"][: self.images - len(self._first)]

    def draw(self, trainer: Trainer, pl_module: LightningModule, split: str) -> bool:
        """See `EvaluationPictures`."""
        report = getattr(pl_module, "report", None)
        if not isinstance(report, CocoReport):
            return False
        assert self.folder is not None
        data = trainer.datamodule  # type: ignore[attr-defined]
        names = report.category_names
        scores = {kind: report.metrics[f"{kind}_ap"] for kind in report.precision}
        title = f"{split}: " + ", ".join(f"{kind} AP {score:.3f}" for kind, score in scores.items())
        title += f", {len(report.images):,} images"
        figures = {
            "category_ap": category_bars(
                names, {kind: values[:, 0] for kind, values in report.per_category.items()}, report.objects, title
            ),
            "precision_recall": precision_recall(report.precision, title),
        }
        if self._first:
            images = [data.raw_image(split, each.index) for each in self._first]
            truth = [Objects(*pl_module.coco(split).objects(each.image_id)) for each in self._first]  # type: ignore[operator]
            # A young network is sure of nothing, and what it thinks best is worth a look.
            found = [
                objects_of(each).above(self.score_threshold, len(there.labels))
                for each, there in zip(self._first, truth, strict=True)
            ]
            shown = f"found: score >= {self.score_threshold:g}, and at least as many as annotated"
            figures["detections"] = comparison_sheet(images, truth, found, names, f"{title}\n{shown}")
        for name, figure in figures.items():
            show(trainer, f"{split}/{name}", save(figure, self.folder / f"{name}.png"))
        return True


class DetectionFiles(Callback):
    """Writes what `validate`, `test` and the test that ends a `fit` found; other tasks it leaves alone.

    - `detections_bbox.json`, `detections_segm.json`: in the format of COCO's evaluation server;
    - `categories.csv`: objects and average precision by category.

    Args:
        folder: where the files go; None writes nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes, unless training goes on."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the test split."""
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        report = getattr(pl_module, "report", None)
        if self.folder is None or not isinstance(report, CocoReport) or not trainer.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        category_ids: list[int] = pl_module.category_ids  # type: ignore[assignment]
        for kind in report.per_category:
            entries = upload_format(report.images, category_ids, kind)
            (self.folder / f"detections_{IOU_TYPES[kind]}.json").write_text(json.dumps(entries))
        with (self.folder / "categories.csv").open("w", newline="") as file:
            csv.writer(file).writerows(category_rows(report))


def category_rows(report: CocoReport) -> list[list[str]]:
    """The table of categories: names of the columns, then a row for each category that has objects."""
    kinds = list(report.per_category)
    rows = [["category", "objects", *(f"{kind}_{name}" for kind in kinds for name in ("ap", "ap50"))]]
    for k, name in enumerate(report.category_names):
        if not report.objects[k]:
            continue
        values = [value for kind in kinds for value in report.per_category[kind][k]]
        rows.append([name, str(report.objects[k]), *(f"{value:.4f}" for value in values)])
    return rows


def objects_of(result: ImageResult) -> Objects:
    """One image's result, to be drawn."""
    return Objects(result.boxes, result.labels, result.scores, result.decoded())
