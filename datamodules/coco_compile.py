"""COCO annotations, checked and compiled to flat arrays, which processes map instead of holding them."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.coco_records import RecordError, read_annotation, read_category, read_image, record_name, short
from datamodules.errors import DataError
from datamodules.finding import shown
from datamodules.json_records import records
from datamodules.polygons import Polygons
from datamodules.run_lengths import coded_pixels

SECTIONS = frozenset({"images", "annotations", "categories"})
# Reported one by one; of more there is only the number.
MAX_REPORTED = 1000
# A file that starts with so many bad records has no good ones worth the wait.
HOPELESS = 100_000
# A narrower box is empty: less than coordinates of a large image resolve in single precision.
MIN_SIDE = 1e-3
# Boxes of COCO reach over the edge by rounding; more than this is worth a word.
OVERHANG = 1.0


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


def compile_annotations(path: Path, outlines: bool, folder: Path) -> None:
    """Writes what an annotation file says to ``folder``, as ``coco_annotations.Annotations`` reads it.

    Records that cannot be used are left out, and reported in ``report.npy`` (JSON).

    Args:
        path: COCO JSON.
        outlines: Whether an object without an outline cannot be used.
        folder: Folder that gets the arrays.

    Raises:
        DataError: If the file is no COCO file at all.
    """
    images, rows, categories, problems = _Images(), _Rows(), _Categories(), Problems()
    add = {"images": images.add, "annotations": rows.add, "categories": categories.add}
    for number, (section, record) in enumerate(records(path, SECTIONS)):
        try:
            add[section](record)
        except RecordError as problem:
            problems.add(f"{section} record {record_name(record)} (number {number})", str(problem))
            if problems.count == number + 1 == HOPELESS:
                first = ": ".join(problems.first[0])
                raise DataError(f"{path}: none of its first {HOPELESS:,} records can be used; {first}.") from problem
    known = categories.usable(problems)
    if not known:
        first = f" that can be used ({': '.join(problems.first[0])})" if problems.count else ""
        raise DataError(f"{path} has no categories{first}. COCO annotations have images, annotations and categories.")
    if outlines and rows.ids and not rows.last_parts[-1] and not rows.codes:
        raise DataError(
            f"{path}: {len(rows.ids)} annotations have no segmentation, such as annotation {rows.ids[0]}. "
            "Set masks: false to train on boxes only, or add them."
        )
    images.drop_repeated(problems)
    table = rows.usable(images, known, outlines, problems)
    report = {
        "categories": known,
        "problems": problems.first,
        "num_problems": problems.count,
        "overhanging": rows.overhanging,
        "crossing": rows.crossing,
        "listed_again": images.listed_again(),
    }
    table["report"] = np.frombuffer(json.dumps(report).encode(), np.uint8)
    for name, values in (images.arrays() | table).items():
        np.save(folder / f"{name}.npy", values, allow_pickle=False)


class _Categories:
    """The category records."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def add(self, record: Any) -> None:
        """Takes a record in; raises if it cannot be used."""
        self.records.append(read_category(record))

    def usable(self, problems: Problems) -> list[dict[str, Any]]:
        """The categories by ascending id, without those that share one."""
        by_id: dict[int, list[dict[str, Any]]] = {}
        for record in self.records:
            by_id.setdefault(record["id"], []).append(record)
        kept = []
        for number, same in sorted(by_id.items()):
            for _ in same[1:]:
                problems.add(f"category {number}", f"twice: {short(same[0]['name'])}, {short(same[1]['name'])}")
            # What an object of two different categories is, nobody knows.
            kept += same[:1] if all(other == same[0] for other in same) else []
        return kept


