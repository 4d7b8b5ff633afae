"""Photographs of your own, one folder a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_class_folders(root: Path, classes: int, images: int, size: int = 40) -> None:
    """Writes `root/train/<class>/<number>.png`: noise, each class in a brightness of its own.

    Args:
        root: the folder of the data set.
        classes: how many there are.
        images: of each.
        size: height and width, in pixels.
    """
    random = np.random.Generator(np.random.PCG64(0))
    for label in range(classes):
        folder = root / "train" / f"kind {label}"
        folder.mkdir(parents=True)
        for number in range(images):
            noise = random.integers(256 // classes, size=(size, size, 3), dtype=np.uint8)
            Image.fromarray(noise + np.uint8(label * 255 // classes)).save(folder / f"{number}.png")
