"""Small COCO data sets on disk, record by record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules import Coco

CATEGORIES = [{"id": 7, "name": "train"}, {"id": 3, "name": "car"}, {"id": 5, "name": "plane"}]


class CocoFiles:
    """Writes a data set; what a test changes of ``records`` before ``data`` is what the files hold."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.records: dict[str, dict[str, list[Any]]] = {
            split: {"images": [], "annotations": [], "categories": [dict(one) for one in CATEGORIES]}
            for split in ("train", "val")
        }

    def image(self, split: str = "train", height: int = 40, width: int = 60) -> int:
        """Adds an image of random pixels and returns its id."""
        number = 10 + len(self.records[split]["images"])
        folder = self.root / f"{split}2017"
        folder.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        self.records[split]["images"].append(
            {"id": number, "file_name": f"{number}.png", "height": height, "width": width}
        )
        return number

    def object(self, image: int, bbox: list[float], split: str = "train", **fields: Any) -> int:
        """Adds an object, by default its box filled, and returns its id."""
        number = 100 + len(self.records[split]["annotations"])
        x, y, w, h = bbox
        record = {
            "id": number,
            "image_id": image,
            "category_id": 5,
            "bbox": bbox,
            "area": w * h,
            "iscrowd": 0,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
        self.records[split]["annotations"].append(record | fields)
        return number

    def data(self, **options: Any) -> Coco:
        """Writes the annotation files and opens the data set, without transforms and in this process."""
        (self.root / "annotations").mkdir(exist_ok=True)
        for split, content in self.records.items():
            (self.root / f"{split}2017").mkdir(exist_ok=True)
            (self.root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
        usual: dict[str, Any] = {"batch_size": 2, "num_workers": 0, "train_transforms": [], "eval_transforms": []}
        return Coco(self.root, **usual | options)
