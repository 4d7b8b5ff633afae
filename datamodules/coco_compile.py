"""COCO annotations, checked and compiled to flat arrays, which processes map instead of holding them."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from datamodules.coco_json import records
from datamodules.errors import DataError

SECTIONS = frozenset({"images", "annotations", "categories"})
# Reported one by one; of more there is only the number.
MAX_REPORTED = 1000
# A narrower box is empty: less than coordinates of a large image resolve in single precision.
MIN_SIDE = 1e-3
# Boxes of COCO reach over the edge by rounding; more than this is worth a word.
OVERHANG = 1.0
BLOCK = 100_000


class Problems:
    """What is wrong with an annotation file, record by record."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[tuple[str, str]] = []

    def add(self, record: str, reason: str) -> None:
        """Notes a problem of one record."""
        self.count += 1
        if len(self.first) < MAX_REPORTED:
            self.first.append((record, reason))


def clamp_boxes(boxes: np.ndarray, heights: np.ndarray | int, widths: np.ndarray | int) -> np.ndarray:
    """COCO boxes as corners inside the image.

    Args:
        boxes: x, y, width, height in pixels, float64 [n,4].
        heights: Rows of the image of each box.
        widths: Columns of the image of each box.

    Returns:
        x0, y0, x1, y1 in pixels, float64 [n,4].
    """
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    corners[:, 0::2] = corners[:, 0::2].clip(0, np.reshape(widths, (-1, 1)))
    corners[:, 1::2] = corners[:, 1::2].clip(0, np.reshape(heights, (-1, 1)))
    return corners


def is_empty(corners: np.ndarray) -> np.ndarray:
    """Which boxes [n,4] (corners) have no area, bool [n]."""
    return ~((corners[:, 2:] - corners[:, :2]) > MIN_SIDE).all(axis=1)


def compile_annotations(path: Path, folder: Path) -> None:
    """Writes what an annotation file says to ``folder``, as ``coco_annotations.Annotations`` reads it.

    Records that cannot be used are left out and reported in ``report.json``.

    Args:
        path: COCO JSON.
        folder: Folder that gets the arrays.

    Raises:
        DataError: If the file is no COCO file at all.
    """
    images, rows, problems = _Images(), _Rows(), Problems()
    categories: dict[int, dict[str, Any]] = {}
    for number, (section, record) in enumerate(records(path, SECTIONS)):
        try:
            if section == "images":
                images.add(record)
            elif section == "annotations":
                rows.add(record)
            elif record["id"] in categories:
                problems.add(f"category {record['id']}", f"twice: {categories[record['id']]['name']}, {record['name']}")
            else:
                categories[int(record["id"])] = record | {"name": str(record["name"])}
        except (KeyError, TypeError, ValueError, OverflowError) as problem:
            what = f"has no {problem}" if isinstance(problem, KeyError) else str(problem)
            called = record.get("id", "without id") if isinstance(record, dict) else "that is no object"
            problems.add(f"{section} record {called} (number {number})", what)
    if not categories:
        raise DataError(f"{path} has no categories. COCO annotations have images, annotations and categories.")
    images.drop_repeated(problems)
    table = rows.usable(images, np.fromiter(categories, np.int64), problems)
    for name, values in (images.arrays() | table).items():
        np.save(folder / f"{name}.npy", values, allow_pickle=False)
    report = {
        "categories": list(categories.values()),
        "problems": problems.first,
        "num_problems": problems.count,
        "overhanging": rows.overhanging,
        "crossing": rows.crossing,
    }
    (folder / "report.json").write_text(json.dumps(report))