class _Images:
    """The image records, column by column."""

    def __init__(self) -> None:
        self.ids, self.heights, self.widths = array("q"), array("q"), array("q")
        self.names: list[bytes] = []
        self.kept = np.empty(0, bool)

    def add(self, record: Any) -> None:
        """Takes a record in; raises if it cannot be used."""
        image = read_image(record)
        self.ids.append(image.identity)
        self.heights.append(image.height)
        self.widths.append(image.width)
        self.names.append(image.name)

    def drop_repeated(self, problems: Problems) -> None:
        """Leaves out images whose id was there before, and the first, too, if it is another image."""
        ids = np.asarray(self.ids, np.int64)
        self.kept = _first_of_each(ids)
        again = np.flatnonzero(~self.kept)
        firsts = np.flatnonzero(self.kept)
        firsts = firsts[_positions(ids[again], ids[firsts])]
        for place, first in zip(again.tolist(), firsts.tolist(), strict=True):
            self._report(place, problems)
            if self.kept[first] and any(
                column[place] != column[first] for column in (self.names, self.heights, self.widths)
            ):
                # Whose objects they are, nobody knows.
                self.kept[first] = False
                self._report(first, problems)

    def _report(self, place: int, problems: Problems) -> None:
        name = shown(self.names[place].decode())
        problems.add(f"image {self.ids[place]} ({name})", "its id belongs to another image, too")

    def listed_again(self) -> tuple[int, str]:
        """How many images have the file of another one, and the first of them."""
        listed = Counter(name for name, kept in zip(self.names, self.kept, strict=True) if kept)
        again = [name for name, number in listed.items() for _ in range(number - 1)]
        return len(again), short(again[0].decode()) if again else ""

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
        self.keypoints, self.keypoint_ends = array("d"), array("q", [0])
        self.overhanging: tuple[int, str] = (0, "")
        self.crossing: tuple[int, str] = (0, "")

    def add(self, record: Any) -> None:
        """Takes a record in; raises if it cannot be used, and is unchanged then."""
        found = read_annotation(record)
        for polygon in found.polygons:
            self.coordinates.extend(polygon)
            self.part_ends.append(len(self.coordinates))
        self.last_parts.append(len(self.part_ends) - 1)
        self.codes += found.code
        self.code_ends.append(len(self.codes))
        self.code_sizes.extend(found.size)
        self.keypoints.extend(found.keypoints)
        self.keypoint_ends.append(len(self.keypoints))
        self.ids.append(found.identity)
        self.images.append(found.image)
        self.categories.append(found.category)
        self.boxes.extend(found.box)
        self.areas.append(found.area)
        self.crowds.append(found.crowd)

    def usable(
        self, images: _Images, categories: list[dict[str, Any]], outlines: bool, problems: Problems
    ) -> dict[str, np.ndarray]:
        """The columns that are stored, sorted by image, without what cannot be used."""
        ids, of_category = np.asarray(self.ids, np.int64), np.asarray(self.categories, np.int64)
        of, boxes = np.asarray(self.images, np.int64), np.asarray(self.boxes, np.float64).reshape(-1, 4)
        areas = np.asarray(self.areas, np.float64)
        stored = images.arrays()
        place = _positions(of, stored["image_ids"])
        # One row more, so that rows of unknown images have something to look at until they are left out.
        heights, widths = np.append(stored["heights"], 1)[place], np.append(stored["widths"], 1)[place]
        codes, code_ends = np.frombuffer(bytes(self.codes), np.uint8), np.asarray(self.code_ends, np.int64)
        code_sizes, has_code = np.asarray(self.code_sizes, np.int64).reshape(-1, 2), np.diff(code_ends) > 0
        keypoint_ends = np.asarray(self.keypoint_ends, np.int64)
        num_keypoints = np.diff(keypoint_ends)
        num_values = _values_of_each(categories, num_keypoints)
        last_parts = np.asarray(self.last_parts, np.int64)
        kept = np.ones(len(ids), bool)

        def refuse(wrong: np.ndarray, reason: str) -> None:
            for row in np.flatnonzero(wrong & kept):
                box = ", ".join(f"{value:g}" for value in boxes[row])
                values = {"box": f"[{box}]", "category": of_category[row], "width": widths[row], "height": heights[row]}
                values |= {"area": areas[row], "keypoints": num_keypoints[row], "needed": num_values}
                problems.add(f"annotation {ids[row]} of image {of[row]}", reason.format(**values))
            kept[wrong] = False

        with np.errstate(over="ignore", invalid="ignore"):
            corners = clamp_boxes(boxes, heights, widths)
            beyond = _beyond(boxes[:, :2], boxes[:, :2] + boxes[:, 2:], widths, heights)
            lines = Polygons(np.asarray(self.coordinates, np.float64), np.asarray(self.part_ends, np.int64), last_parts)
            reach = _beyond(lines.low, lines.high, widths, heights)
        refuse(place == len(stored["image_ids"]), "there is no such image, or it cannot be used")
        refuse(~np.isin(of_category, [each["id"] for each in categories]), "category {category} is unknown")
        refuse(np.isfinite(boxes).sum(axis=1) < 4, "the box {box} is not finite")
        refuse(boxes[:, 2:].min(axis=1, initial=0) < 0, "the box {box} is inverted (x, y, width, height)")
        far = np.maximum(widths, heights)
        refuse(beyond > far, "the box {box} reaches far outside of the image of {width}x{height}")
        refuse(is_empty(corners), "the box {box} is empty within the image of {width}x{height}")
        # More than the largest box that is taken.
        refuse(
            ~((areas >= 0) & (areas <= (3.0 * far) ** 2)), "the area {area} is no area in an image of {width}x{height}"
        )
        refuse(
            has_code & (code_sizes != np.stack([heights, widths], axis=1)).any(axis=1),
            "its run-length mask is not {width}x{height} as the image is",
        )
        pixels = coded_pixels(codes, code_ends)
        refuse(pixels < 0, "the code of its run-length mask is damaged")
        refuse(
            has_code & (pixels != heights * widths), "its run-length mask does not end with the {width}x{height} image"
        )
        refuse(lines.drawn & ~np.isfinite(reach), "a number of its polygons is not finite")
        refuse(
            lines.drawn & (reach > far),
            "its polygons reach far outside of the image of {width}x{height}",
        )
        refuse(lines.drawn & (lines.enclosing == 0), "its polygons have no area (degenerate or self-crossing)")
        outside = (lines.high <= 0).any(axis=1) | (lines.low >= np.stack([widths, heights], axis=1)).any(axis=1)
        refuse(lines.drawn & outside, "its polygons are outside of the image of {width}x{height}")
        if outlines:
            refuse(~lines.drawn & ~has_code, "it has no segmentation (with masks: false, none is needed)")
        refuse(
            (num_keypoints > 0) & (num_keypoints != num_values),
            "{keypoints} keypoint numbers: {needed} are needed (x, y, visibility)",
        )
        lost, strange = _odd_keypoints(np.asarray(self.keypoints, np.float64), num_keypoints, widths, heights)
        refuse(lost, "a keypoint is not finite, or far outside of the image of {width}x{height}")
        refuse(strange, "the visibility of a keypoint is not 0, 1 or 2")
        twice = kept.copy()
        twice[kept] = ~_first_of_each(ids[kept])
        refuse(twice, "its id belongs to another annotation, too")
        self.overhanging, self.crossing = (
            (len(found), f"annotation {ids[found[0]]} of image {of[found[0]]}" if len(found) else "")
            for found in (np.flatnonzero(kept & (beyond > OVERHANG)), np.flatnonzero(kept & (lines.crossing > 0)))
        )
        rows = np.flatnonzero(kept)
        rows = rows[np.argsort(place[rows], kind="stable")]
        table = {
            "starts": np.searchsorted(place[rows], np.arange(len(stored["image_ids"]) + 1)),
            "ids": ids[rows],
            "categories": of_category[rows],
            "boxes": boxes[rows],
            "areas": areas[rows],
            "crowds": np.asarray(self.crowds, bool)[rows],
            "parts": _spans(last_parts, rows),
            "part_ends": lines.ends,
            "coordinates": lines.coordinates,
            "codes": codes,
            "code_spans": _spans(code_ends, rows),
        }
        if num_values and (num_keypoints[rows] > 0).any():
            keypoints = np.zeros((len(ids), num_values))
            having = kept & (num_keypoints > 0)
            values = np.asarray(self.keypoints, np.float64)
            keypoints[having] = values[keypoint_ends[:-1][having][:, None] + np.arange(num_values)]
            table["keypoints"] = keypoints[rows]
        return table


