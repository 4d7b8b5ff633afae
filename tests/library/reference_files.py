"""A small data set in RefCOCO's layout."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Split, image and text; boxes are where the text says.
SAID = (("train", 1, "top left"), ("train", 2, "bottom right"), ("val", 3, "top left"), ("testA", 3, "bottom right"))
BOXES = {"top left": [0, 0, 6, 4], "bottom right": [8, 8, 8, 4]}


def references() -> list[dict[str, Any]]:
    """A reference for each of `SAID`."""
    return [
        {"ref_id": i, "ann_id": 10 * image + (text == "top left"), "image_id": image, "split": split}
        | {"sentences": [{"sent": text, "tokens": text.split()}]}
        for i, (split, image, text) in enumerate(SAID)
    ]


def write_references(root: Path, found: list[Any] | None = None, suffix: str = ".p") -> Path:
    """Writes it; images have 16x12 pixels.

    Args:
        root: Folder.
        found: References, by default those of `SAID`.
        suffix: Of their file: `.p` or `.json`.
    """
    found = references() if found is None else found
    content = json.dumps(found).encode() if suffix == ".json" else pickle.dumps(found, protocol=2)
    (root / f"refs(unc){suffix}").write_bytes(content)
    (root / "images").mkdir(exist_ok=True)
    for number in (1, 2, 3):
        pixels = np.random.default_rng(number).integers(256, size=(12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"COCO_train2014_{number:012d}.png")
    annotations = [
        {"id": 10 * image + (text == "top left"), "image_id": image, "bbox": box}
        for image in (1, 2, 3)
        for text, box in BOXES.items()
    ]
    images = [{"id": number, "width": 16, "height": 12} for number in (1, 2, 3)]
    (root / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return root
