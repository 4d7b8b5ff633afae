"""One record of a COCO file: its values, or the reason why it cannot be used, before anything is made of it."""

from __future__ import annotations

import re
import reprlib
from array import array
from typing import Any, NamedTuple

from pycocotools import mask as coco_mask

from datamodules.decoding import MAX_PIXELS
from datamodules.finding import shown

# What file systems take: bytes of a name, and of a path.
MAX_NAME, MAX_PATH = 255, 4096
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,18}")
_INT64 = range(-(2**63), 2**63)
_NUMBERS = frozenset({int, float})
_NONE = array("d")


class RecordError(Exception):
    """Why a record cannot be used."""


class ImageRecord(NamedTuple):
    """An image: id, rows and columns in pixels, and file name."""

    identity: int
    height: int
    width: int
    name: bytes


class AnnotationRecord(NamedTuple):
    """An object.

    Args:
        identity: Its id.
        image: Id of its image.
        category: Id of its category.
        box: x, y, width, height in pixels.
        area: In pixels.
        crowd: Whether it stands for many.
        polygons: x, y, x, y ... of each.
        code: A compressed run-length code; empty if there is none.
        size: Rows and columns that the code is of.
        keypoints: x, y, visibility of each; empty if there are none.
    """

    identity: int
    image: int
    category: int
    box: array[float]
    area: float
    crowd: bool
    polygons: list[array[float]]
    code: bytes
    size: tuple[int, int]
    keypoints: array[float]


def record_name(record: Any) -> str:
    """What a person would find a record by."""
    if not isinstance(record, dict):
        return "that is no object"
    return short(record["id"]) if "id" in record else "without id"


def short(value: Any) -> str:
    """A value of a record as a message shows it: on one line, and cut if it is long."""
    return "null" if value is None else reprlib.repr(value)


def read_image(record: Any) -> ImageRecord:
    """An image record.

    Raises:
        RecordError: If it cannot be used.
    """
    _check_object(record)
    name = _field(record, "file_name")
    if not isinstance(name, str) or not name:
        raise RecordError(f"file_name is {short(name)}: text is needed")
    encoded = _encoded(name, "file_name")
    if "\0" in name or len(encoded) >= MAX_PATH or max(map(len, encoded.split(b"/"))) > MAX_NAME:
        raise RecordError(f"file_name {short(name)} can be no file's: it is too long, or holds a zero byte")
    identity, height, width = (_whole(record, field) for field in ("id", "height", "width"))
    named = shown(name)
    if height < 1 or width < 1:
        raise RecordError(f"{named} has the size {width}x{height}")
    if height * width > MAX_PIXELS:
        raise RecordError(
            f"{named} has the size {width}x{height}, which is more than the {MAX_PIXELS:,} pixels allowed"
        )
    return ImageRecord(identity, height, width, encoded)


def read_category(record: Any) -> dict[str, Any]:
    """A category: ``id``, ``name``, and what it has of ``supercategory``, ``keypoints`` (their names) and ``skeleton``.

    A skeleton is pairs of keypoints, counted from 1, that a line connects.

    Raises:
        RecordError: If it cannot be used.
    """
    _check_object(record)
    name = _field(record, "name")
    if isinstance(name, bool) or not isinstance(name, str | int | float):
        raise RecordError(f"name is {short(name)}: text is needed")
    category: dict[str, Any] = {"id": _whole(record, "id"), "name": str(name)}
    _encoded(category["name"], "name")
    if isinstance(group := record.get("supercategory"), str):
        category["supercategory"] = group
    if keypoints := record.get("keypoints"):
        if not isinstance(keypoints, list) or not all(isinstance(one, str) for one in keypoints):
            raise RecordError(f"keypoints is {short(keypoints)}: a list of names is needed")
        category["keypoints"] = [_encoded(one, "keypoints").decode() for one in keypoints]
        if bones := record.get("skeleton"):
            ends = range(1, len(keypoints) + 1)
            if not isinstance(bones, list) or not all(
                isinstance(bone, list) and len(bone) == 2 and all(type(end) is int and end in ends for end in bone)
                for bone in bones
            ):
                raise RecordError(
                    f"skeleton is {short(bones)}: pairs of keypoints from 1 to {len(keypoints)} are needed"
                )
            category["skeleton"] = bones
    return category