def _beyond(low: np.ndarray, high: np.ndarray, widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """How many pixels something reaches over an edge of its image, float64 [n]; negative within."""
    return np.maximum(-low, high - np.stack([widths, heights], axis=1)).max(axis=1, initial=-np.inf)


def _odd_keypoints(
    values: np.ndarray, counts: np.ndarray, widths: np.ndarray, heights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which rows have a keypoint that is nowhere near the image, and which one of unknown visibility, bool [n] each."""
    points, rows = values.reshape(-1, 3), np.repeat(np.arange(len(counts)), counts // 3)
    with np.errstate(over="ignore", invalid="ignore"):
        reach = _beyond(points[:, :2], points[:, :2], widths[rows], heights[rows])
    lost = ~(reach <= np.maximum(widths, heights)[rows])
    strange = ~((points[:, 2] >= 0) & (points[:, 2] <= 2))
    return np.bincount(rows[lost], minlength=len(counts)) > 0, np.bincount(rows[strange], minlength=len(counts)) > 0


def _values_of_each(categories: list[dict[str, Any]], found: np.ndarray) -> int:
    """How many keypoint numbers an object has: what the categories say in one voice, else what most objects have."""
    named = {3 * len(category["keypoints"]) for category in categories if category.get("keypoints")}
    if len(named) == 1:
        return named.pop()
    lengths, counts = np.unique(found[found > 0], return_counts=True)
    return int(lengths[counts.argmax()]) if len(lengths) else 0


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
