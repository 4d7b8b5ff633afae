"""Pascal VOC's layout: an XML file for each image."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

from datamodules.box_records import Found, Item, Object
from datamodules.errors import DataError
from datamodules.finding import images_in, read_file, shown

# Folders of XML files and of images, as they are called.
ANNOTATIONS, IMAGES = ("Annotations", "annotations"), ("JPEGImages", "images")
# By split, the lists of `ImageSets/Main` and the folders of a split.
SETS = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}


def find_voc(root: Path) -> Found | None:
    """A data set in Pascal VOC's layout; None if there is none.

    Args:
        root: Folder with `Annotations`, `JPEGImages` and perhaps `ImageSets/Main`, or one that holds such a folder or
            `VOCdevkit`; or with `train` and perhaps `valid` and `test`, each with images and XML files side by side.

    Raises:
        DataError: If it is one, and not whole.
    """
    for place in [root, *sorted(root.glob("VOC*")), *sorted(root.glob("VOCdevkit/VOC*"))]:
        annotations = next((place / name for name in ANNOTATIONS if _has_xml(place / name)), None)
        images = next((place / name for name in IMAGES if (place / name).is_dir()), None)
        if annotations is not None and images is not None:
            return Found("voc", place, _of_sets(place, images, annotations), _read)
    folders = {split: root / name for split, names in SETS.items() for name in names if _has_xml(root / name)}
    if not folders and _has_xml(root):
        folders = {"train": root}
    if "train" not in folders:
        return None
    return Found("voc", root, {split: _pairs(folder, folder) for split, folder in folders.items()}, _read)


def _has_xml(folder: Path) -> bool:
    return folder.is_dir() and any(entry.name.endswith(".xml") for entry in os.scandir(folder))


def _of_sets(place: Path, images: Path, annotations: Path) -> dict[str, list[Item]]:
    pairs = {item.image.stem: item for item in _pairs(images, annotations)}
    lists = place / "ImageSets" / "Main"
    found: dict[str, list[Item]] = {}
    for split, names in SETS.items():
        file = next((lists / f"{name}.txt" for name in names if (lists / f"{name}.txt").is_file()), None)
        if file is None:
            continue
        stems = [words[0] for line in read_file(file).decode(errors="replace").splitlines() if (words := line.split())]
        if missing := [stem for stem in stems if stem not in pairs]:
            raise DataError(
                f"{file} lists {len(missing)} images that are not in {images} or have no XML file in {annotations}, "
                f"such as {missing[0]}. Add them, or remove the lines."
            )
        found[split] = [pairs[stem] for stem in stems]
    return found if "train" in found else {"train": list(pairs.values())}


def _pairs(images: Path, annotations: Path) -> list[Item]:
    """Images with an XML file of their name; VOC has many more images, of its other tasks."""
    named = {Path(os.fsdecode(name)).stem: images / os.fsdecode(name) for name in images_in(images)}
    files = {path.stem: path for path in sorted(annotations.glob("*.xml"))}
    lost = sorted(files.keys() - named.keys())
    if lost:
        raise DataError(
            f"{len(lost)} XML files in {annotations} have no image in {images}, such as {files[lost[0]].name}. Add the "
            "images, or remove the files."
        )
    return [Item(named[stem], files[stem]) for stem in sorted(files)]


def _read(item: Item, height: int, width: int) -> tuple[list[Object], list[tuple[str, str]]]:
    assert item.labels is not None
    where = shown(item.labels)
    try:
        tree = ElementTree.fromstring(read_file(item.labels))
    except DataError as problem:
        return [], [(where, str(problem))]
    except (ElementTree.ParseError, ValueError) as problem:
        return [], [(where, f"it is no XML: {problem}")]
    size = tuple(_whole(tree.findtext(f"size/{side}")) for side in ("height", "width"))
    if all(size) and size != (height, width):
        return [], [(where, f"it is of an image of {size[1]}x{size[0]} pixels, and the image has {width}x{height}")]
    objects, problems = [], []
    for number, element in enumerate(tree.iter("object"), 1):
        try:
            objects.append(_object(element, height, width))
        except DataError as problem:
            problems.append((f"{where}, object {number}", str(problem)))
    return objects, problems


def _whole(text: str | None) -> int:
    return int(text) if text and text.strip().isdigit() else 0


def _object(element: ElementTree.Element, height: int, width: int) -> Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise DataError("it has no name")
    values = []
    for side in ("xmin", "ymin", "xmax", "ymax"):
        text = element.findtext(f"bndbox/{side}")
        try:
            values.append(float(text or ""))
        except ValueError:
            raise DataError(f"{side} of its box is {text or 'missing'}: a number is needed") from None
    # Pixels count from 1, and the last one is within.
    x0, y0, x1, y1 = values[0] - 1, values[1] - 1, values[2], values[3]
    if not (x1 > x0 + 1e-3 and y1 > y0 + 1e-3):
        raise DataError(f"its box is empty: from {values[0]:g}, {values[1]:g} to {values[2]:g}, {values[3]:g}")
    x0, x1 = (min(max(x, 0.0), float(width)) for x in (x0, x1))
    y0, y1 = (min(max(y, 0.0), float(height)) for y in (y0, y1))
    if not (x1 > x0 and y1 > y0):
        raise DataError(f"its box is outside of the image of {width}x{height} pixels")
    return Object(name, (x0, y0, x1, y1), difficult=(element.findtext("difficult") or "").strip() == "1")
