"""Images without labels: files given one by one or as folders, and arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.decoding import Encoded
from datamodules.errors import DataError
from datamodules.finding import EXTENSIONS, images_in


class ImageFiles:
    """Images to predict on.

    Args:
        paths: Files, folders that are searched with their subfolders, as ``finding`` says, and RGB arrays, uint8
            [H,W,3].

    Raises:
        DataError: If a path does not exist or there is no image at all.
    """

    def __init__(self, paths: Sequence[Path | np.ndarray]) -> None:
        self.paths: list[Path | np.ndarray] = []
        for given in paths:
            if isinstance(given, np.ndarray):
                self.paths.append(given)
                continue
            path = Path(given)
            if path.is_dir():
                found = images_in(path)
                if not found:
                    raise DataError(f"{path} holds no image ({', '.join(sorted(EXTENSIONS))}).")
                self.paths += [path / os.fsdecode(name) for name in found]
            elif path.exists():
                self.paths.append(path)
            else:
                raise DataError(f"{path} does not exist. Give image files, or folders of them, to predict on.")
        if not self.paths:
            raise DataError("Nothing to predict on: give image files, or folders of them.")

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> dict[str, Any]:
        """One sample: ``image`` (encoded, or the array)."""
        given = self.paths[index]
        return {"image": given if isinstance(given, np.ndarray) else Encoded(given)}

    def name(self, index: int) -> str:
        """The file's path, or ``image 3`` for an array."""
        given = self.paths[index]
        return f"image {index}" if isinstance(given, np.ndarray) else str(given)
