"""One folder a class, as torchvision's ImageFolder reads it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from datamodules.base import DataModule
from datamodules.decoding import Encoded
from datamodules.errors import DataError
from datamodules.finding import EXTENSIONS, folders_in, images_in, shown
from datamodules.packed_names import PackedNames
from datamodules.splits import Source, Subset, hold_out
from datamodules.transforms import Transform
from datamodules.transforms.recipes import evaluate_centre, large_image_augmentation


class ImageFolder(DataModule):
    """Images in ``root/train/<class>/``, with ``root/val/<class>/`` and ``root/test/<class>/`` where they exist.

    Without ``val``, validation images are held out from ``train``. Without ``test`` there is no test split.

    Batch: ``image`` [B,3,H,W], ``label`` int64 [B], ``index`` int64 [B]. Classes are the folders of ``train``, sorted.

    Args:
        root: Folder that holds ``train``.
        batch_size: Samples of one batch over all processes.
        holdout: Validation images taken from ``train`` if there is no ``val``: a number, or a fraction below 1.
        options: Further options of ``DataModule``. By default a random crop is resized to 224x224 and flipped; images
            to evaluate are resized to a shorter side of 256 and cropped to the middle 224x224.
    """

    def __init__(
        self,
        root: Path | str,
        batch_size: int = 128,
        holdout: int | float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(batch_size, **options)
        self.root, self.holdout = Path(root), holdout

    @override
    def default_train_transforms(self) -> list[Transform]:
        return large_image_augmentation(self.pixels)

    @override
    def default_eval_transforms(self) -> list[Transform]:
        return evaluate_centre(self.pixels)

    @override
    def open(self) -> dict[str, Source | None]:
        if not (self.root / "train").is_dir():
            raise DataError(
                f"{self.root / 'train'} is not a folder. An image folder has {self.root}/train/<class>/<image>, and "
                f"optionally {self.root}/val/<class>/<image> and {self.root}/test/<class>/<image>."
            )
        splits = {split: self.root / split for split in ("train", "val", "test") if (self.root / split).exists()}
        refuse_same_folders(list(splits.values()))
        train = ClassFolders(splits["train"])
        self.class_names = [shown(name) for name in train.class_names]
        others = {split: ClassFolders(splits[split], train.class_names) for split in splits if split != "train"}
        if "val" in others:
            return {"train": train, "val": others["val"], "test": others.get("test")}
        kept, held = hold_out(train.labels, self.holdout)
        return {
            "train": Subset(train, kept),
            "val": Subset(train, held) if len(held) else None,
            "test": others.get("test"),
        }


class ClassFolders:
    """The images of a folder of class folders, each searched with its subfolders.

    Args:
        folder: Folder of class folders.
        class_names: Classes in label order; by default the class folders, sorted.

    Raises:
        DataError: If a folder cannot be read, has no images, or is none of ``class_names``.
    """

    def __init__(self, folder: Path, class_names: Sequence[str] | None = None) -> None:
        self.folder = folder
        found = folders_in(folder)
        if not found:
            raise DataError(f"{folder} has no class folders. Images are expected as {folder}/<class>/<image>.")
        self.class_names = list(class_names or found)
        unknown = sorted(set(found) - set(self.class_names), key=os.fsencode)
        if unknown:
            raise DataError(
                f"{folder} has class folders that the training split lacks: {_listed(unknown)}. "
                "Classes must be the same."
            )
        number = {name: label for label, name in enumerate(self.class_names)}
        names: list[bytes] = []
        counts = []
        for name in found:
            # The class folder is the label's; only what comes after it is kept.
            within = images_in(folder / name)
            names += within
            counts.append(len(within))
        empty = [name for name, count in zip(found, counts, strict=True) if not count]
        if empty:
            raise DataError(
                f"{folder}: class folders without images: {_listed(empty)}. Images end in "
                f"{', '.join(sorted(EXTENSIONS))}. Fill or remove the folders."
            )
        self._names = PackedNames(names)
        self._labels = torch.from_numpy(np.repeat([number[name] for name in found], counts).astype(np.int64))

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> np.ndarray:
        """Class indices, int64 [n]."""
        return self._labels.numpy()

    def path(self, index: int) -> Path:
        """One image's file."""
        return self.folder / self.class_names[int(self._labels[index])] / self._names[index]

    def load(self, index: int) -> dict[str, Any]:
        """One sample: ``image`` (encoded) and ``label``."""
        return {"image": Encoded(self.path(index)), "label": int(self._labels[index])}

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self.path(index))


def refuse_same_folders(folders: list[Path]) -> None:
    """Raises ``DataError`` if two splits are one folder."""
    for position, first in enumerate(folders):
        for second in folders[position + 1 :]:
            if first.samefile(second):
                raise DataError(f"{first} and {second} are the same folder: training images would be evaluated on.")


def _listed(names: list[str]) -> str:
    return ", ".join(map(shown, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
