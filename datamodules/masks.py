"""Label files to train ids: 8-bit grey, palette and colour pictures, and one error for what is none of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datamodules.decoding import ORIENTATION, TURNS, UPRIGHT, opened
from datamodules.errors import DataError
from datamodules.finding import read_file
from datamodules.label_maps import LabelMap


class EncodedMask:
    """A label file that is not read yet.

    Args:
        path: The file: PNG or any other lossless format.
        labels: What its values mean.
    """

    def __init__(self, path: Path, labels: LabelMap) -> None:
        self.path, self.labels = path, labels

    def decode(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """Reads the file.

        Args:
            size: Height and width of the image that it labels, if known.

        Returns:
            Train ids, uint8 [H,W]; 255 is void.

        Raises:
            DataError: If the file is missing, is no label file, has another size than its image, or has values outside
                the palette. The message names the file.
        """
        try:
            values, _ = self.read()
            if size is not None and values.shape[:2] != size:
                raise DataError(
                    f"it has {values.shape[1]}x{values.shape[0]} pixels and its image {size[1]}x{size[0]}; write it "
                    "at the image's size"
                )
            return self.labels.train_ids(values)
        except DataError as problem:
            raise DataError(f"label file {self.path}: {problem}") from problem

    def read(self) -> tuple[np.ndarray, list[int] | None]:
        """Values as the file has them, and the colours of its palette.

        Returns:
            uint8 [H,W], or uint8 [H,W,3] RGB; and the RGB of each index one after the other, or None without palette.

        Raises:
            DataError: If it cannot be read or is no label file; the message does not name it.
        """
        try:
            data = read_file(self.path)
        except DataError as problem:
            raise DataError(f"it {problem}" if self.path.exists() else "it is missing") from problem
        try:
            with opened(data) as picture:
                mode, palette = picture.mode, picture.getpalette()
                turn = TURNS.get(picture.getexif().get(ORIENTATION, UPRIGHT))
                values = np.asarray(picture if turn is None else picture.transpose(turn))
        except DataError as problem:
            raise DataError(f"it cannot be read: {problem}") from problem
        if mode in ("L", "P"):
            return values, palette
        if mode in ("RGB", "RGBA"):
            return np.ascontiguousarray(values[..., :3]), None
        if mode == "1" or mode.startswith("I"):
            if values.min() < 0 or values.max() > 255:
                raise DataError(f"label values from {values.min()} to {values.max()}; they must be from 0 to 255")
            return values.astype(np.uint8), None
        raise DataError(f"pictures of mode {mode} hold no labels; write one 8-bit channel, or the palette's RGB")
