"""COCO annotations as training and evaluation read them: mapped arrays, one image at a time or as one COCO dict."""

from __future__ import annotations

import json
import re
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from datamodules.cache import unpack_once
from datamodules.coco_compile import clamp_boxes, compile_annotations
from datamodules.errors import DataError
from datamodules.transforms.packed_masks import Patch

LAYOUT = "coco-4"
# The COCO API draws polygons on a grid of fifths of a pixel.
GRID = 5
# A word for a side in the name of a keypoint: `left_eye`, `L eye`, `eyeRight`.
SIDE = re.compile(r"(?:(?<![A-Za-z])(?:left|right|LEFT|RIGHT|[lrLR])|(?:Left|Right))(?![a-z])")
OTHER_SIDE = {
    one: other
    for pair in ("left right", "LEFT RIGHT", "Left Right", "l r", "L R")
    for one, other in (pair.split(), pair.split()[::-1])
}


class Annotations:
    """The usable records of one annotation file, compiled on first use and shared by all processes.

    Args:
        path: COCO JSON.
        outlines: Whether an object without polygons or a run-length mask cannot be used.

    Attributes:
        image_ids: int64 [n], in the file's order.
        categories: Category records of the file, by ascending id.
        problems: Record and reason of the first thousand records that were left out.
        num_problems: Number of records that were left out.
        overhanging: How many boxes were cut at the image's edge by more than a pixel, and the first of them.
        crossing: How many annotations have a polygon that crosses itself, and the first of them.
        listed_again: How many images have the file of another one, and the first of these files.

    Raises:
        DataError: If the file is no COCO file or the cache cannot be written.
    """

    def __init__(self, path: Path, outlines: bool = False) -> None:
        self.path = path
        compile_them = partial(compile_annotations, path, outlines)
        self._columns = unpack_once([path], compile_them, f"{LAYOUT}, outlines={outlines}, ")
        report = json.loads(self._columns["report"][:].tobytes())
        self.categories: list[dict[str, Any]] = report["categories"]
        self.problems: list[tuple[str, str]] = [(record, reason) for record, reason in report["problems"]]
        self.num_problems: int = report["num_problems"]
        self.overhanging, self.crossing, self.listed_again = (
            (int(report[name][0]), str(report[name][1])) for name in ("overhanging", "crossing", "listed_again")
        )
        self.image_ids = self._columns["image_ids"][:]

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def has_keypoints(self) -> bool:
        """Whether objects have keypoints."""
        return "keypoints" in self._columns

    def column(self, name: str) -> np.ndarray:
        """A whole column: ``heights``, ``widths``, ``categories``, ``crowds``, ``starts`` (of the images' rows) ..."""
        return self._columns[name][:]

    def file_names(self) -> list[str]:
        """File names of all images."""
        names, ends = self.column("names").tobytes(), self.column("name_ends").tolist()
        return [names[start:end].decode() for start, end in pairwise([0, *ends])]

    def file_name(self, image: int) -> str:
        """File name of an image."""
        start, end = int(self._columns["name_ends"][image - 1]) if image else 0, int(self._columns["name_ends"][image])
        return self._columns["names"][start:end].tobytes().decode()

    def size(self, image: int) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return int(self._columns["heights"][image]), int(self._columns["widths"][image])

    def rows(self, image: int) -> slice:
        """Rows of an image's objects in the columns of objects."""
        return slice(int(self._columns["starts"][image]), int(self._columns["starts"][image + 1]))

    def objects(self, image: int) -> dict[str, np.ndarray]:
        """What training needs of an image: its objects without crowds.

        Args:
            image: Position of the image.

        Returns:
            ``rows`` int64 [n], ``categories`` int64 [n], ``boxes`` float64 [n,4] (x0, y0, x1, y1 within the image), and
            ``keypoints`` float64 [n,K,3] where the file has them.
        """
        rows = self.rows(image)
        single = ~self._columns["crowds"][rows]
        found = {
            "rows": np.arange(rows.start, rows.stop)[single],
            "categories": self._columns["categories"][rows][single],
            "boxes": clamp_boxes(self._columns["boxes"][rows][single], *self.size(image)),
        }
        if self.has_keypoints:
            values = self._columns["keypoints"][rows][single]
            found["keypoints"] = values.reshape(len(values), values.shape[1] // 3, 3)
        return found

    def patch(self, row: int, height: int, width: int) -> Patch:
        """Mask of an object, where it is, exactly as the COCO API draws it: the union of its polygons.

        Args:
            row: Row of the object.
            height: Rows of the image.
            width: Columns of the image.

        Returns:
            Top, left, and the mask within a box around the object, uint8 [h,w] of 0 and 1.
        """
        start, end = self._columns["code_spans"][row].tolist()
        if end > start:
            mask = coco_mask.decode(self._segmentation(row, height, width))
            return 0, 0, mask
        return draw(self._polygons(row), height, width)

    def ground_truth(self, images: np.ndarray, outlines: bool) -> dict[str, Any]:
        """The COCO dict of some images, crowds included, as evaluation libraries read it.

        Args:
            images: Positions of the images.
            outlines: Whether ``segmentation`` is wanted.

        Returns:
            ``images``, ``annotations`` and ``categories``.
        """
        listed, annotations = [], []
        for image in images.tolist():
            height, width = self.size(image)
            listed.append(
                {"id": int(self.image_ids[image]), "file_name": self.file_name(image), "height": height, "width": width}
            )
            rows = self.rows(image)
            columns = {name: self._columns[name][rows] for name in ("ids", "categories", "boxes", "areas", "crowds")}
            for offset, row in enumerate(range(rows.start, rows.stop)):
                record = {
                    "id": int(columns["ids"][offset]),
                    "image_id": int(self.image_ids[image]),
                    "category_id": int(columns["categories"][offset]),
                    "bbox": columns["boxes"][offset].tolist(),
                    "area": float(columns["areas"][offset]),
                    "iscrowd": int(columns["crowds"][offset]),
                }
                if outlines:
                    record["segmentation"] = self._segmentation(row, height, width)
                if self.has_keypoints:
                    values = self._columns["keypoints"][row].tolist()
                    record |= {"keypoints": values, "num_keypoints": sum(visible > 0 for visible in values[2::3])}
                annotations.append(record)
        return {"images": listed, "annotations": annotations, "categories": self.categories}

    def _segmentation(self, row: int, height: int, width: int) -> Any:
        """Polygons, or a compressed run-length code."""
        start, end = self._columns["code_spans"][row].tolist()
        if end > start:
            return {"size": [height, width], "counts": self._columns["codes"][start:end].tobytes().decode()}
        return [polygon.tolist() for polygon in self._polygons(row)]

    def _polygons(self, row: int) -> list[np.ndarray]:
        """Polygons of an object, float64 [2m] each (x, y, x, y ...)."""
        first, last = self._columns["parts"][row].tolist()
        if first == last:
            return []
        ends = self._columns["part_ends"][first : last + 1].tolist()
        coordinates = self._columns["coordinates"][ends[0] : ends[-1]]
        return [coordinates[one - ends[0] : other - ends[0]] for one, other in pairwise(ends)]


def draw(polygons: list[np.ndarray], height: int, width: int) -> Patch:
    """Draws polygons as the COCO API does in an image of this size, but only where they are.

    The API rounds corners to fifths of a pixel. Rounded before they are moved, they come to the same pixels.

    Args:
        polygons: float64 [2m] each (x, y, x, y ...).
        height: Rows of the image.
        width: Columns of the image.

    Returns:
        Top, left, and the mask there, uint8 [h,w] of 0 and 1; empty where the polygons are outside of the image.
    """
    fifths = [np.trunc(polygon.reshape(-1, 2) * GRID + 0.5) for polygon in polygons]
    low = np.min([corners.min(0) for corners in fifths], axis=0) // GRID - 1
    high = np.max([corners.max(0) for corners in fifths], axis=0) // GRID + 2
    left, top = np.clip(low, 0, (width, height)).astype(int).tolist()
    right, bottom = np.clip(high, 0, (width, height)).astype(int).tolist()
    if left >= right or top >= bottom:
        return 0, 0, np.zeros((0, 0), np.uint8)
    moved = [corners - (GRID * left, GRID * top) for corners in fifths]
    # The API adds a half and cuts towards zero, which from below zero must come to the same number again.
    flat = [(np.where(corners < 0, corners - 0.75, corners) / GRID).reshape(-1).tolist() for corners in moved]
    drawn = coco_mask.merge(coco_mask.frPyObjects(flat, bottom - top, right - left))
    return top, left, coco_mask.decode(drawn)


def mirrored(annotations: Annotations) -> np.ndarray:
    """Which keypoint takes the place of each in a mirror, by their names, int64 [K].

    Raises:
        DataError: The categories do not name them, or not the same ones.
    """
    named = [category["keypoints"] for category in annotations.categories if category.get("keypoints")]
    names = named[0] if named else []
    number = annotations.column("keypoints").shape[1] // 3
    if len(names) != number or any(other != names for other in named):
        raise DataError(
            f"{annotations.path}: annotations have {number} keypoints, and the categories name "
            f"{sorted({len(other) for other in named}) or 'none'}. Every category with keypoints must name the "
            "same ones."
        )
    partners = [SIDE.sub(lambda side: OTHER_SIDE[side[0]], name) for name in names]
    return np.array([names.index(partner) if partner in names else i for i, partner in enumerate(partners)])
