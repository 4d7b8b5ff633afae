"""Encoded images packed in ``.npz`` archives: all files one after the other, with offsets and labels."""

from __future__ import annotations

import shutil
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from datamodules.base import DataModule
from datamodules.cache import unpack_once
from datamodules.decoding import Encoded
from datamodules.errors import DataError
from datamodules.mapped_array import MappedArray
from datamodules.pixels import Pixels
from datamodules.splits import Source, Subset, hold_out, in_proportion
from datamodules.transforms import Transform
from datamodules.transforms.recipes import evaluate_at, small_image_augmentation

KEYS = ("data", "offsets", "labels")
# Version of what is unpacked; the second has pixels.
LAYOUT = "2"
# So small an image takes longer to decode than to read decoded; larger ones take more room than they save time.
SMALL = 64 * 64


class PackedImages(DataModule):
    """Images of one size range packed in ``train.npz`` and ``test.npz``.

    Each archive holds ``data`` uint8 [bytes] (JPEG, PNG ... files one after the other), ``offsets`` int64 [n+1] (file i
    is ``data[offsets[i]:offsets[i+1]]``), ``labels`` int64 [n] and, optionally, ``classes`` str [K]. Archives are
    unpacked once to the cache folder (``EXP_CACHE``) and memory-mapped from there.

    Batch: ``image`` [B,3,H,W], ``label`` int64 [B], ``index`` int64 [B].

    Args:
        root: Folder of the archives, such as ``../shared/data/cifar10``.
        batch_size: Samples of one batch over all processes.
        holdout: Validation images taken from the training part: a number, or a fraction below 1.
        num_train: Images to train on, of those that are left, each class in proportion; all by default.
        mean: Mean of the RGB channels in [0, 1]; CIFAR's, or what weights expect, by default.
        std: Their standard deviation. With a mean it is short for ``pixels: {mean: ..., std: ...}``.
        options: Further options of ``DataModule``. By default images to train on are shifted by up to 4 pixels and
            flipped, and others resized to 32x32.
    """

    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)

    def __init__(
        self,
        root: Path | str,
        batch_size: int = 128,
        holdout: int | float = 0.1,
        num_train: int | None = None,
        mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465),
        std: tuple[float, float, float] = (0.2470, 0.2435, 0.2616),
        **options: Any,
    ) -> None:
        super().__init__(batch_size, **options)
        self.root, self.holdout, self.num_train = Path(root), holdout, num_train
        if self.told_pixels is None and (mean, std) != (self.mean, self.std):
            self.told_pixels = Pixels(mean, std)

    @override
    def default_train_transforms(self) -> list[Transform]:
        return small_image_augmentation()

    @override
    def default_eval_transforms(self) -> list[Transform]:
        return evaluate_at(32)

    @override
    def open(self) -> dict[str, Source | None]:
        train, test = (Archive(self.root / f"{split}.npz") for split in ("train", "test"))
        if train.class_names != test.class_names:
            raise DataError(
                f"{train.path} and {test.path} name different classes: {train.class_names} and {test.class_names}."
            )
        self.class_names = train.class_names
        kept, held = hold_out(train.labels, self.holdout)
        kept = in_proportion(train.labels, kept, self.num_train)
        return {"train": Subset(train, kept), "val": Subset(train, held) if len(held) else None, "test": test}


