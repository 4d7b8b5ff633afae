"""What `predict` makes of a detector's answers: pictures with boxes and masks, COCO's JSON, a table, its queries."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from typing_extensions import override

from callbacks.reports.detection import objects_of
from callbacks.reports.file_names import picture_name
from callbacks.reports.predictions import Predictions, Source, title_of
from callbacks.reports.queries import draw_query, has_queries
from callbacks.whole_files import write_picture, write_whole
from drawing.detection import Objects, detection_sheet, overlay
from drawing.figures import LARGE, SMALL
from lightning_modules.coco_metrics import ImageResult
from lightning_modules.detection import Detection
from lightning_modules.task import Batch, Task
from models.mistakes import Mistake

ON_SHEET = 20


class FoundObjects(Predictions):
    """Writes what a detector finds; pictures and table have what reaches the threshold, the JSON has everything.

    Args:
        score_threshold: detection: draw and count what has at least this score; files hold everything.
        query: DETR family: also draw where a query looks, given its number or best, the surest of each image.
    """

    reads = Detection

    def __init__(self, score_threshold: float = 0.5, query: Literal["best"] | int | None = None) -> None:
        super().__init__()
        self.score_threshold, self.query = score_threshold, query

    @override
    def prepare(self, trainer: Trainer, task: Task, source: Source) -> None:
        super().prepare(trainer, task, source)
        if self.query is not None and not has_queries(task.network):
            raise Mistake(
                f"--query: {type(task.network).__name__} has no queries that look somewhere; leave --query out, or use "
                "a network of the DETR family"
            )

    @override
    def keep(self, batch: Batch, outputs: Any) -> None:
        super().keep(batch, outputs)
        if self.query is None or self.place is None:
            return
        names = self.names or [f"class {i}" for i in range(self.task.num_classes)]
        for image, index in zip(batch["image"], batch["index"].tolist(), strict=True):
            picture = self.data.picture("predict", index, LARGE)
            figure = draw_query(self.task.network, image, picture, self.query, names)
            write_picture(self.place.pictures / "queries" / picture_name(self.data, index), figure)

    @override
    def entries(self, batches: list[Any], task: Any, data: Any) -> list[dict[str, Any]]:
        """Of each image `file`, `height`, `width` and `objects`, best first.

        An object has `label`, `category_id`, `bbox` (x, y, width and height in pixels), `area`, `score` and, of a
        network with masks, `segmentation`, COCO's run lengths.
        """
        results: list[ImageResult] = [result for batch in batches for result in batch["results"]]
        files = [data.sample_name("predict", each.index) for each in results]
        names = self.names or [f"class {i}" for i in range(task.num_classes)]
        content = as_coco(results, files, names, task.category_ids or list(range(len(names))))
        labels = {each["id"]: each["name"] for each in content["categories"]}
        objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
        for each in content["annotations"]:
            kept = {key: value for key, value in each.items() if key not in ("id", "image_id", "iscrowd")}
            objects[each["image_id"]].append({"label": labels[each["category_id"]], **kept})
        return [
            {"file": image["file_name"], "height": image["height"], "width": image["width"], "objects": found}
            for image, found in zip(content["images"], objects.values(), strict=True)
        ]

    @override
    def finish(self, batches: list[Any], folder: Path, console: Console) -> list[Path]:
        task, threshold = self.task, self.score_threshold
        results: list[ImageResult] = [result for batch in batches for result in batch["results"]]
        files = [self.data.sample_name("predict", each.index) for each in results]
        names = self.names or [f"class {i}" for i in range(task.num_classes)]
        target = folder / "predictions.json"
        content = as_coco(results, files, names, task.category_ids or list(range(len(names))))
        write_whole(target, json.dumps(content))
        table = Table(Column("file", overflow="fold"), "objects", "labels", box=None)
        images: list[np.ndarray] = []
        shown: list[Objects] = []
        captions: list[str] = []
        for result, file in zip(results, files, strict=True):
            image = self.data.picture("predict", result.index, LARGE)
            found = objects_of(result, image, threshold)
            by_label = Counter(names[int(label)] for label in found.labels).most_common()
            listed = ", ".join(f"{name} ({number})" for name, number in by_label)
            table.add_row(escape(file), str(len(found.labels)), escape(listed))
            picture = overlay(image, found, names)
            write_picture(folder / "pictures" / picture_name(self.data, result.index), picture)
            if len(images) < ON_SHEET:
                images.append(self.data.picture("predict", result.index, SMALL))
                shown.append(found.drawn_on(images[-1], (image.shape[0], image.shape[1])))
                captions.append(f"{Path(file).name}: {len(found.labels)}")
        title = f"{title_of(len(results), ON_SHEET)}; score >= {threshold:g}"
        sheet = write_picture(folder / "contact_sheet.png", detection_sheet(images, shown, names, captions, title))
        console.print(table, highlight=False)
        queries = [folder / "queries"] if self.query is not None else []
        return [target, sheet, folder / "pictures", *queries]


def as_coco(
    results: list[ImageResult], files: list[str], names: list[str], category_ids: list[int]
) -> dict[str, list[dict[str, Any]]]:
    """Predictions as a data set of COCO's format, rounded for a file, with a score for each annotation.

    Args:
        results: one of each image.
        files: file names of the images.
        names: class names, by label.
        category_ids: COCO's category of each label.
    """
    images = [
        {"id": each.image_id, "file_name": file, "height": each.size[0], "width": each.size[1]}
        for each, file in zip(results, files, strict=True)
    ]
    annotations: list[dict[str, Any]] = []
    for each in (result.rounded() for result in results):
        for i, ((x0, y0, x1, y1), label, score) in enumerate(
            zip(each.boxes.tolist(), each.labels.tolist(), each.scores.tolist(), strict=True)
        ):
            width, height = round(max(0.0, x1 - x0), 2), round(max(0.0, y1 - y0), 2)
            annotation = {
                "id": len(annotations) + 1,
                "image_id": each.image_id,
                "category_id": category_ids[label],
                "bbox": [x0, y0, width, height],
                "area": round(width * height, 2),
                "iscrowd": 0,
                "score": score,
            }
            if each.masks is not None:
                annotation["segmentation"] = each.masks[i]
            annotations.append(annotation)
    categories = [{"id": category, "name": name} for category, name in zip(category_ids, names, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}
