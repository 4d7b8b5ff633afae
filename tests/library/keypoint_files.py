"""Small data sets with named joints, as COCO has keypoints: stick figures on noise, one an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.mpii import JOINT_NAMES, SKELETON
from datamodules.stick_figures import CANVAS, draw, figure

# As COCO writes names.
NAMES = [name.replace(" ", "_") for name in JOINT_NAMES]
BONES = [[one + 1, other + 1] for one, other in SKELETON]


def keypoint_records(root: Path, split: str, number: int) -> dict[str, Any]:
    """Writes the images of a split, and returns what its JSON file holds."""
    folder = root / f"{split}2017"
    folder.mkdir(parents=True)
    images, annotations = [], []
    for i in range(number):
        random = np.random.default_rng([number, i])
        joints, height = figure(random)
        Image.fromarray(draw(joints, height, random)).save(folder / f"{i}.png")
        low, high = joints.min(0), joints.max(0)
        images.append({"id": i, "file_name": f"{i}.png", "height": CANVAS, "width": CANVAS})
        annotations.append(
            {
                "id": 100 + i,
                "image_id": i,
                "category_id": 1,
                "bbox": [*low.tolist(), *(high - low).tolist()],
                "iscrowd": 0,
                "keypoints": [value for x, y in joints.tolist() for value in (x, y, 2)],
                "num_keypoints": len(joints),
            }
        )
    category = {"id": 1, "name": "figure", "keypoints": NAMES, "skeleton": BONES}
    return {"images": images, "annotations": annotations, "categories": [category]}


def write_keypoints(root: Path, **numbers: int) -> None:
    """Writes splits of so many figures, `train=8, val=4`, as COCO has them."""
    (root / "annotations").mkdir(parents=True)
    for split, number in numbers.items():
        content = keypoint_records(root, split, number)
        (root / f"annotations/person_keypoints_{split}2017.json").write_text(json.dumps(content))
