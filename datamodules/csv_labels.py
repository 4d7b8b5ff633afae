"""Tables of images and their classes: a CSV file with a column of paths and one of labels, and perhaps of splits."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.decoding import Encoded
from datamodules.errors import DataError
from datamodules.finding import EXTENSIONS, Listings, leads_outside, shown
from datamodules.packed_names import PackedNames

# What columns are called, the usual name first.
PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "image_name")
LABELS = ("label", "class", "category", "target", "class_name", "label_name")
SPLITS = ("split", "subset", "set", "fold")
# What splits are called.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
DELIMITERS = ",;\t|"


@dataclass
class Table:
    """The rows of a CSV file that can be used, by split; without a column of splits all are of ``train``.

    Args:
        path: The file.
        rows: Of each split, image (within the folder of images) and label.
        problems: Line and reason of each row that cannot be used.
    """

    path: Path
    rows: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)


def csv_columns(path: Path) -> tuple[str, ...]:
    """The names in the first line of a CSV file; empty if that is no text."""
    try:
        first = next(_lines(path), None)
    except DataError:
        return ()
    return tuple(first[1]) if first else ()


def is_table(path: Path) -> bool:
    """Whether a CSV file may be a table of images: its first line names a column of paths, or an image."""
    columns = csv_columns(path)
    return _column(columns, PATHS) is not None or _names_image(columns)


def read_table(path: Path, images: Path, path_column: str | None = None, label_column: str | None = None) -> Table:
    """Reads a table of images.

    Args:
        path: CSV in UTF-8, separated by commas, semicolons, tabs or bars. Without a line of names, the first column is
            the path and the second the label.
        images: Folder that paths are in.
        path_column: The column of paths, if it has an unusual name.
        label_column: The column of labels.

    Raises:
        DataError: If it is no such table.
    """
    lines = _lines(path)
    number, names = next(lines, (0, []))
    if not names:
        raise DataError(f"{path} is empty. A table of images has the columns path and label.")
    if path_column is None and label_column is None and _names_image(names) and len(names) > 1:
        columns: tuple[int, int, int | None] = (0, 1, None)
        lines = _lines(path)
    else:
        columns = (
            _found(path, names, PATHS, path_column, "path"),
            _found(path, names, LABELS, label_column, "label"),
            _column(names, SPLITS),
        )
    table, there, seen = Table(path), Listings(images), dict[str, int]()
    for number, cells in lines:
        try:
            split, image, label = _row(cells, columns, len(names))
            image = _within(image, images, there)
            if (before := seen.setdefault(image, number)) != number:
                raise DataError(f"{shown(image)} is in line {before}, too")
        except DataError as problem:
            table.problems.append((f"line {number}", str(problem)))
        else:
            table.rows.setdefault(split, []).append((image, label))
    return table


class LabelledFiles:
    """Image files with a class each.

    Args:
        folder: Folder that names are in.
        names: Of the files, within it.
        labels: Class indices, int64 [n].
    """

    def __init__(self, folder: Path, names: Sequence[str], labels: np.ndarray) -> None:
        self.folder, self._names = folder, PackedNames([name.encode(errors="surrogateescape") for name in names])
        self._labels = torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> np.ndarray:
        """Class indices, int64 [n]."""
        return self._labels.numpy()

    def load(self, index: int) -> dict[str, Any]:
        """One sample: ``image`` (encoded) and ``label``."""
        return {"image": Encoded(self.folder / self._names[index]), "label": int(self._labels[index])}

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self.folder / self._names[index])


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Lines of a CSV file that hold something, as their numbers and cells."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        head = text[: 1 << 16].splitlines()[:1]
        delimiter = max(DELIMITERS, key=head[0].count) if head else ","
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [cell.strip() for cell in cells]
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror or problem}.") from problem
    except UnicodeError as problem:
        raise DataError(f"{path} is no UTF-8 text: {problem}. Save it as UTF-8.") from problem
    except csv.Error as problem:
        raise DataError(f"{path} is no CSV file: {problem}.") from problem


def _column(names: Sequence[str], known: Sequence[str]) -> int | None:
    lowered = [name.lower() for name in names]
    return next((lowered.index(name) for name in known if name in lowered), None)


def _found(path: Path, names: Sequence[str], known: Sequence[str], given: str | None, what: str) -> int:
    if given is not None and given in names:
        return names.index(given)
    place = None if given is not None else _column(names, known)
    if place is None:
        raise DataError(
            f"{path} has no column {given or what}, but {', '.join(map(shown, names))}. Name it by {what}_column."
        )
    return place


def _names_image(cells: Sequence[str]) -> bool:
    return bool(cells) and Path(cells[0]).suffix.lower() in EXTENSIONS


def _row(cells: list[str], columns: tuple[int, int, int | None], width: int) -> tuple[str, str, str]:
    """Split, image and label of a row."""
    if len(cells) != width:
        raise DataError(f"it has {len(cells)} cells, and the first line has {width}")
    path, label, split = columns
    if not cells[path] or not cells[label]:
        raise DataError(f"it has no {'path' if not cells[path] else 'label'}")
    name = "train" if split is None else cells[split]
    if name.lower() not in SPLIT_NAMES:
        raise DataError(f"its split is {shown(name) or 'empty'}: train, val or test is needed")
    return SPLIT_NAMES[name.lower()], cells[path], cells[label]


def _within(name: str, images: Path, there: Listings) -> str:
    """A path of a table within the folder of images."""
    name = name.replace("\\", "/").removeprefix("./")
    if name.startswith(f"{images}/"):
        name = name.removeprefix(f"{images}/")
    if leads_outside(name):
        raise DataError(f"its file {shown(name)} is not in {images}: name the folder by images")
    if not there.has(name):
        raise DataError(f"{shown(images / name)} is missing")
    return name
