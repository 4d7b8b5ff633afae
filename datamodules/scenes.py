"""Scenes of handwritten digits, written once to disk as a COCO data set and read like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from typing_extensions import override

from datamodules.cache import write_once
from datamodules.canvases import Canvas, CanvasPainter
from datamodules.coco import Coco
from datamodules.errors import OptionError
from datamodules.splits import Source
from datamodules.transforms import Transform

# The first 1297 digits are for training, the others for validation: other hands wrote them.
TRAIN_DIGITS, VAL_DIGITS = range(0, 1297), range(1297, 1797)
# The data set is part of the task: it must not move with the run's seed.
CANVAS_SEED = 20260101
LAYOUT = "digit-scenes-1"
JPEG_QUALITY = 95


class DigitScenes(Coco):
    """Noisy canvases with a few coloured digits, for detection and instance segmentation without any download.

    Batch: as ``Coco``, with 10 classes. The data set is written to the cache folder on first use.

    Args:
        batch_size: Images of one batch over all processes.
        size: Side of a canvas in pixels.
        objects: Fewest and most digits of a canvas.
        digit_size: Smallest and largest side of a digit in pixels.
        overlap: Largest part of a digit that another may cover; 0 keeps them apart.
        num_train: Training canvases, of the first 1297 digits.
        num_val: Validation canvases, of the other 500.
        masks: Whether training targets have masks.
        num_workers: Loader processes for each process.
        options: Further options of ``DataModule``. By default there are no transforms.

    Raises:
        OptionError: If there are no canvases, or digits do not fit on them.
    """

    def __init__(
        self,
        batch_size: int = 16,
        size: int = 64,
        objects: tuple[int, int] = (1, 3),
        digit_size: tuple[int, int] = (14, 29),
        overlap: float = 0.0,
        num_train: int = 2000,
        num_val: int = 200,
        masks: bool = True,
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        if num_train < 1 or num_val < 1:
            raise OptionError(f"num_train={num_train} and num_val={num_val} must be at least 1.")
        # What ``write`` writes is read in one way: given here, the rest of the layout is no option of the config.
        super().__init__(
            root="",
            batch_size=batch_size,
            masks=masks,
            labels="contiguous",
            keep_empty=True,
            group_by_aspect=False,
            limit=None,
            train_images="train2017",
            train_annotations="annotations/instances_train2017.json",
            val_images="val2017",
            val_annotations="annotations/instances_val2017.json",
            num_workers=num_workers,
            **options,
        )
        self.counts = {"train": num_train, "val": num_val}
        self.painters = {
            split: CanvasPainter(digits, size, objects, digit_size, overlap)
            for split, digits in (("train", TRAIN_DIGITS), ("val", VAL_DIGITS))
        }

    @override
    def default_train_transforms(self) -> list[Transform]:
        return []

    @override
    def default_eval_transforms(self) -> list[Transform]:
        return []

    @override
    def open(self) -> dict[str, Source | None]:
        painter = self.painters["train"]
        key = (LAYOUT, self.counts, painter.size, painter.objects, painter.digit_size, painter.overlap)
        self.root = write_once("digit-scenes", repr(key), self.write, source="The digit scenes")
        return super().open()

    def write(self, folder: Path) -> None:
        """Writes the data set in COCO's layout."""
        (folder / "annotations").mkdir()
        for number, (split, painter) in enumerate(self.painters.items()):
            images = folder / f"{split}2017"
            images.mkdir()
            listed: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for image_id in range(1, self.counts[split] + 1):
                canvas = painter.paint(np.random.Generator(np.random.PCG64([CANVAS_SEED, number, image_id])))
                name = f"{image_id:012d}.jpg"
                Image.fromarray(canvas.image).save(images / name, quality=JPEG_QUALITY, subsampling=0)
                listed.append({"id": image_id, "file_name": name, "height": painter.size, "width": painter.size})
                annotations += _records(canvas, image_id, len(annotations) + 1)
            content = {
                "images": listed,
                "annotations": annotations,
                "categories": [{"id": digit + 1, "name": str(digit), "supercategory": "digit"} for digit in range(10)],
            }
            (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


def _records(canvas: Canvas, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """COCO annotations of a canvas."""
    found = []
    for offset, (label, mask, box) in enumerate(zip(canvas.labels, canvas.masks, canvas.boxes.tolist(), strict=True)):
        code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        found.append(
            {
                "id": first_id + offset,
                "image_id": image_id,
                "category_id": int(label) + 1,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
            }
        )
    return found
