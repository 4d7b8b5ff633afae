"""CIFAR-10 and CIFAR-100 in the files that torchvision downloads."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets
from typing_extensions import override

from datamodules.arrays import ImageArrays
from datamodules.base import DataModule
from datamodules.cache import unpack_once
from datamodules.errors import DataError
from datamodules.pickles import unpickled
from datamodules.splits import Source, Subset, hold_out, in_proportion
from datamodules.transforms import Transform
from datamodules.transforms.recipes import evaluate_at, small_image_augmentation


class CIFAR10(DataModule):
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32 RGB, 10 classes.

    Batch: ``image`` [B,3,32,32] unless the transforms resize, ``label`` int64 [B], ``index`` int64 [B].

    Args:
        root: Folder that holds ``cifar-10-batches-py`` (``cifar-100-python`` for CIFAR-100).
        batch_size: Samples of one batch over all processes.
        holdout: Validation images taken from the training part: a number, or a fraction below 1.
        num_train: Images to train on, of those that are left, each class in proportion; all by default.
        options: Further options of ``DataModule``. By default images to train on are shifted by up to 4 pixels and
            flipped, and others resized to 32x32.
    """

    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    official = datasets.CIFAR10
    names_key = "label_names"
    labels_key = "labels"

    def __init__(
        self,
        root: Path | str,
        batch_size: int = 128,
        holdout: int | float = 5000,
        num_train: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(batch_size, **options)
        self.root, self.holdout, self.num_train = Path(root), holdout, num_train

    @override
    def default_train_transforms(self) -> list[Transform]:
        return small_image_augmentation()

    @override
    def default_eval_transforms(self) -> list[Transform]:
        return evaluate_at(32)

    @override
    def open(self) -> dict[str, Source | None]:
        self.class_names = self._read(self.official.meta["filename"], self.official.meta["md5"])[self.names_key]
        train = self._part("train", self.official.train_list)
        kept, held = hold_out(train.labels, self.holdout)
        kept = in_proportion(train.labels, kept, self.num_train)
        return {
            "train": Subset(train, kept),
            "val": Subset(train, held) if len(held) else None,
            "test": self._part("test", self.official.test_list),
        }

    def _part(self, split: str, files: list[list[str]]) -> ImageArrays:
        def write(folder: Path) -> None:
            records = [self._read(*file) for file in files]
            pixels = np.concatenate([record["data"] for record in records])
            labels = np.concatenate([np.asarray(record[self.labels_key], np.int64) for record in records])
            if len(pixels) != len(labels) or labels.min() < 0 or labels.max() >= self.num_classes:
                raise DataError(
                    f"{self.root / self.official.base_folder}: {len(pixels)} {split} images and {len(labels)} labels "
                    f"from {labels.min()} to {labels.max()} disagree with each other or with "
                    f"{self.num_classes} classes."
                )
            np.save(folder / "images.npy", pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            np.save(folder / "labels.npy", labels)

        paths = [self._path(name) for name, _ in files]
        arrays = unpack_once(paths, write)
        return ImageArrays(arrays["images"], arrays["labels"][:], f"{type(self).__name__.lower()}/{split}")

    def _path(self, name: str) -> Path:
        folder = self.root / self.official.base_folder
        wanted = [self.official.meta["filename"]]
        wanted += [file for file, _ in self.official.train_list + self.official.test_list]
        missing = [file for file in wanted if not (folder / file).is_file()]
        if missing:
            official = self.official.__name__
            raise DataError(
                f"{official} is not complete in {folder}: {', '.join(missing)} missing. Get it with\n"
                f"    python -c \"from torchvision.datasets import {official} as C; C('{self.root}', download=True)\"\n"
                f"or unpack {self.official.url} in {self.root}."
            )
        return folder / name

    def _read(self, name: str, md5: str) -> dict[str, Any]:
        path = self._path(name)
        content = path.read_bytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise DataError(f"{path} is not the official file (its MD5 differs). Delete it and get it again.")
        return unpickled(content, path)


class CIFAR100(CIFAR10):
    """CIFAR-100: as CIFAR-10, with 100 classes in ``cifar-100-python``."""

    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    official = datasets.CIFAR100
    names_key = "fine_label_names"
    labels_key = "fine_labels"
