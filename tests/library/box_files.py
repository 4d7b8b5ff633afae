"""Small data sets with boxes, the same ones in every layout: images of 60x40 pixels with two classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ["cat", "dog"]
WIDTH, HEIGHT = 60, 40
# Class and x0, y0, x1, y1 of the objects of each image of a split.
OBJECTS: dict[str, list[list[tuple[int, tuple[int, int, int, int]]]]] = {
    "train": [[(0, (6, 4, 30, 20)), (1, (30, 10, 60, 40))], [(1, (0, 0, 15, 10))], []],
    "val": [[(0, (12, 8, 24, 32))], [(1, (6, 6, 36, 36))]],
}


def write_image(path: Path, seed: int) -> None:
    """Writes noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(path)


def write_coco(root: Path) -> None:
    """As annotation tools export it: `train/_annotations.coco.json` beside the images, and `valid`."""
    for split, folder in (("train", "train"), ("val", "valid")):
        images, annotations = [], []
        for i, objects in enumerate(OBJECTS[split]):
            write_image(root / folder / f"{i}.png", i)
            images.append({"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH})
            for label, (x0, y0, x1, y1) in objects:
                box = [x0, y0, x1 - x0, y1 - y0]
                annotations.append(
                    {"id": len(annotations), "image_id": i, "category_id": label + 4, "bbox": box, "iscrowd": 0}
                )
        categories = [{"id": i + 4, "name": name} for i, name in enumerate(NAMES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / folder / "_annotations.coco.json").write_text(json.dumps(content))


def write_yolo(root: Path, outlines: bool = False) -> None:
    """`images/train`, `labels/train`, and `data.yaml` that says its folder is elsewhere."""
    for split, images in OBJECTS.items():
        (root / "labels" / split).mkdir(parents=True)
        for i, objects in enumerate(images):
            write_image(root / "images" / split / f"{i}.png", i)
            lines = []
            for label, (x0, y0, x1, y1) in objects:
                if outlines:
                    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
                    numbers = [share for x, y in corners for share in (x / WIDTH, y / HEIGHT)]
                else:
                    numbers = [(x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT]
                lines.append(" ".join(map(str, [label, *numbers])))
            # An image without objects has no file.
            if lines:
                (root / "labels" / split / f"{i}.txt").write_text("\n".join(lines))
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(NAMES))
    (root / "data.yaml").write_text(f"path: ../datasets/mine\ntrain: images/train\nval: images/val\nnames:\n{names}")


def write_voc(root: Path) -> None:
    """`Annotations`, `JPEGImages` and `ImageSets/Main`."""
    for name in ("Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for split, images in OBJECTS.items():
        stems = [f"{split}_{i}" for i in range(len(images))]
        for i, (stem, objects) in enumerate(zip(stems, images, strict=True)):
            write_image(root / "JPEGImages" / f"{stem}.jpg", i)
            found = "".join(
                f"<object><name>{NAMES[label]}</name><difficult>0</difficult><bndbox><xmin>{x0 + 1}</xmin>"
                f"<ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
                for label, (x0, y0, x1, y1) in objects
            )
            size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
            (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{found}</annotation>")
        (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(stems))


LAYOUTS: dict[str, Callable[[Path], None]] = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc}
