"""Image files given one by one or as folders, without labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.decoding import Encoded
from datamodules.errors import DataError
from datamodules.finding import EXTENSIONS, images_in


class ImageFiles:
    """Images to predict on.

    Args:
        paths: Files, and folders that are searched with their subfolders, as ``finding`` says.

    Raises:
        DataError: If a path does not exist or there is no image at all.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths: list[Path] = []
        for path in map(Path, paths):
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
        """One sample: ``image`` (encoded)."""
        return {"image": Encoded(self.paths[index])}

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self.paths[index])
