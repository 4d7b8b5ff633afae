"""Growth with the images of a data set, in class folders and in COCO's layout."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.growth.measuring import Case, Work
from datamodules import Coco, ImageFolder
from datamodules.base import DataModule

COUNTS = (1_000, 10_000, 100_000, 1_000_000)
CLASSES = 1_000
# Names that a file system lets one file have.
NAMES = 30_000
# Pixels a side.
SIDE = 32


def images(folder: Path, names: list[str], store: Path) -> None:
    """Image files of these names below a folder, which take no more room than their names."""
    store.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    for parent in {str(folder / os.path.dirname(name)) for name in names}:
        os.makedirs(parent, exist_ok=True)
    for number, name in enumerate(names):
        if number % NAMES == 0:
            original = store / f"{len(os.listdir(store))}.jpg"
            Image.fromarray(pixels).save(original)
        os.link(original, folder / name)


def in_class_folders(count: int, folder: Path) -> ImageFolder:
    """Writes a data set of class folders, which says how it is to be opened."""
    classes = min(CLASSES, count // 10)
    names = [f"{number % classes:04}/{number:09}.jpg" for number in range(count)]
    images(folder / "data/train", names, folder / "store")
    images(folder / "data/val", [f"{label:04}/0.jpg" for label in range(classes)], folder / "store")
    return ImageFolder(folder / "data", batch_size=32, num_workers=2)


def in_coco(count: int, folder: Path) -> Coco:
    """Writes a data set in COCO's layout, an object an image."""
    box = '"bbox": [4.0, 4.0, 20.0, 20.0], "area": 400.0, "iscrowd": 0'
    shape = '"segmentation": [[4.0, 4.0, 24.0, 4.0, 24.0, 24.0, 4.0, 24.0]]'
    (folder / "data/annotations").mkdir(parents=True)
    for split, number in (("train", count), ("val", 100)):
        images(folder / f"data/{split}2017", [f"{i:012}.jpg" for i in range(number)], folder / "store")
        with (folder / f"data/annotations/instances_{split}2017.json").open("w") as file:
            file.write('{"images": [')
            for i in range(number):
                comma = ", " if i else ""
                file.write(f'{comma}{{"id": {i}, "file_name": "{i:012}.jpg", "height": {SIDE}, "width": {SIDE}}}')
            file.write('], "annotations": [')
            for i in range(number):
                comma = ", " if i else ""
                label = i % 80 + 1
                file.write(f'{comma}{{"id": {i + 1}, "image_id": {i}, "category_id": {label}, {box}, {shape}}}')
            categories = [{"id": label, "name": f"thing {label}"} for label in range(1, 81)]
            file.write(f'], "categories": {json.dumps(categories)}}}')
    return Coco(folder / "data", batch_size=32, num_workers=2)


def started(data: DataModule) -> Iterator[Any]:
    """Opens a data set as a training does, and takes the first batch; returns those that would follow."""
    data.setup("fit")
    batches = iter(data.train_dataloader())
    next(batches)
    return batches


def folders_opened(count: int, folder: Path) -> Work:
    """Class folders from nothing to the first batch."""
    data = in_class_folders(count, folder)
    return lambda: started(data)


def coco_opened(count: int, folder: Path) -> Work:
    """COCO, annotations read for the first time, to the first batch."""
    data = in_coco(count, folder)
    return lambda: started(data)


def coco_opened_again(count: int, folder: Path) -> Work:
    """COCO, annotations compiled before."""
    in_coco(count, folder).setup("fit")
    return lambda: started(Coco(folder / "data", batch_size=32, num_workers=2))


CASES = {
    "images": [
        Case("class folders, to the first batch", COUNTS, folders_opened),
        Case("COCO, first start, to the first batch", COUNTS, coco_opened),
        Case("COCO, second start, to the first batch", COUNTS, coco_opened_again),
    ]
}
