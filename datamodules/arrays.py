"""Images that fit in memory, or in a memory-mapped array."""

from __future__ import annotations

from typing import Any

import numpy as np

from datamodules.mapped_array import MappedArray


class ImageArrays:
    """Decoded images with labels.

    Args:
        images: uint8 [n,H,W,3], RGB; mapped, if workers should share them.
        labels: Class indices, int64 [n].
        title: Name of the data set in messages, such as ``cifar10/test``.
    """

    def __init__(self, images: np.ndarray | MappedArray, labels: np.ndarray, title: str) -> None:
        self.images, self.labels, self.title = images, labels, title

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> dict[str, Any]:
        """One sample: ``image`` [H,W,3] uint8 and ``label``."""
        return {"image": self.images[index], "label": int(self.labels[index])}

    def name(self, index: int) -> str:
        """``cifar10/test #17``."""
        return f"{self.title} #{index}"