def read_annotation(record: Any) -> AnnotationRecord:
    """An annotation; whether its numbers are finite, and fit its image, is not looked at.

    Raises:
        RecordError: If it cannot be used.
    """
    _check_object(record)
    identity, image, category = _whole(record, "id"), _whole(record, "image_id"), _whole(record, "category_id")
    box = _numbers(_field(record, "bbox"), "bbox")
    if len(box) != 4:
        raise RecordError(f"bbox has {len(box)} numbers: x, y, width, height are needed")
    area = record.get("area")
    if area is None:
        area = box[2] * box[3]
    elif type(area) is not float:
        area = _numbers([area], "area")[0]
    crowd = record.get("iscrowd") or 0
    if crowd is not True and (crowd := _whole(record, "iscrowd") if crowd else 0) not in (0, 1):
        raise RecordError(f"iscrowd is {crowd}: 0 or 1 is needed")
    keypoints = _numbers(found, "keypoints") if (found := record.get("keypoints")) else _NONE
    if len(keypoints) % 3:
        raise RecordError(f"{len(keypoints)} keypoint numbers: x, y, visibility of each are needed")
    polygons, code, size = _outline(record.get("segmentation"))
    return AnnotationRecord(identity, image, category, box, area, bool(crowd), polygons, code, size, keypoints)


def _outline(segmentation: Any) -> tuple[list[array[float]], bytes, tuple[int, int]]:
    """Polygons, or a compressed run-length code with its rows and columns."""
    if segmentation is None or segmentation == []:
        return [], b"", (0, 0)
    if isinstance(segmentation, list):
        if not isinstance(segmentation[0], list):
            raise RecordError(
                f"segmentation is {short(segmentation)}: a list of polygons, [[x, y, x, y ...]], is needed"
            )
        polygons = [_numbers(polygon, "a polygon") for polygon in segmentation]
        for polygon in polygons:
            if len(polygon) < 6 or len(polygon) % 2:
                raise RecordError(f"a polygon of {len(polygon)} numbers: 3 points (x, y) or more are needed")
        return polygons, b"", (0, 0)
    if not isinstance(segmentation, dict):
        raise RecordError(f"segmentation is {short(segmentation)}: polygons or a run-length mask are needed")
    size, counts = _field(segmentation, "size"), _field(segmentation, "counts")
    if not isinstance(size, list) or len(size) != 2:
        raise RecordError(f"size of a run-length mask is {short(size)}: height and width are needed")
    height, width = (_whole({"size of a run-length mask": side}, "size of a run-length mask") for side in size)
    if isinstance(counts, list):
        counts = _compressed(counts, height, width)
    elif not isinstance(counts, str) or not counts.isascii():
        raise RecordError(f"counts of a run-length mask is {short(counts)}: a code or a list of numbers is needed")
    else:
        counts = counts.encode()
    if not counts:
        raise RecordError("a run-length mask without counts")
    return [], counts, (height, width)


def _compressed(counts: list[Any], height: int, width: int) -> bytes:
    """The code of run lengths."""
    runs = [_whole({"counts": run}, "counts") for run in counts]
    if min(runs, default=0) < 0:
        raise RecordError(f"a run of {min(runs)} pixels in a run-length mask")
    if sum(runs) != height * width or not 0 < height * width <= MAX_PIXELS:
        raise RecordError(f"a run-length mask of {short(sum(runs))} pixels for {width}x{height}")
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"]


def _check_object(record: Any) -> None:
    if not isinstance(record, dict):
        raise RecordError(f"it is {short(record)}: an object, {{...}}, is needed")


def _field(record: dict[str, Any], field: str) -> Any:
    try:
        return record[field]
    except KeyError:
        raise RecordError(f"has no {field!r}") from None


def _whole(record: dict[str, Any], field: str) -> int:
    """A whole number, which may be written as 7, 7.0 or "7"."""
    value = _field(record, field)
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    if type(value) is int:
        number = value
    elif (isinstance(value, float) and value.is_integer()) or (isinstance(value, str) and _WHOLE.fullmatch(value)):
        number = int(value)
    else:
        raise RecordError(f"{field} is {short(value)}: a whole number is needed")
    if number not in _INT64:
        raise RecordError(f"{field} is {short(number)}, which is beyond 64 bits")
    return number


def _numbers(values: Any, field: str) -> array[float]:
    """A row of numbers."""
    if not isinstance(values, list):
        raise RecordError(f"{field} is {short(values)}: a list of numbers is needed")
    if not _NUMBERS.issuperset(map(type, values)):
        wrong = next(value for value in values if type(value) not in _NUMBERS)
        raise RecordError(f"{field} holds {short(wrong)}, which is no number")
    try:
        return array("d", values)
    except OverflowError:
        raise RecordError(f"{field} holds a number that is too large") from None


def _encoded(text: str, field: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise RecordError(f"{field} {text!r} holds half a character") from None
