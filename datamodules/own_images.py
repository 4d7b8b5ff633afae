"""One's own photographs with a class each, in whichever of the usual layouts they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from typing_extensions import override

from datamodules.base import DataModule
from datamodules.csv_labels import SPLIT_NAMES, LabelledFiles, Table, csv_columns, is_table, read_table
from datamodules.errors import DataError, OptionError
from datamodules.finding import folders_in, shown
from datamodules.folders import ClassFolders, refuse_same_folders
from datamodules.pixels import Pixels
from datamodules.splits import LabelledSource, Source, Subset, hold_out
from datamodules.transforms import Transform
from datamodules.transforms.recipes import evaluate_centre, gentle_augmentation

Layout = Literal["auto", "folders", "csv"]


class OwnImages(DataModule):
    """Images of one's own, with one class each, in class folders or listed in a CSV file.

    - ``folders``: ``root/train/<class>/*.jpg``, with ``val`` and ``test`` beside ``train`` where they exist, or
      ``root/<class>/*.jpg``.
    - ``csv``: a file with the columns ``path`` and ``label``, and perhaps ``split``; or ``train.csv``, with ``val.csv``
      and ``test.csv`` where they exist.

    Without validation images some are held out from those to train on. Without test images there is no test split.

    Batch: ``image`` [B,3,H,W], ``label`` int64 [B], ``index`` int64 [B]. Classes are sorted, as numbers if all are.

    Args:
        root: Folder of the data set, or a CSV file.
        batch_size: Samples of one batch over all processes.
        layout: ``auto`` looks which one it is.
        size: Height and width that images are brought to, in pixels; by default what the network's weights were made
            for, else 224.
        holdout: Validation images taken from training if there are none: a number, or a fraction below 1.
        images: Folder that the paths of a CSV file are in; by default the file's own.
        path_column: Column of paths of a CSV file, if it has an unusual name.
        label_column: Column of labels.
        options: Further options of ``DataModule``. By default a random crop of at least a third of the image is resized
            and flipped, and its colours are changed a little; images to evaluate are cut to their middle.

    Raises:
        OptionError: If ``size`` is less than 8.
    """

    def __init__(
        self,
        root: Path | str,
        batch_size: int = 32,
        layout: Layout = "auto",
        size: int | None = None,
        holdout: int | float = 0.2,
        images: Path | str | None = None,
        path_column: str | None = None,
        label_column: str | None = None,
        **options: Any,
    ) -> None:
        if size is not None and size < 8:
            raise OptionError(f"size={size} must be at least 8 pixels.")
        self.size = size
        super().__init__(batch_size, **options)
        self.root, self.layout, self.holdout = Path(root), layout, holdout
        self.images = None if images is None else Path(images)
        self.columns = (path_column, label_column)
        self._described = ""

    @override
    def default_train_transforms(self) -> list[Transform]:
        return gentle_augmentation(self._sized())

    @override
    def default_eval_transforms(self) -> list[Transform]:
        return evaluate_centre(self._sized())

    def _sized(self) -> Pixels:
        return self.pixels if self.size is None else self.pixels.sized(self.size)

    @override
    def described(self) -> str:
        self.source("train")
        return self._described

    @override
    def open(self) -> dict[str, Source | None]:
        if not self.root.exists():
            raise DataError(f"{self.root} does not exist. {_WANTED.format(root=self.root)}")
        tables = self._tables()
        layout = self.layout if self.layout != "auto" else self._looked(tables)
        found = self._of_tables(tables) if layout == "csv" else self._of_folders()
        splits: dict[str, Source | None] = {"train": found["train"], "val": found.get("val"), "test": found.get("test")}
        if "val" not in found:
            kept, held = hold_out(found["train"].labels, self.holdout)
            splits["train"] = Subset(found["train"], kept)
            splits["val"] = Subset(found["train"], held) if len(held) else None
        counts = ", ".join(f"{len(source):,} {split}" for split, source in splits.items() if source is not None)
        held_out = "" if "val" in found or splits["val"] is None else ", val held out from train"
        where = ", ".join(map(str, tables)) if layout == "csv" else str(self.root)
        kind = "CSV" if layout == "csv" else "class folders"
        self._described = f"{where}: {kind}, {self.num_classes} classes, {counts} images{held_out} (layout: {layout})"
        return splits

    def _tables(self) -> list[Path]:
        """The CSV files that may list the images: those of the splits, else the only one there is."""
        if self.root.is_file():
            return [self.root]
        there = sorted(path for path in self.root.glob("*.csv") if not path.name.startswith(".") and is_table(path))
        of_splits = [path for path in there if path.stem.lower() in SPLIT_NAMES]
        if any(SPLIT_NAMES[path.stem.lower()] == "train" for path in of_splits):
            return of_splits
        if len(there) > 1:
            named = ", ".join(path.name for path in there)
            raise DataError(f"{self.root} has several tables ({named}): give one of them as root.")
        return there

    def _looked(self, tables: list[Path]) -> Layout:
        """Which layout it is: class folders of their own split before a table before class folders."""
        if self.root.is_file():
            return "csv"
        train = self._split_folders().get("train")
        if train is not None and len(folders_in(train)) > 1:
            return "folders"
        if tables:
            return "csv"
        if len(folders_in(self.root)) > 1 or train is not None:
            return "folders"
        files = [path for path in sorted(self.root.glob("*.csv")) if path.is_file()]
        columns = f" {files[0].name} has the columns {', '.join(csv_columns(files[0]))}." if files else ""
        raise DataError(
            f"{self.root} holds neither class folders nor a table.{columns} {_WANTED.format(root=self.root)}"
        )

    def _split_folders(self) -> dict[str, Path]:
        """Folders that are called as splits are."""
        return {
            SPLIT_NAMES[name.lower()]: self.root / name for name in folders_in(self.root) if name.lower() in SPLIT_NAMES
        }

    def _of_folders(self) -> dict[str, LabelledSource]:
        folders = self._split_folders()
        if "train" not in folders:
            folders = {"train": self.root}
        refuse_same_folders(list(folders.values()))
        train = ClassFolders(folders.pop("train"))
        self.class_names = [shown(name) for name in train.class_names]
        found: dict[str, LabelledSource] = {"train": train}
        return found | {split: ClassFolders(folder, train.class_names) for split, folder in folders.items()}

    def _of_tables(self, tables: list[Path]) -> dict[str, LabelledSource]:
        if not tables:
            raise DataError(f"{self.root} has no table. {_WANTED.format(root=self.root)}")
        rows: dict[str, list[tuple[str, str]]] = {}
        for path in tables:
            images = self.images or path.parent
            table = read_table(path, images, *self.columns)
            self.leave_out(f"{path}: {len(table.problems)} rows cannot be used", table.problems, file=path)
            for split, found in _renamed(table, tables).items():
                rows.setdefault(split, []).extend(found)
        if not rows.get("train"):
            raise DataError(f"{tables[0]} lists no images to train on.")
        names = sorted({label for _, label in rows["train"]}, key=_as_number)
        number = {name: label for label, name in enumerate(names)}
        unknown = sorted({label for found in rows.values() for _, label in found} - number.keys())
        if unknown:
            raise DataError(
                f"{tables[0].parent}: there are labels that the training split lacks: {', '.join(unknown[:10])}. "
                "Classes must be the same."
            )
        self.class_names = [shown(name) for name in names]
        folder = self.images or tables[0].parent
        return {
            split: LabelledFiles(
                folder, [image for image, _ in found], np.array([number[label] for _, label in found], np.int64)
            )
            for split, found in rows.items()
        }


_WANTED = (
    "Wanted are {root}/train/<class>/<image>, {root}/<class>/<image>, or {root}/labels.csv with the columns path and "
    "label."
)


def _renamed(table: Table, tables: list[Path]) -> dict[str, list[tuple[str, str]]]:
    """The rows of a table by split; a table that is one of several is the split that its name says."""
    if len(tables) == 1:
        return table.rows
    return {SPLIT_NAMES[table.path.stem.lower()]: [row for rows in table.rows.values() for row in rows]}


def _as_number(name: str) -> tuple[bool, float, str]:
    """An order of labels: numbers by their value, before words."""
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name