class Archive:
    """One packed archive.

    Args:
        path: The ``.npz`` file.

    Raises:
        DataError: If it is missing or malformed, or its parts contradict each other.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(
                f"{path} does not exist. Packed images need train.npz and test.npz in one folder, each with the arrays "
                "data (uint8, all files one after the other), offsets (int64, n+1) and labels (int64, n)."
            )
        try:
            arrays = unpack_once([path], self._unpack, LAYOUT)
        except (zipfile.BadZipFile, ValueError, EOFError) as problem:
            raise DataError(f"{path} is not a readable .npz archive: {problem}. Copy or make it again.") from problem
        self.data, self.offsets = arrays["data"], arrays["offsets"]
        self._check(arrays)
        self.labels = arrays["labels"][:]
        self.pixels = arrays.get("pixels")
        classes = arrays["classes"][:] if "classes" in arrays else np.arange(int(self.labels.max()) + 1)
        self.class_names = [str(name) for name in classes]
        if self.labels.min() < 0 or self.labels.max() >= len(self.class_names):
            wrong = int(np.flatnonzero((self.labels < 0) | (self.labels >= len(self.class_names)))[0])
            raise DataError(
                f"{path}: label {self.labels[wrong]} of image {wrong} is not one of {len(self.class_names)} classes."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> dict[str, Any]:
        """One sample: ``image`` (decoded if all are small and of one size, else encoded) and ``label``."""
        if self.pixels is not None:
            return {"image": self.pixels[index], "label": int(self.labels[index])}
        start, end = self.offsets[slice(index, index + 2)]
        return {"image": Encoded(self.data[slice(start, end)].tobytes()), "label": int(self.labels[index])}

    def name(self, index: int) -> str:
        """``cifar10/test #17``."""
        return f"{self.path.parent.name}/{self.path.stem} #{index}"

    def _unpack(self, folder: Path) -> None:
        with zipfile.ZipFile(self.path) as archive:
            missing = [key for key in KEYS if f"{key}.npy" not in archive.namelist()]
            if missing:
                raise DataError(f"{self.path} lacks the arrays {', '.join(missing)}; it needs {', '.join(KEYS)}.")
            for key in (*KEYS, "classes"):
                if f"{key}.npy" in archive.namelist():
                    with archive.open(f"{key}.npy") as source, (folder / f"{key}.npy").open("wb") as target:
                        shutil.copyfileobj(source, target)
        _decode_small(folder)

    def _check(self, arrays: dict[str, MappedArray]) -> None:
        data = arrays["data"]
        if data.dtype != np.uint8 or len(data.shape) != 1:
            raise DataError(f"{self.path}: data is {data.dtype} {data.shape}, not uint8 [bytes].")
        for name in ("offsets", "labels"):
            if arrays[name].dtype.kind not in "iu" or len(arrays[name].shape) != 1:
                raise DataError(
                    f"{self.path}: {name} is {arrays[name].dtype} {arrays[name].shape}, not a row of integers."
                )
        offsets, labels = arrays["offsets"][:], arrays["labels"][:]
        if len(offsets) != len(labels) + 1 or not len(labels):
            raise DataError(
                f"{self.path}: {len(labels)} labels and {len(offsets)} offsets disagree: n images (at least one) have "
                "n labels and n+1 offsets."
            )
        if offsets[0] != 0 or offsets[-1] != len(data):
            raise DataError(
                f"{self.path}: offsets run from {offsets[0]} to {offsets[-1]}, but data has {len(data)} bytes from 0."
            )
        steps = np.diff(offsets.astype(np.int64))
        if (steps < 0).any():
            wrong = int(np.flatnonzero(steps < 0)[0])
            raise DataError(
                f"{self.path}: offsets fall from {offsets[wrong]} to {offsets[wrong + 1]} at image {wrong}."
            )


def _decode_small(folder: Path) -> None:
    """Writes ``pixels`` uint8 [n,H,W,3] beside ``data`` if all images can be read, are small and of one size.

    What cannot be read is left to whoever loads it, who can say which image it is.
    """
    data, offsets = np.load(folder / "data.npy", mmap_mode="r"), np.load(folder / "offsets.npy")
    if data.dtype != np.uint8 or offsets.dtype.kind not in "iu" or offsets.ndim != 1 or len(offsets) < 2:
        return
    images = (Encoded(data[start:end].tobytes()) for start, end in pairwise(offsets.tolist()))
    try:
        first = next(images)
        size = first.size()
        if size[0] * size[1] > SMALL:
            return
        pixels = np.empty((len(offsets) - 1, *size, 3), np.uint8)
        pixels[0] = first.decode()
        for place, image in enumerate(images, 1):
            if image.size() != size:
                return
            pixels[place] = image.decode()
    except DataError:
        return
    np.save(folder / "pixels.npy", pixels)
