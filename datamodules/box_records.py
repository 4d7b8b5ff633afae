"""Objects of images as the reader of any layout finds them, written once as COCO annotations."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from datamodules.cache import write_once
from datamodules.decoding import Encoded
from datamodules.errors import DataError
from datamodules.finding import shown
from datamodules.skipping import MAX_LISTED

# Reading files releases Python's lock.
THREADS = 8
LAYOUT = "own-boxes-1"
PROBLEMS, SPLITS = "problems.json", ("train", "val", "test")


@dataclass(frozen=True)
class Item:
    """An image of a split.

    Args:
        image: Its file.
        labels: The file that says what is in it; None for nothing.
    """

    image: Path
    labels: Path | None


@dataclass(frozen=True)
class Object:
    """An object of an image.

    Args:
        name: Of its class.
        box: x0, y0, x1, y1 in pixels, within the image.
        outline: x, y, x, y ... of a polygon; empty without.
        difficult: Whether it need not be found, as a crowd of COCO's.
    """

    name: str
    box: tuple[float, float, float, float]
    outline: Sequence[float] = ()
    difficult: bool = False


@dataclass
class Found:
    """A data set, found by looking.

    Args:
        layout: What it is called.
        place: The file or folder that messages name.
        items: Images by split.
        read: From an item, height and width of its image, to its objects and, of each record that cannot be used, where
            it is and why.
        names: Classes in the order of labels; None for those that the objects have, sorted.
    """

    layout: str
    place: Path
    items: dict[str, list[Item]]
    read: Callable[[Item, int, int], tuple[list[Object], list[tuple[str, str]]]]
    names: list[str] | None = None


@dataclass(frozen=True)
class Part:
    """A split as COCO has it.

    Args:
        images: Folder of the images.
        annotations: JSON file.
    """

    images: Path
    annotations: Path


def as_coco(found: Found, outlines: bool) -> tuple[dict[str, Part], list[tuple[str, str]]]:
    """Writes a data set as COCO annotations to the cache, once, until one of its files changes.

    Args:
        found: The data set.
        outlines: Whether an object without an outline cannot be used.

    Returns:
        The splits; and where each record is that cannot be used, and why.

    Raises:
        DataError: If there is no image or no outline that is wanted, or the cache cannot be written.
    """
    splits = {split: items for split, items in found.items.items() if items}
    if "train" not in splits:
        raise DataError(f"{found.place} has no images to train on.")
    roots = {split: Path(os.path.commonpath([item.image.parent for item in items])) for split, items in splits.items()}

    def write(folder: Path) -> None:
        _write(found, splits, roots, outlines, folder)

    files = (file for items in splits.values() for item in items for file in (item.image, item.labels) if file)
    key = "\n".join(
        [f"{LAYOUT}, outlines={outlines}", found.layout, repr(found.names), repr(list(splits)), *map(_identity, files)]
    )
    folder = write_once(f"{found.layout}-{found.place.absolute().stem}", key, write, str(found.place))
    problems = [(where, why) for where, why in json.loads((folder / PROBLEMS).read_text())]
    return {split: Part(roots[split], folder / f"{split}.json") for split in splits}, problems


def listed(names: Sequence[object]) -> str:
    """The first of some names, and how many more there are."""
    first = ", ".join(shown(str(name)) for name in names[:MAX_LISTED])
    return first + (f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else "")


def _identity(file: Path) -> str:
    """Path, size and time of a file; of tens of thousands of them, no more is asked."""
    try:
        status = file.stat()
    except OSError:
        return shown(file.absolute())
    return f"{shown(file.absolute())}|{status.st_size}|{status.st_mtime_ns}"


def _write(found: Found, splits: dict[str, list[Item]], roots: dict[str, Path], outlines: bool, folder: Path) -> None:
    problems: list[tuple[str, str]] = []
    seen: dict[str, list[tuple[Item, int, int, list[Object]]]] = {}

    def look(item: Item) -> tuple[int, int, list[Object], list[tuple[str, str]]]:
        try:
            height, width = Encoded(item.image).size()
        except DataError as problem:
            return 0, 0, [], [(shown(item.image), str(problem))]
        return height, width, *found.read(item, height, width)

    total = sum(map(len, splits.values()))
    with ThreadPoolExecutor(THREADS) as threads, Progress(transient=True) as progress:
        task = progress.add_task(f"Reading {found.layout} labels", total=total)
        for split, items in splits.items():
            for item, (height, width, objects, wrong) in zip(items, threads.map(look, items), strict=True):
                progress.advance(task)
                problems += wrong
                if outlines:
                    bare = [each for each in objects if not each.outline]
                    problems += [
                        (shown(item.labels or item.image), f"a {each.name} has a box and no outline") for each in bare
                    ]
                    objects = [each for each in objects if each.outline]
                if height:
                    seen.setdefault(split, []).append((item, height, width, objects))
    if outlines and not any(objects for rows in seen.values() for *_, objects in rows):
        raise DataError(
            f"{found.place}: no object has an outline, which masks: true needs. Train on boxes: masks: false."
        )
    names = found.names
    if names is None:
        names = sorted({each.name for rows in seen.values() for *_, objects in rows for each in objects})
    if not names:
        first = f" ({problems[0][0]}: {problems[0][1]})" if problems else ""
        raise DataError(f"{found.place}: no image has an object{first}.")
    for split in splits:
        content = _coco(seen.get(split, []), names, roots[split])
        (folder / f"{split}.json").write_text(json.dumps(content))
    (folder / PROBLEMS).write_text(json.dumps(problems))


def _coco(rows: list[tuple[Item, int, int, list[Object]]], names: list[str], root: Path) -> dict[str, Any]:
    number = {name: i + 1 for i, name in enumerate(names)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (item, height, width, objects) in enumerate(rows, 1):
        name = item.image.relative_to(root).as_posix()
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for each in objects:
            x0, y0, x1, y1 = each.box
            record = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": number[each.name],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": int(each.difficult),
            }
            annotations.append(record | ({"segmentation": [list(each.outline)]} if each.outline else {}))
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}
