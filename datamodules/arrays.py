"""Images that fit in memory, or in a memory-mapped array."""

from __future__ import annotations

from typing import Any

import numpy as np


class ImageArrays:
    """Decoded images with labels.

    Args:
        images: uint8 [n,H,W,3], RGB.
        labels: Class indices, int64 [n].
        title: Name of the data set in messages, such as ``cifar10/test``.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, title: str) -> None:
        self.images, self.labels, self.title = images, labels, title

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}

    def name(self, index: int) -> str:
        return f"{self.title} #{index}"
