"""YOLO's layout: a text file of labels for each image, and a `data.yaml` that says where they are and names classes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from datamodules.box_records import SPLITS, Found, Item, Object, listed
from datamodules.errors import DataError
from datamodules.finding import EXTENSIONS, folders_in, images_in, read_file, shown

# What files with the names of classes are called, where there is no YAML file.
NAMES = ("classes.txt", "obj.names", "names.txt")
# How far over the edge of its image an object may reach, as a share of the image: labels are rounded.
OVERHANG = 0.05
# Split folders by what they are called.
FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def find_yolo(root: Path, said: bool = False) -> Found | None:
    """A data set in YOLO's layout; None if there is none.

    Args:
        root: A YAML file, or a folder that holds one, or folders `images` and `labels`.
        said: Whether somebody says that it is one.

    Raises:
        DataError: If it is one, and not whole.
    """
    if root.is_file():
        config = _config(root) if root.suffix.lower() in (".yaml", ".yml") else None
        if config is None and said:
            raise DataError(f"{root} is no YAML file with train and names, as YOLO's data sets have.")
        return None if config is None else _of_config(root, config)
    files = [path for suffix in ("yaml", "yml") for path in sorted(root.glob(f"*.{suffix}"))]
    configs = [(path, config) for path in files if (config := _config(path)) is not None]
    if len(configs) > 1:
        raise DataError(
            f"{root} has several YAML files of data sets ({listed([p.name for p, _ in configs])}): give one."
        )
    if configs:
        return _of_config(*configs[0])
    return _of_folders(root)


def _config(path: Path) -> dict[str, Any] | None:
    try:
        content = yaml.safe_load(read_file(path))
    except (DataError, yaml.YAMLError, RecursionError):
        return None
    return content if isinstance(content, dict) and {"train", "names"} <= content.keys() else None


def _of_config(file: Path, config: dict[str, Any]) -> Found:
    names = _names(file, config["names"])
    given = config.get("path")
    bases = [file.parent]
    if given:
        bases = [Path(str(given)) if Path(str(given)).is_absolute() else file.parent / str(given), file.parent]
    items = {}
    for split in SPLITS:
        places = config.get(split) or []
        places = places if isinstance(places, list) else [places]
        items[split] = [item for place in places for item in _items(_placed(file, bases, split, str(place)))]
    return Found("yolo", file, items, _reader(names), names)


def _of_folders(root: Path) -> Found | None:
    """A data set without a YAML file: `images/train` and `labels/train`, or `train/images` and `train/labels`."""
    if (root / "images").is_dir() and (root / "labels").is_dir():
        there = folders_in(root / "images")
        places = {split: root / "images" / name for split, names in FOLDERS.items() for name in names if name in there}
        places = places or {"train": root / "images"}
    else:
        places = {
            split: root / name / "images"
            for split, names in FOLDERS.items()
            for name in names
            if (root / name / "images").is_dir() and (root / name / "labels").is_dir()
        }
    if "train" not in places:
        return None
    items = {split: list(_items(place)) for split, place in places.items()}
    if not any(item.labels for each in items.values() for item in each):
        return None
    named = next((root / name for name in NAMES if (root / name).is_file()), None)
    names = None
    if named is not None:
        names = [line.strip() for line in read_file(named).decode(errors="replace").splitlines() if line.strip()]
    return Found("yolo", root, items, _reader(names), names)


def _names(file: Path, given: Any) -> list[str]:
    if isinstance(given, dict):
        try:
            given = {int(number): str(name) for number, name in given.items()}
        except (TypeError, ValueError):
            raise DataError(f"{file}: names are numbered from 0, and are not here.") from None
        missing = sorted(set(range(len(given))) - given.keys())
        if missing:
            raise DataError(f"{file}: names has {len(given)} classes, and none of number {missing[0]}.")
        given = [given[number] for number in range(len(given))]
    if not isinstance(given, list) or not given:
        raise DataError(f"{file}: names is no list of classes.")
    names = [str(name) for name in given]
    if again := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{file}: names has {listed(again)} twice.")
    return names


def _placed(file: Path, bases: list[Path], split: str, place: str) -> Path:
    """Where a split is: files are moved, and `../` before it often leads one folder too far."""
    tried = []
    for base in bases:
        for name in (place, place.removeprefix("../"), f"images/{place}"):
            path = Path(os.path.normpath(base / name))
            if path.exists():
                return path
            tried.append(path)
    raise DataError(f"{file}: {split} is {place}, and neither {tried[0]} nor {tried[-1]} is there. Mend the path.")


def _items(place: Path) -> Iterable[Item]:
    """Images of a folder, or of a text file that lists them, with their label files."""
    if place.is_file():
        lines = (line.strip() for line in read_file(place).decode(errors="surrogateescape").splitlines())
        images = [Path(os.path.normpath(place.parent / line)) for line in lines if line]
    else:
        images = [place / os.fsdecode(name) for name in images_in(place)]
    if not images:
        raise DataError(f"{place} holds no image ({', '.join(sorted(EXTENSIONS))}).")
    for image in images:
        labels = _label_file(image)
        yield Item(image, labels if labels.is_file() else None)


def _label_file(image: Path) -> Path:
    """`labels/x.txt` of `images/x.jpg`: the last folder of that name is another one."""
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _reader(names: list[str] | None) -> Any:
    def read(item: Item, height: int, width: int) -> tuple[list[Object], list[tuple[str, str]]]:
        if item.labels is None:
            return [], []
        try:
            text = read_file(item.labels).decode("utf-8-sig")
        except DataError as problem:
            return [], [(shown(item.labels), str(problem))]
        except UnicodeDecodeError:
            return [], [(shown(item.labels), "it is no text")]
        objects, problems = dict[tuple[Any, ...], Object](), []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                each = _object(line.split(), names, height, width)
            except DataError as problem:
                problems.append((f"{shown(item.labels)}, line {number}", str(problem)))
            else:
                # Label tools write the same line twice at times.
                objects.setdefault((each.name, each.box), each)
        return list(objects.values()), problems

    return read


def _object(words: list[str], names: list[str] | None, height: int, width: int) -> Object:
    try:
        label, *values = (float(word) for word in words)
    except ValueError:
        raise DataError("it holds something else than numbers") from None
    if label < 0 or label != int(label):
        raise DataError(f"the class is {words[0]}: a number from 0 on is needed")
    if names is not None and label >= len(names):
        raise DataError(f"the class is {words[0]}, and names has {len(names)}, counted from 0")
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise DataError(f"it has {len(values)} numbers after the class: 4 of a box, or x and y of 3 points or more")
    if not all(map(math.isfinite, values)):
        raise DataError("it holds a number that is not finite")
    if min(values) < -OVERHANG or max(values) > 1 + OVERHANG:
        worst = max(values, key=lambda value: abs(value - 0.5))
        raise DataError(f"it holds {worst:g}: numbers are shares of the image, from 0 to 1, and no pixels")
    outline: list[float] = []
    if len(values) == 4:
        x, y, w, h = values
        corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    else:
        outline = [value * side for value, side in zip(values, [width, height] * (len(values) // 2), strict=True)]
        corners = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    x0, x1 = (min(max(value, 0.0), 1.0) * width for value in corners[::2])
    y0, y1 = (min(max(value, 0.0), 1.0) * height for value in corners[1::2])
    if x1 - x0 < 1e-3 or y1 - y0 < 1e-3:
        raise DataError("its box is empty")
    name = str(int(label)) if names is None else names[int(label)]
    return Object(name, (x0, y0, x1, y1), outline)
