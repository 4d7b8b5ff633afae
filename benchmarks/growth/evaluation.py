"""Growth with the classes of a data set and with the objects of an image."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.growth.measuring import Case, Work
from callbacks.reports.classification import Mistakes
from drawing.figures import save
from lightning_modules.classification import Classification
from lightning_modules.coco_metrics import CocoEvaluation, ImageResult, Kind, encode
from models.detectors.matching import MatchCosts, assign, match_costs
from models.layers.mask_paste import paste

CLASSES = (10, 100, 1_000, 20_000)
OBJECTS = (1, 10, 100, 1_000)
BATCHES, BATCH = 20, 64
IMAGES, SIDE = 50, 256


class Said(nn.Module):
    """A network whose answers are given."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.logits = torch.randn(BATCH, num_classes, generator=torch.Generator().manual_seed(0))

    def forward(self, images: Tensor) -> Tensor:
        """[B, ...] to logits [B, K]."""
        return self.logits[: len(images)]


def _batch(classes: int) -> dict[str, Tensor]:
    index = torch.arange(BATCH)
    return {"image": torch.zeros(BATCH, 3, 1, 1), "label": index * 37 % classes, "index": index}


def counted(classes: int, folder: Path) -> Work:
    """Top-1, top-5 and loss of a validation."""
    task, batch = Classification(Said(classes), classes), _batch(classes)

    def work() -> None:
        task.start("val")
        for _ in range(BATCHES):
            task.count(batch, "val")
        task.finish("val")

    return work


def mistaken(classes: int, folder: Path) -> Work:
    """Confusion matrix and worst mistakes of a validation, with their pictures."""
    report, batch = Mistakes(), _batch(classes)
    report.split = "val"
    report.trainer = SimpleNamespace(  # type: ignore[assignment]
        datamodule=SimpleNamespace(
            class_names=[f"class {number}" for number in range(classes)],
            picture=lambda *where: np.zeros((64, 64, 3), np.uint8),
            sample_name=lambda split, index: f"{index}.jpg",
        )
    )
    logits = Said(classes).logits
    losses = nn.functional.cross_entropy(logits, batch["label"], reduction="none")
    outputs = {"logits": logits, "label": batch["label"], "losses": losses, "index": batch["index"]}

    def work() -> None:
        report.start()
        for _ in range(BATCHES):
            report.keep(batch, outputs)
        report.merge()
        for name, figure in report.draw().items():
            save(figure, folder / f"{name}.png")

    return work


def evaluated(objects: int, categories: int, kinds: list[Kind], images: int) -> Work:
    """COCO's numbers of as many found objects as there are."""
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    results = []
    for image in range(images):
        low = rng.uniform(0, SIDE - 40, (objects, 2))
        corners = np.concatenate([low, low + rng.uniform(8, 40, (objects, 2))], 1)
        labels = rng.integers(categories, size=objects)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            x, y, width, height = box
            shape = [x, y, x + width, y, x + width, y + height, x, y + height]
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": label + 1, "bbox": box}
            annotations.append(entry | {"area": width * height, "iscrowd": 0, "segmentation": [shape]})
        masks = None
        if "mask" in kinds:
            near = torch.from_numpy(corners.round().astype(np.float32))
            masks = encode(paste(torch.ones(objects, 7, 7), near, (SIDE, SIDE)))
        results.append(ImageResult(image, image, (SIDE, SIDE), corners + 1, labels, rng.random(objects), masks))
    truth = {
        "images": [{"id": image, "height": SIDE, "width": SIDE} for image in range(images)],
        "annotations": annotations,
        "categories": [{"id": label, "name": str(label)} for label in range(1, categories + 1)],
    }

    def work() -> None:
        CocoEvaluation(truth, range(1, categories + 1), kinds).evaluate(results)

    return work


def matched(objects: int, folder: Path) -> Work:
    """Costs and assignment of 300 queries, six layers, two images."""
    generator = torch.Generator().manual_seed(0)
    logits, boxes = torch.randn(6, 2, 300, 91, generator=generator), torch.rand(6, 2, 300, 4, generator=generator)
    labels = [torch.randint(91, (objects,), generator=generator) for _ in range(2)]
    targets = [torch.rand(objects, 4, generator=generator) * 0.2 + 0.2 for _ in range(2)]

    def work() -> None:
        costs = match_costs(logits, boxes, labels, targets, "focal", MatchCosts())
        assign({"decoder": costs}, [objects, objects])

    return work


def pasted(objects: int, folder: Path) -> Work:
    """Masks of 28 x 28 pasted into an image of 640 x 480 and coded."""
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(objects, 2, generator=generator) * 400
    boxes = torch.cat([low, low + 60], 1)
    maps = torch.rand(objects, 28, 28, generator=generator)

    def work() -> None:
        encode(paste(maps, boxes, (480, 640)))

    return work


CASES = {
    "classes": [
        Case("top-1, top-5 and loss of 1,280 images", CLASSES, counted),
        Case("confusion matrix and mistakes of 1,280 images, drawn", CLASSES, mistaken),
        Case(
            "COCO evaluation of boxes, 50 images of 20 objects",
            CLASSES,
            lambda classes, folder: evaluated(20, classes, ["box"], IMAGES),
        ),
    ],
    "objects": [
        Case("matching of 300 queries, 6 layers, 2 images", OBJECTS, matched),
        Case("masks of an image of 640 x 480, pasted and coded", OBJECTS, pasted),
        Case(
            "COCO evaluation of boxes and masks, 50 images",
            OBJECTS,
            lambda objects, folder: evaluated(objects, 80, ["box", "mask"], IMAGES),
        ),
    ],
}
