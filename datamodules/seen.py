"""What a network sees of images: the pictures themselves, or features of their cells or regions from files."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from datamodules.decoding import Encoded
from datamodules.errors import DataError
from datamodules.finding import EXTENSIONS
from datamodules.mapped_array import MappedArray
from datamodules.texts import Texts

FEATURES = frozenset({".npy", ".npz"})
# Of an archive with several arrays, the one that has the features.
KEY = "x"
# From the name of a subset and the number of an image in it to what a question knows the image by.
MakeKey = Callable[[str, int], Hashable]


class Seen(Protocol):
    """What there is to be seen, by position.

    Attributes:
        places: Position by what a question knows an image by.
    """

    places: dict[Hashable, int]

    def load(self, place: int) -> dict[str, Any]:
        """``image``, or ``features``."""

    def name(self, place: int) -> str:
        """The file."""


class ImagesInFolders:
    """Pictures by the number at the end of their names, such as ``COCO_train2014_000000000009.jpg``.

    Args:
        folders: Where they are, by subset; subsets may share one.
        key: What a question knows an image by.

    Raises:
        DataError: A folder that is none or empty, or two files of one image.
    """

    def __init__(self, folders: Mapping[str, Path], key: MakeKey) -> None:
        self.places, files = _numbered(folders, EXTENSIONS, key)
        self._files = Texts(files)

    def load(self, place: int) -> dict[str, Any]:
        """``image``, encoded."""
        return {"image": Encoded(Path(self._files[place]))}

    def name(self, place: int) -> str:
        """The file."""
        return self._files[place]


class FeatureFiles:
    """Features of images: a file for each in folders, or one array for all beside its numbers.

    A file is a ``.npy``, or a ``.npz`` with ``x`` or one array alone: [h,w,C], or [N,C], whose N cells are those of a
    square row by row where no shape is given. ``<subset>.npy`` [images, ...] in place of a folder ``<subset>`` is
    mapped into memory, and ``<subset>_ids.npy`` has the number of each image, int64.

    Args:
        folders: Where the files are, by subset; subsets may share one.
        key: What a question knows an image by.
        shape: Height, width and channels; or regions and channels, to which an image with fewer is filled up by zeros,
            and of one with more the first are taken. None takes every grid as it is.

    Raises:
        DataError: A folder that is none or empty, two files of one image, or arrays that do not fit each other.
    """

    def __init__(self, folders: Mapping[str, Path], key: MakeKey, shape: Sequence[int] | None) -> None:
        self.shape = None if shape is None else tuple(shape)
        self.places: dict[Hashable, int] = {}
        stacked = {name: folder for name, folder in folders.items() if _is_stacked(folder)}
        self._stacks = [(_stack(folder), MappedArray(_stack(folder))) for folder in stacked.values()]
        starts = [0]
        for name, (path, array) in zip(stacked, self._stacks, strict=True):
            numbers = _numbers(path, len(array))
            self._add(((key(name, number), path) for number in numbers), starts[-1])
            starts.append(starts[-1] + len(array))
        self._starts = torch.tensor(starts)
        apart = {name: folder for name, folder in folders.items() if name not in stacked}
        found, files = _numbered(apart, FEATURES, key) if apart else ({}, [])
        for each, place in found.items():
            self._add([(each, Path(files[place]))], starts[-1] + place)
        self._files = Texts(files)

    def _add(self, found: Iterable[tuple[Hashable, Path]], start: int) -> None:
        for place, (key, path) in enumerate(found, start):
            if key in self.places:
                raise DataError(f"{path} has image {key}, of which there are features already. Keep one of them.")
            self.places[key] = place

    def load(self, place: int) -> dict[str, Any]:
        """``features``, float32 [h,w,C] or [N,C].

        Raises:
            DataError: They cannot be read, have another shape, or hold what is no number.
        """
        stack = int(torch.searchsorted(self._starts, place, right=True)) - 1
        if stack < len(self._stacks):
            array = self._stacks[stack][1][place - int(self._starts[stack])]
        else:
            array = read_features(Path(self._files[place - int(self._starts[-1])]))
        return {"features": fitted_features(array, self.shape)}

    def name(self, place: int) -> str:
        """The file; of a stack, with the position in it."""
        stack = int(torch.searchsorted(self._starts, place, right=True)) - 1
        if stack < len(self._stacks):
            return f"{self._stacks[stack][0]} #{place - int(self._starts[stack])}"
        return self._files[place - int(self._starts[-1])]


class FeaturePaths:
    """Files of features, given one by one or as folders, without questions.

    Args:
        paths: Files and folders.
        shape: See ``FeatureFiles``.

    Raises:
        DataError: A file that holds no features, or a folder without one.
    """

    def __init__(self, paths: Sequence[Path | np.ndarray], shape: Sequence[int] | None) -> None:
        self.shape = None if shape is None else tuple(shape)
        self.paths: list[Path] = []
        for path in paths:
            if isinstance(path, np.ndarray):
                raise DataError("an array of pixels: the network takes features, from files (.npy or .npz)")
            inside = sorted(each for each in path.rglob("*") if each.suffix in FEATURES) if path.is_dir() else [path]
            if not inside or any(each.suffix not in FEATURES for each in inside):
                raise DataError(
                    f"{path}: the network takes features from files (.npy or .npz), not images. Give it those that "
                    "`predict --features` of a network with a backbone writes, or predict with that one."
                )
            self.paths += inside

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> dict[str, Any]:
        """``features``."""
        return {"features": fitted_features(read_features(self.paths[index]), self.shape)}

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self.paths[index])


def read_features(path: Path) -> np.ndarray:
    """The array of a ``.npy`` file, or of a ``.npz`` file the one called ``x`` or the only one.

    Raises:
        DataError: There is none.
    """
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            names = content.files
            if KEY not in names and len(names) != 1:
                raise DataError(f"{path} has the arrays {', '.join(names) or 'of nothing'}, and none is called {KEY}")
            return content[KEY if KEY in names else names[0]]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as problem:
        raise DataError(f"{path} holds no array: {problem}") from problem


def fitted_features(array: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    """Features as they are wanted, float32; see ``FeatureFiles``.

    Raises:
        DataError: They cannot be brought to it, or hold what is no number.
    """
    if array.dtype.kind not in "fiu" or array.ndim not in (2, 3) or not array.size:
        raise DataError(f"features are numbers [h,w,C] or [N,C], not {array.dtype} {list(array.shape)}")
    values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError("the features hold values that are not finite")
    if shape is not None and len(shape) == 2:
        values = values.reshape(-1, values.shape[-1])[: shape[0]]
        values = np.pad(values, ((0, shape[0] - len(values)), (0, 0)))
    elif values.ndim == 2:
        side = math.isqrt(len(values))
        size = (side, side) if shape is None else shape[:2]
        if math.prod(size) != len(values):
            raise DataError(
                f"{len(values)} cells are no {'square' if shape is None else 'grid of this size'}: say by "
                "feature_shape what they are, [height, width, channels] or [regions, channels]"
            )
        values = values.reshape(*size, -1)
    if shape is not None and values.shape != shape:
        raise DataError(f"features of shape {list(values.shape)}, but feature_shape is {list(shape)}")
    return values


def _numbered(
    folders: Mapping[str, Path], extensions: frozenset[str], key: MakeKey
) -> tuple[dict[Hashable, int], list[str]]:
    """Files with a number at the end of their names: place by key, and the files."""
    places: dict[Hashable, int] = {}
    files: list[str] = []
    for name, folder in folders.items():
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder. The options `images` and `features` say where they are.")
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() not in extensions:
                continue
            found = re.search(r"(\d+)$", file.name.split(".")[0])
            if found is None:
                raise DataError(f"{file} has no number at the end of its name, by which questions know it. Rename it.")
            each = key(name, int(found[1]))
            if each not in places:
                places[each] = len(files)
                files.append(str(file))
            elif files[places[each]] != str(file):
                raise DataError(f"{file} and {files[places[each]]} are of one image. Keep one of them.")
    if not files:
        where = ", ".join(dict.fromkeys(map(str, folders.values())))
        raise DataError(f"{where}: no files of {', '.join(sorted(extensions))} in there.")
    return places, files


def _is_stacked(folder: Path) -> bool:
    return not folder.is_dir() and _stack(folder).is_file()


def _stack(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.npy")


def _numbers(path: Path, images: int) -> list[int]:
    """The number of each image of a stack."""
    beside = path.with_name(f"{path.stem}_ids.npy")
    if not beside.is_file():
        raise DataError(f"{beside} is missing: it says of which image each of {path} is, int64 [{images}].")
    numbers = read_features(beside)
    if numbers.dtype.kind not in "iu" or numbers.shape != (images,):
        raise DataError(f"{beside} has to be whole numbers [{images}], as {path} has {images} images.")
    return numbers.tolist()
