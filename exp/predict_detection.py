"""What `predict` makes of a detector's answers: pictures with boxes and masks, COCO's JSON, a table."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from drawing.detection import Objects, detection_sheet, overlay
from callbacks.detection_pictures import objects_of
from drawing.figures import save
from exp.cli import Cli
from lightning_modules.coco_metrics import ImageResult

ON_SHEET = 20


def write_detections(
    cli: Cli, batches: list[Any], names: list[str], folder: Path, console: Console
) -> tuple[None, list[Path]]:
    """Writes `predictions.json`, a picture for each image and `contact_sheet.png`, and prints how much was found.

    Pictures and table have what reaches `--score_threshold`; the JSON has everything.

    Args:
        cli: the command, after its prediction.
        batches: what the prediction steps returned.
        names: of the classes; empty for a checkpoint that does not say.
        folder: where the files go.
        console: where the table goes.

    Returns:
        None, as there are no exits, and the files.
    """
    data, threshold = cli.datamodule, cli.config.score_threshold
    results: list[ImageResult] = [result for batch in batches for result in batch["results"]]
    files = [data.sample_name("predict", each.index) for each in results]
    names = names or [f"class {i}" for i in range(cli.model.num_classes)]
    category_ids = cli.model.category_ids or list(range(len(names)))
    target = folder / "predictions.json"
    target.write_text(json.dumps(as_coco(results, files, names, category_ids)))
    table = Table(Column("file", overflow="fold"), "objects", "labels", box=None)
    images: list[np.ndarray] = []
    shown: list[Objects] = []
    captions: list[str] = []
    for result, file in zip(results, files, strict=True):
        found = objects_of(result).above(threshold)
        counted = Counter(names[int(label)] for label in found.labels).most_common()
        table.add_row(file, str(len(found.labels)), ", ".join(f"{name} ({number})" for name, number in counted))
        image = data.raw_image("predict", result.index)
        save(overlay(image, found, names), folder / "pictures" / picture_name(data, result.index))
        if len(images) < ON_SHEET:
            images.append(image)
            shown.append(found)
            captions.append(f"{Path(file).name}: {len(found.labels)}")
    title = f"{len(results)} images" + (f", the first {ON_SHEET}" if len(results) > ON_SHEET else "")
    sheet = detection_sheet(images, shown, names, captions, f"{title}; score >= {threshold:g}")
    console.print(table, highlight=False)
    return None, [target, save(sheet, folder / "contact_sheet.png"), folder / "pictures"]


def as_coco(
    results: list[ImageResult], files: list[str], names: list[str], category_ids: list[int]
) -> dict[str, list[dict[str, Any]]]:
    """Predictions as a data set of COCO's format, with a score for each annotation.

    Args:
        results: one of each image.
        files: of the images.
        names: of the labels.
        category_ids: of the labels.
    """
    images = [
        {"id": each.image_id, "file_name": file, "height": each.size[0], "width": each.size[1]}
        for each, file in zip(results, files, strict=True)
    ]
    annotations: list[dict[str, Any]] = []
    for each in results:
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


def picture_name(data: Any, index: int) -> str:
    """The file name of a picture of one image; folders may have images of one name."""
    return f"{index:04d}_{Path(data.sample_name('predict', index)).stem}.png"