class _Images:
    """The image records, column by column."""

    def __init__(self) -> None:
        self.ids, self.heights, self.widths = array("q"), array("q"), array("q")
        self.names: list[bytes] = []
        self.kept = np.empty(0, bool)

    def add(self, record: dict[str, Any]) -> None:
        """Takes a record in; raises if it lacks something."""
        image, height, width = int(record["id"]), int(record["height"]), int(record["width"])
        name = str(record["file_name"])
        if height < 1 or width < 1:
            raise ValueError(f"{name} has the size {width}x{height}")
        self.ids.append(image)
        self.heights.append(height)
        self.widths.append(width)
        self.names.append(name.encode())

    def drop_repeated(self, problems: Problems) -> None:
        """Leaves out images whose id was there before."""
        ids = np.asarray(self.ids, np.int64)
        self.kept = _first_of_each(ids)
        for place in np.flatnonzero(~self.kept):
            problems.add(f"image {ids[place]} ({self.names[place].decode()})", "its id belongs to another image, too")

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns that are stored."""
        names = [name for name, kept in zip(self.names, self.kept, strict=True) if kept]
        return {
            "image_ids": np.asarray(self.ids, np.int64)[self.kept],
            "heights": np.asarray(self.heights, np.int64)[self.kept],
            "widths": np.asarray(self.widths, np.int64)[self.kept],
            "names": np.frombuffer(b"".join(names), np.uint8),
            "name_ends": np.cumsum([len(name) for name in names], dtype=np.int64),
        }


class _Rows:
    """The annotation records, column by column; coordinates of all polygons in one row."""

    def __init__(self) -> None:
        self.ids, self.images, self.categories = array("q"), array("q"), array("q")
        self.boxes, self.areas, self.crowds = array("d"), array("d"), array("b")
        self.coordinates, self.part_ends = array("d"), array("q", [0])
        self.last_parts = array("q", [0])
        self.codes, self.code_ends = bytearray(), array("q", [0])
        self.code_sizes = array("q")
        self.keypoints, self.num_values = array("d"), 0
        self.rows_with_keypoints = array("q")
        self.overhanging: list[Any] = [0, ""]
        self.crossing: list[Any] = [0, ""]

    def add(self, record: dict[str, Any]) -> None:
        """Takes a record in; raises if it lacks something, and is unchanged then."""
        identity, image, category = int(record["id"]), int(record["image_id"]), int(record["category_id"])
        box = [float(value) for value in record["bbox"]]
        if len(box) != 4:
            raise ValueError(f"bbox has {len(box)} numbers: x, y, width, height are needed")
        area = float(record.get("area", box[2] * box[3]))
        parts, code, size = _outline(record.get("segmentation"))
        values = record.get("keypoints")
        if values:
            self.num_values = self.num_values or len(values)
            if len(values) != self.num_values or len(values) % 3:
                raise ValueError(f"{len(values)} keypoint numbers: {self.num_values} are needed (x, y, visibility)")
            self.keypoints.extend(array("d", values))
            self.rows_with_keypoints.append(len(self.ids))
        for part in parts:
            self.coordinates.extend(part)
            self.part_ends.append(len(self.coordinates))
        self.last_parts.append(len(self.part_ends) - 1)
        self.codes += code
        self.code_ends.append(len(self.codes))
        self.code_sizes.extend(size)
        self.ids.append(identity)
        self.images.append(image)
        self.categories.append(category)
        self.boxes.extend(box)
        self.areas.append(area)
        self.crowds.append(bool(record.get("iscrowd", 0)))

    def usable(self, images: _Images, known_categories: np.ndarray, problems: Problems) -> dict[str, np.ndarray]:
        """The columns that are stored, sorted by image, without what cannot be used."""
        ids, categories = np.asarray(self.ids, np.int64), np.asarray(self.categories, np.int64)
        of, boxes = np.asarray(self.images, np.int64), np.asarray(self.boxes, np.float64).reshape(-1, 4)
        stored = images.arrays()
        place = _positions(of, stored["image_ids"])
        # One row more, so that rows of unknown images have something to look at until they are left out.
        heights, widths = np.append(stored["heights"], 1)[place], np.append(stored["widths"], 1)[place]
        corners = clamp_boxes(boxes, heights, widths)
        code_sizes = np.asarray(self.code_sizes, np.int64).reshape(-1, 2)
        has_code = np.diff(np.asarray(self.code_ends, np.int64)) > 0
        kept = np.ones(len(ids), bool)

        def refuse(wrong: np.ndarray, reason: str) -> None:
            for row in np.flatnonzero(wrong & kept):
                box = ", ".join(f"{value:g}" for value in boxes[row])
                problems.add(
                    f"annotation {ids[row]} of image {of[row]}",
                    reason.format(box=f"[{box}]", category=categories[row], width=widths[row], height=heights[row]),
                )
            kept[wrong] = False

        refuse(place == len(stored["image_ids"]), "there is no such image")
        refuse(~_first_of_each(ids), "its id belongs to another annotation, too")
        refuse(~np.isin(categories, known_categories), "category {category} is unknown")
        refuse(np.isfinite(boxes).sum(axis=1) < 4, "the box {box} is not finite")
        refuse(boxes[:, 2:].min(axis=1, initial=0) < 0, "the box {box} is inverted (x, y, width, height)")
        refuse(is_empty(corners), "the box {box} is empty within the image of {width}x{height}")
        refuse(
            has_code & (code_sizes != np.stack([heights, widths], axis=1)).any(axis=1),
            "its run-length mask is not {width}x{height} as the image is",
        )
        enclosing, crossing = self._polygons()
        drawn = np.diff(np.asarray(self.last_parts, np.int64)) > 0
        refuse(drawn & (enclosing == 0), "its polygons have no area (degenerate, self-crossing, or not finite)")
        beyond = np.maximum(-boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - np.stack([widths, heights], axis=1)).max(
            axis=1
        )
        for doubtful, noted in ((beyond > OVERHANG, self.overhanging), (crossing > 0, self.crossing)):
            found = np.flatnonzero(kept & doubtful)
            if len(found):
                noted[:] = [len(found), f"annotation {ids[found[0]]} of image {of[found[0]]}"]
        rows = np.flatnonzero(kept)
        rows = rows[np.argsort(place[rows], kind="stable")]
        codes, code_ends = np.frombuffer(bytes(self.codes), np.uint8), np.asarray(self.code_ends, np.int64)
        table = {
            "starts": np.searchsorted(place[rows], np.arange(len(stored["image_ids"]) + 1)),
            "ids": ids[rows],
            "categories": categories[rows],
            "boxes": boxes[rows],
            "areas": np.asarray(self.areas, np.float64)[rows],
            "crowds": np.asarray(self.crowds, bool)[rows],
            "parts": _spans(np.asarray(self.last_parts, np.int64), rows),
            "part_ends": np.asarray(self.part_ends, np.int64),
            "coordinates": np.asarray(self.coordinates, np.float64),
            "codes": codes,
            "code_spans": _spans(code_ends, rows),
        }
        if self.num_values:
            keypoints = np.zeros((len(ids), self.num_values))
            keypoints[np.asarray(self.rows_with_keypoints)] = np.asarray(self.keypoints).reshape(-1, self.num_values)
            table["keypoints"] = keypoints[rows]
        return table

    def _polygons(self) -> tuple[np.ndarray, np.ndarray]:
        """How many polygons of each annotation enclose something, and how many cross themselves, int64 [n] each.

        A closed line that crosses itself an odd number of times does not turn by one full circle (Whitney's theorem);
        lines with a point twice in a row, or that go back the way they came, are not judged.
        """
        ends, coordinates = np.asarray(self.part_ends, np.int64), np.asarray(self.coordinates, np.float64)
        areas, turns = np.zeros(len(ends) - 1), np.ones(len(ends) - 1)
        for first in range(0, len(areas), BLOCK):
            last = min(first + BLOCK, len(areas))
            points = coordinates[ends[first] : ends[last]].reshape(-1, 2)
            starts = (ends[first:last] - ends[first]) // 2
            after = np.arange(1, len(points) + 1)
            after[np.append(starts[1:], len(points)) - 1] = starts
            areas[first:last] = np.abs(np.add.reduceat(_cross(points, points[after]), starts)) / 2
            steps = points[after] - points
            angles = np.arctan2(_cross(steps, steps[after]), (steps * steps[after]).sum(1))
            unclear = (steps == 0).all(1) | (np.abs(angles) > np.pi - 1e-6)
            whole = np.rint(np.add.reduceat(angles, starts) / (2 * np.pi))
            turns[first:last] = np.where(np.logical_or.reduceat(unclear, starts), 1, np.abs(whole))
        counts = [np.append(0, np.cumsum(each)) for each in (areas > 0, turns != 1)]
        spans = np.asarray(self.last_parts, np.int64)
        return np.diff(counts[0][spans]), np.diff(counts[1][spans])


def _cross(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    return vectors[:, 0] * others[:, 1] - others[:, 0] * vectors[:, 1]


def _outline(segmentation: Any) -> tuple[list[array], bytes, tuple[int, int]]:
    """Polygons, or a compressed run-length code with its height and width."""
    if not segmentation:
        return [], b"", (0, 0)
    if isinstance(segmentation, list):
        for part in segmentation:
            if len(part) < 6 or len(part) % 2:
                raise ValueError(f"a polygon of {len(part)} numbers: 3 points (x, y) or more are needed")
        return [array("d", part) for part in segmentation], b"", (0, 0)
    height, width = segmentation["size"]
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if sum(counts) != height * width:
            raise ValueError(f"a run-length mask of {sum(counts)} pixels for {width}x{height}")
        counts = coco_mask.frPyObjects(segmentation, height, width)["counts"]
    return [], counts if isinstance(counts, bytes) else counts.encode(), (height, width)


def _first_of_each(ids: np.ndarray) -> np.ndarray:
    """Which values come for the first time, bool [n]."""
    first = np.zeros(len(ids), bool)
    first[np.unique(ids, return_index=True)[1]] = True
    return first


def _positions(wanted: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Where each wanted value is in ``ids``; ``len(ids)`` for what is not."""
    order = np.argsort(ids)
    found = np.searchsorted(ids, wanted, sorter=order).clip(max=max(len(ids) - 1, 0))
    if not len(ids):
        return np.zeros(len(wanted), np.int64)
    place = order[found]
    return np.where(ids[place] == wanted, place, len(ids))


def _spans(ends: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """First and last (excluded) of each row, int64 [n,2]."""
    return np.stack([ends[:-1][rows], ends[1:][rows]], axis=1)
