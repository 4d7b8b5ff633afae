"""Training images packed at the size that a training needs: two files a split, beside the data set that they are of.

A photograph is many times larger than the crop that is trained on, and is decoded anew in every epoch. A pack holds
each image at a smaller size, as a JPEG. Labels, splits and names stay those of the data set, whose files a pack is
checked against, image by image, whenever one is loaded.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import simplejpeg

from datamodules.decoding import Encoded
from datamodules.errors import DataError
from datamodules.finding import read_file, shown
from datamodules.mapped_array import MappedArray
from datamodules.splits import Source
from datamodules.transforms.resizing import resize

FORMAT = 1
# Fields of an image's row: where its bytes end in the pack, and of its source bytes, time of change and checksum.
ROW = 4
# Images between two moments at which all that is written is safe on the disk.
SAFE = 256
# Fields of a sample that hold for an image of any size.
SIZELESS = frozenset({"image", "label"})


class Packed(Source):
    """A split whose images come from a pack.

    Args:
        source: The split, whose labels and names stay.
        folder: Folder that ``pack`` wrote.
        split: Name of the split.

    Raises:
        DataError: If the pack is missing, unfinished, or of another number of images.
    """

    def __init__(self, source: Source, folder: Path, split: str) -> None:
        self.source, self.folder, self.split = source, folder, split
        stated = folder / f"{split}.json"
        try:
            images = json.loads(stated.read_text())["images"]
            self._data, self._rows = (MappedArray(_part(folder, split, kind)) for kind in ("data", "rows"))
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise DataError(
                f"{folder} has no finished pack of the {split} images ({problem}). Make it with `exp data pack`."
            ) from problem
        if images != len(source) or self._rows.shape != (images, ROW) or self._rows[images - 1][0] != len(self._data):
            raise DataError(
                f"{stated} is of {images:,} images, and the {split} split has {len(source):,}: the data set has "
                "changed since, or is another one. Make the pack again with `exp data pack`."
            )

    def __len__(self) -> int:
        return len(self.source)

    @property
    def labels(self) -> np.ndarray | None:
        """Class indices, int64 [n], where the split has such."""
        return getattr(self.source, "labels", None)

    def name(self, index: int) -> str:
        """What the data set calls it."""
        return self.source.name(index)

    def load(self, index: int) -> dict[str, Any]:
        """The sample with ``image`` (encoded) from the pack.

        Raises:
            DataError: If the image has changed since it was packed.
        """
        sample = self.source.load(index)
        rows = self._rows[max(index - 1, 0) : index + 1]
        start = int(rows[0][0]) if index else 0
        if not _same(sample["image"], rows[-1]):
            raise DataError(
                f"the image has changed since it was packed in {self.folder}. Make the pack again with `exp data pack`."
            )
        return sample | {"image": Encoded(self._data[start : int(rows[-1][0])].tobytes())}


def pack(source: Source, folder: Path, split: str, side: int, quality: int) -> Iterator[int]:
    """Writes the pack of a split, or the rest of it where an earlier call was stopped.

    Images with a shorter side of more than ``side`` are resized to it, with antialiasing, and compressed; others are
    taken as they are if they are plain JPEGs, else compressed at their own size. What is written depends on nothing but
    the images, ``side`` and ``quality``. What was written of images that have changed since, or with other arguments,
    is written anew.

    Args:
        source: The split.
        folder: Where the pack is put.
        split: Name of the split.
        side: Shorter side, in pixels.
        quality: Of JPEGs, 1 to 100.

    Yields:
        How many images are in the pack, from those that are there already on.

    Raises:
        DataError: If an image cannot be read, is no file, or has labels that hold for one size only.
    """
    settings = {"format": FORMAT, "side": side, "quality": quality, "images": len(source)}
    folder.mkdir(parents=True, exist_ok=True)
    finished, begun = folder / f"{split}.json", folder / f".{split}.begun.json"
    data, rows = _part(folder, split, "data"), _part(folder, split, "rows")
    if _stated(finished) == settings and data.exists() and rows.exists():
        if _first_changed(source, np.load(rows, mmap_mode="r")) == len(source):
            yield len(source)
            return
        os.replace(finished, begun)
    finished.unlink(missing_ok=True)
    if _stated(begun) != settings:
        data.unlink(missing_ok=True)
        rows.unlink(missing_ok=True)
        begun.write_text(json.dumps(settings))
    with _opened(data) as images, _opened(rows) as table:
        start = _header(images, (0,), np.uint8)
        row_start = _header(table, (0, ROW), np.int64)
        done, end = _resumed(source, images, start, table, row_start)
        yield done
        waiting: list[tuple[int, int, int, int]] = []
        for index in range(done, len(source)):
            jpeg, identity = _packed(source, index, side, quality)
            images.write(jpeg)
            end += len(jpeg)
            waiting.append((end, *identity))
            if len(waiting) == SAFE or index == len(source) - 1:
                # A row is written when the bytes that it speaks of are on the disk, so that rows can be believed.
                _flush(images)
                table.write(np.array(waiting, np.int64).tobytes())
                _flush(table)
                waiting.clear()
            yield index + 1
        _header(images, (end,), np.uint8)
        _header(table, (len(source), ROW), np.int64)
        _flush(images)
        _flush(table)
    begun.write_text(json.dumps(settings))
    os.replace(begun, finished)


def _part(folder: Path, split: str, kind: str) -> Path:
    return folder / f"{split}.{kind}.npy"


def _stated(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _opened(path: Path) -> BinaryIO:
    path.touch()
    return path.open("r+b")


def _header(file: BinaryIO, shape: tuple[int, ...], dtype: type) -> int:
    """Writes the header of an array, which numpy makes as long for any number of rows; where the array begins."""
    file.seek(0)
    described = np.lib.format.header_data_from_array_1_0(np.empty((0, *shape[1:]), dtype)) | {"shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.tell()


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _resumed(source: Source, images: BinaryIO, start: int, table: BinaryIO, row_start: int) -> tuple[int, int]:
    """Images that need not be packed again, and the bytes that they take; the files are cut to that and left there."""
    written = table.read()
    size = 8 * ROW
    rows = np.frombuffer(written[: len(written) // size * size], np.int64).reshape(-1, ROW)
    done = _first_changed(source, rows)
    end = int(rows[done - 1][0]) if done else 0
    table.truncate(row_start + done * size)
    images.truncate(start + end)
    table.seek(0, os.SEEK_END)
    images.seek(0, os.SEEK_END)
    return done, end


def _first_changed(source: Source, rows: np.ndarray) -> int:
    """Position of the first image that is not as it was packed."""
    for index, row in enumerate(rows[: len(source)]):
        if not _same(source.load(index)["image"], row):
            return index
    return min(len(rows), len(source))


def _same(image: Encoded, row: np.ndarray) -> bool:
    """Whether an image is the one that a row is of: by size and time of its file, else by its bytes."""
    if isinstance(image.data, Path):
        try:
            status = image.data.stat()
        except OSError as problem:
            raise DataError(f"cannot be read: {problem.strerror or problem}") from problem
        if status.st_size != row[1]:
            return False
        if status.st_mtime_ns == row[2]:
            return True
    data = read_file(image.data) if isinstance(image.data, Path) else image.data
    return len(data) == row[1] and zlib.crc32(data) == row[3]


def _packed(source: Source, index: int, side: int, quality: int) -> tuple[bytes, tuple[int, int, int]]:
    """An image at its size in the pack, as JPEG, and the identity of its source: bytes, time and checksum."""
    try:
        sample = source.load(index)
        if not isinstance(image := sample["image"], Encoded):
            raise DataError("the images of this data set are not encoded: there is nothing to be gained by a pack")
        if others := sorted(sample.keys() - SIZELESS):
            raise DataError(f"it has {', '.join(others)}, made for its own size; images with a class can be packed")
        time = image.data.stat().st_mtime_ns if isinstance(image.data, Path) else 0
        data = read_file(image.data) if isinstance(image.data, Path) else image.data
        return _shrunk(data, side, quality), (len(data), time, zlib.crc32(data))
    except DataError as problem:
        raise DataError(f"{shown(source.name(index))} cannot be packed: {problem}") from problem


def _shrunk(data: bytes, side: int, quality: int) -> bytes:
    opened = Encoded(data).open()
    height, width = opened.height, opened.width
    if min(height, width) > side:
        rows, columns = (max(side, round(each * side / min(height, width))) for each in (height, width))
        pixels = resize(opened.region((0, 0, width, height), rows, columns), rows, columns)
    elif opened.header is not None:
        return data
    else:
        pixels = opened.region((0, 0, width, height), height, width)
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420"))
